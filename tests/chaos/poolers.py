"""The same faults behind pgbouncer in transaction mode, where a session is another one after each transaction."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator

from sqlalchemy import make_url

from tests.chaos.controls import NaivePool, kill
from tests.chaos.scenario import scenario
from tests.chaos.servers import END_ALL, end_all_sessions, held_item
from tests.chaos.world import Watched, World, administration, by_driver, slow, under_chaos
from tests.support import crashes, oracle
from tests.support.pgbouncer import PgBouncer
from tests.support.waiting import wait_until

AFTER_KILL = 4
"""Items that are settled between two kills of a worker."""


@contextlib.contextmanager
def bouncer(world: World, size: int = 6) -> Iterator[str]:
    """The way to the world's database through a pgbouncer."""
    name = make_url(world.url).database or ""
    made = PgBouncer(world.server.url(), "transaction", size)
    try:
        made.start(name)
        yield by_driver(world, made.url(name))
    finally:
        made.close()


@scenario(
    "pgbouncer in transaction mode: workers killed, sessions terminated, the parent killed and resumed",
    dose=15,
    soak=150,
    bound="the same oracle",
    databases=("postgresql", "psycopg3"),
    needs="pgbouncer",
)
def pooled(world: World) -> None:
    """The dose is kills of workers; for each three there is one of the others."""
    per_strike, rarely = 20, max(1, world.strikes // 3)
    items = world.accounts((world.strikes + rarely + 1) * per_strike)
    with bouncer(world) as url:
        under_chaos(world, slow, items, lambda run: strike(world, run, rarely, per_strike), database=url)
    assert world.judge(items).counts.retries == 0
    items = world.accounts((rarely + 1) * 40)
    with bouncer(world) as url:
        for _ in range(rarely):
            kill_a_parent(world, len(items), url)
        crashes.carry_out(crashes.slow, len(items), url, start_method="fork")
    world.judge(items, run="crash")


def strike(world: World, run: Watched, rarely: int, per_strike: int) -> None:
    for number in range(world.strikes):
        # Whom the last kill hit is tried again first: let it be settled, or by chance three kills in a row quarantine one item.
        run.wait_for(max(run.settled + AFTER_KILL, (number + 1) * per_strike + world.chance.randrange(per_strike)))
        known = run.workers()
        assert kill(run.one_worker())
        world.struck("worker kills")
        if number % 3 == 0 and number // 3 < rarely:
            end_all_sessions(world)
        wait_until(lambda: run.is_over or set(run.workers()) - set(known), 10.0, every_s=0.002)  # noqa: B023
    assert not run.is_over, "the run was over before all strikes were done"


def kill_a_parent(world: World, items: int, url: str) -> None:
    """One that is forked, since that is quick; it is killed somewhere in the middle of what it had left to do."""
    options = {"start_method": "fork"}
    parent = multiprocessing.get_context("fork").Process(
        target=crashes.carry_out, args=(crashes.slow, items, url), kwargs=options
    )
    enough = oracle.applied(world.url) + world.chance.randrange(5, 35)
    parent.start()
    try:
        wait_until(lambda: not parent.is_alive() or oracle.applied(world.url) >= enough, 30.0, every_s=0.005)
        assert parent.is_alive(), "it ended before it could be killed"
    finally:
        parent.kill()
        parent.join()
    world.struck("parent kills")


@pooled.control
def _(world: World) -> str:
    with bouncer(world) as url, NaivePool(world, held_item, url=url) as pool, administration(world) as execute:
        pool.wait_for(1)
        until = time.monotonic() + 20
        while not pool.is_over and time.monotonic() < until:
            execute(END_ALL)
        return pool.outcome()
