"""Workers are killed."""

from __future__ import annotations

import time

from tests.chaos.controls import NaivePool, kill
from tests.chaos.scenario import scenario
from tests.chaos.world import Watched, World, timed, under_chaos
from tests.support.waiting import wait_until


@scenario("kill -9 a random worker", dose=60, soak=2000, bound="next item within 1 s", databases=("postgresql", "psycopg3"))
def random_worker(world: World) -> None:
    """One after the other, each when the one before is replaced; what counts is when the replacement begins an item."""
    per_kill = 15
    items = world.accounts((world.strikes + 2) * per_kill)
    deaths: list[tuple[float, set[int]]] = []

    def chaos(run: Watched) -> None:
        for number in range(1, world.strikes + 1):
            run.wait_for(number * per_kill + world.chance.randrange(per_kill))
            known = set(run.workers())
            victim = run.one_worker()
            deaths.append((time.monotonic(), known))
            assert kill(victim)
            world.struck("worker kills")
            wait_until(lambda: run.is_over or set(run.workers()) - known, 10.0, every_s=0.002)  # noqa: B023

    run = under_chaos(world, timed, items, chaos)
    assert world.figures["worker kills"] >= world.strikes, "the run was over before all kills were done"
    world.judge(items)
    starts = run.starts()
    for died, known in deaths:
        begun = [at for pid, at in starts if pid not in known and at > died]
        if begun:
            world.within(min(begun) - died, 1.0, "recovery of a worker")


@random_worker.control
def _(world: World) -> str:
    with NaivePool(world) as pool:
        pool.wait_for(5)
        kill(pool.pids[0])
        return pool.outcome()
