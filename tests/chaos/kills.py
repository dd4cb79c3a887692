"""Workers are killed: one, all, and what starts them."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable

from tests.chaos.controls import NaivePool, kill
from tests.chaos.scenario import scenario
from tests.chaos.world import Watched, World, helper_pids, timed, under_chaos
from tests.support.waiting import wait_until

PER_KILL = 15
"""Items between a recovery and the next kill."""

MOST_PER_KILL = 400
"""So many may be done meanwhile on a fast machine; the source ends when the last kill is done."""

CALM_S, WINDOW_S = 1.0, 0.5
"""Before and after a kill, to compare the throughput."""


def killed_again_and_again(
    world: World, strike: Callable[[Watched], str], *, bound_s: float, what: str, calm: bool = False, **options: object
) -> None:
    """A run in which ``strike`` kills something now and then, each time when what it killed before is replaced.

    Recovery is from the kill to the first item that a worker begins which was not there before. calm: leave time before
    and after each kill, and judge the throughput too.
    """
    accounts = world.accounts((world.strikes + 1) * (12 if calm else 1) * MOST_PER_KILL)  # more than a quick machine settles
    workers = int(str(options.setdefault("workers", 2)))
    is_enough = threading.Event()
    deaths: list[tuple[float, set[int]]] = []

    def chaos(run: Watched) -> None:
        for _ in range(world.strikes):
            run.wait_for(run.settled + world.chance.randrange(PER_KILL))
            pause(run, CALM_S if calm else 0.0)
            # All of them, or one that is only being started would be taken for the dead one's successor.
            wait_until(lambda: run.is_over or len(run.workers()) >= workers, 20.0, every_s=0.002)
            known = set(run.workers())
            died = time.monotonic()
            world.struck(strike(run))
            deaths.append((died, known))
            wait_until(lambda: run.is_over or newcomer(run, known, died) is not None, 20.0, every_s=0.005)  # noqa: B023
            pause(run, 2.0 + WINDOW_S if calm else 0.0)
        run.wait_for(run.settled + PER_KILL)
        is_enough.set()

    run = under_chaos(world, timed, itertools.takewhile(lambda _: not is_enough.is_set(), accounts), chaos, **options)
    assert len(deaths) == world.strikes, "the run was over before all kills were done"
    ledger = world.judge(range(run.settled))
    assert ledger.counts.retries == 0
    for died, known in deaths:
        begun = newcomer(run, known, died)
        assert begun is not None, "nobody took a dead worker's place"
        world.within(begun - died, bound_s, what)
        if calm:
            judge_throughput(world, run, died)


def newcomer(run: Watched, known: set[int], died: float) -> float | None:
    """When a worker that was not there before began its first item; None = not yet."""
    return min((at for pid, at in run.starts() if at > died and pid not in known), default=None)


def pause(run: Watched, for_s: float) -> None:
    """Let the run go on for so long."""
    until = time.monotonic() + for_s
    wait_until(lambda: run.is_over or time.monotonic() >= until, for_s + 20.0, every_s=0.01)


def judge_throughput(world: World, run: Watched, died: float) -> None:
    """How long until as much is settled as 90 % of what it was in the calm before the kill, over half a second."""
    before = sum(died - CALM_S <= at < died for at in run.arrivals) / CALM_S
    enough = 0.9 * before * WINDOW_S
    last = run.arrivals[-1] - WINDOW_S
    back = (at for at in run.arrivals if died < at < last and sum(at <= one < at + WINDOW_S for one in run.arrivals) >= enough)
    world.within(next(back, float("inf")) - died, 2.0, "return of 90 % of the throughput")


def one_worker(run: Watched) -> str:
    assert kill(run.one_worker())
    return "worker kills"


@scenario("kill -9 a random worker", dose=60, soak=2000, bound="next item within 1 s", databases=("postgresql", "psycopg3"))
def random_worker(world: World) -> None:
    """One after the other."""
    killed_again_and_again(world, one_worker, bound_s=1.0, what="recovery of a worker")


@random_worker.control
def one_of_a_pool(world: World) -> str:
    with NaivePool(world) as pool:
        pool.wait_for(5)
        kill(pool.pids[0])
        return pool.outcome()


@scenario(
    "SQLite: 4 workers, kill -9",
    dose=30,
    soak=500,
    bound="nobody sees a locked database; next item within 5 s",
    databases=("sqlite",),
)
def sqlite_workers(world: World) -> None:
    """No "database is locked" reaches anybody: an item that met one would be failed or retried."""
    killed_again_and_again(world, one_worker, bound_s=5.0, what="recovery of a worker on SQLite", workers=4)


sqlite_workers.control(one_of_a_pool)


@scenario("kill -9 all workers at once", dose=5, soak=50, bound="next item within 2 s, 90 % of the throughput in 2 s")
def all_workers(world: World) -> None:
    """As when a control group's memory is used up."""

    def everybody(run: Watched) -> str:
        assert [pid for pid in run.workers() if kill(pid)], "the run is over" if run.is_over else "there is no worker"
        return "kills of all workers"

    killed_again_and_again(world, everybody, bound_s=2.0, what="recovery of all workers", calm=True, workers=3)


@all_workers.control
def all_of_a_pool(world: World) -> str:
    with NaivePool(world) as pool:
        pool.wait_for(5)
        for pid in pool.pids:
            kill(pid)
        return pool.outcome()


def helper(kind: str) -> Callable[[Watched], str]:
    """Kills a helper of multiprocessing's: "forkserver" or "resource_tracker"."""

    def strike(run: Watched) -> str:
        found = helper_pids(os.getpid(), kind)
        assert found, f"there is no {kind}"
        assert kill(found[0])
        if kind == "resource_tracker":  # nobody needs it, so nothing has to be replaced: a worker's death shows that all goes on
            assert kill(run.one_worker())
        return f"kills of the {kind.replace('_', ' ')}".replace("forkserver", "fork server")

    return strike


@scenario("kill -9 of the fork server", dose=5, soak=50, bound="goes on with a new one within 5 s, no item billed")
def fork_server(world: World) -> None:
    """It is the parent of the workers, which die with it."""
    killed_again_and_again(world, helper("forkserver"), bound_s=5.0, what="recovery of the fork server")


@scenario("kill -9 of the resource tracker", dose=5, soak=50, bound="goes on, no item billed")
def resource_tracker(world: World) -> None:
    """And of a worker with it, since the next start needs a new one."""
    killed_again_and_again(world, helper("resource_tracker"), bound_s=2.0, what="recovery of the resource tracker")


@fork_server.control
@resource_tracker.control
def pool_of_a_fork_server(world: World) -> str:
    """The same pool under forkserver. Its workers outlive the server, but what replaces one cannot be started any more."""
    with NaivePool(world, method="forkserver") as pool:
        pool.wait_for(5)
        kill(helper_pids(pool.pid, "forkserver")[0])
        kill(pool.pids[0])
        return pool.outcome()
