"""The server goes away and comes back; sessions are ended on it."""

from __future__ import annotations

import os
import signal
import time

from sqlalchemy import text

from tests.chaos.controls import NaivePool, kill
from tests.chaos.scenario import scenario
from tests.chaos.world import Told, Watched, World, administration, slow, told_under_chaos, under_chaos
from tests.support.databases import engine_for
from tests.support.waiting import wait_until

RESTARTS = ("immediate", "fast", "smart", "immediate", "fast", "immediate")
SAYS_SO = "waiting for it"


def stop(world: World, run: Told, mode: str) -> None:
    """Stop the server while the run goes on. Returns when it is down."""
    if mode == "smart":
        turn_newcomers_away(world, run)
        mode = "fast"
    world.server.stop(mode)
    world.struck("server crashes" if mode == "immediate" else "server stops")


def turn_newcomers_away(world: World, run: Told) -> None:
    """A smart shutdown waits for those who are connected, so they work on; a worker that is replaced is not let in."""
    os.kill(world.server.pid or 0, signal.SIGTERM)
    run.wait_for(run.settled + 5)
    kill(run.one_worker())
    run.wait_for(run.settled + 5)


@scenario(
    "server restart: immediate, fast, smart, under load",
    dose=6,
    soak=60,
    bound="no item failed; goes on within 5 s of the server",
    databases=("postgresql", "psycopg3"),
)
def restarts(world: World) -> None:
    """One after the other in one run. Half of them are crashes, which also take commits that are under way."""
    per_restart, strikes = 50, max(3, world.strikes)
    items = world.accounts((strikes + 1) * per_restart)
    back: list[float] = []

    def chaos(run: Told) -> None:
        for number in range(strikes):
            run.wait_for(number * per_restart + world.chance.randrange(1, per_restart // 2))
            stop(world, run, RESTARTS[number % len(RESTARTS)])
            assert not run.is_over, "the run was over before all restarts were done"
            world.server.start()
            back.append(time.monotonic())
            run.wait_for(run.settled + 1)

    run = told_under_chaos(world, slow, items, chaos)
    assert world.judge(items, run=run.run).counts.retries == 0
    for at in back:
        world.within(run.first_after(at), 5.0, "return after the server's")


@scenario("server down at start, in the middle, at the end", dose=3, soak=20, bound="waits, says so, burns no attempt")
def down(world: World) -> None:
    """8 s each time, 2 s in the suite; in the soak one of them is a minute."""
    items = world.accounts(100)
    places = [0, world.chance.randrange(10, len(items) - 10), len(items) - 2]
    longest = world.chance.choice(places) if world.is_soak else -1
    back: list[float] = []

    def chaos(run: Told) -> None:
        wait_until(lambda: run.is_open or run.is_over, 30.0, every_s=0.001)
        for place in places:
            run.wait_for(place)
            known = len(run.notices)
            stop(world, run, world.chance.choice(["immediate", "fast"]))
            assert not run.is_over, "the run was over before the server was down"
            length = 60.0 if place == longest else 8.0 if world.factor >= 1 else 2.0
            until = time.monotonic() + length
            wait_until(lambda: time.monotonic() > until or run.is_over, length + 1)  # noqa: B023
            assert not run.is_over, "the run did not wait for the server"
            said = run.notices[known:]
            if length > 5 or not known:  # what was said a moment ago is not said again for 5 s
                assert any(SAYS_SO in one for one in said), said
            world.server.start()
            back.append(time.monotonic())
            world.figures["worst time without a server"] = max(world.figures["worst time without a server"], round(length))

    run = told_under_chaos(world, slow_at_the_end, items, chaos)
    assert world.judge(items, run=run.run).counts.retries == 0
    for at in back[:-1]:
        world.within(run.first_after(at), 5.0, "return after the server's")


def slow_at_the_end(session: object, item: int, ctx: object) -> None:
    """So that the last items are seen before they are done."""
    slow(session, item, ctx)
    if item >= 94:
        time.sleep(0.1)  # work


@restarts.control
@down.control
def _(world: World) -> str:
    with NaivePool(world) as pool:
        pool.wait_for(5)
        world.server.stop("immediate")
        wait_until(lambda: pool.is_over, 30.0)
        world.server.start()
        return pool.outcome()


# ------------------------------------------------------------------------------------------ sessions are ended
END_ALL = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


def end_all_sessions(world: World) -> int:
    """The workers' and the owner's."""
    with administration(world) as execute:
        ended = int(execute(END_ALL).scalar_one())
    world.struck("sessions terminated", ended)
    return ended


@scenario(
    "all our sessions terminated every 0.3 s",
    dose=10,
    soak=200,
    bound="for 10 s; 0 failed",
    databases=("postgresql", "psycopg3"),
)
def terminated(world: World) -> None:
    """A dose is a second of it."""
    items = world.accounts(240 * world.strikes)

    def chaos(run: Watched) -> None:
        run.wait_for(1)
        until = time.monotonic() + world.strikes
        while time.monotonic() < until:
            assert not run.is_over, "the run was over too early"
            end_all_sessions(world)
            next_at = time.monotonic() + 0.3
            wait_until(lambda: run.is_over or time.monotonic() > next_at, 5.0)  # noqa: B023

    under_chaos(world, slow, items, chaos)
    assert world.figures["sessions terminated"] >= 4 * world.strikes
    assert world.judge(items).counts.retries == 0


def held_item(url: str, item: int) -> None:
    """An item whose transaction takes its 5 ms."""
    with engine_for(url).begin() as connection:
        connection.execute(text("UPDATE accounts SET n = n + 1 WHERE id = :item"), {"item": item})
        time.sleep(0.005)  # work
        connection.execute(text("INSERT INTO effects (item, worker, attempt) VALUES (:item, 0, 1)"), {"item": item})


@terminated.control
def _(world: World) -> str:
    with NaivePool(world, held_item) as pool, administration(world) as execute:
        pool.wait_for(1)
        while not pool.is_over:  # it is over in a fifth of a second, so every 0.3 s would be too seldom to hit an item twice
            execute(END_ALL)
        return pool.outcome()
