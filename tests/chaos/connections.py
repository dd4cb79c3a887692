"""Others take the connections that a server has to give."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg2
from sqlalchemy import make_url

from batchrun.errors import ConfigError
from tests.chaos.controls import NaivePool, kill
from tests.chaos.scenario import scenario
from tests.chaos.world import Told, World, administration, slow, told_under_chaos
from tests.support import oracle
from tests.support.waiting import wait_until

LIMIT = 8
ALL = 1000
FULL = ("too many clients already", "remaining connection slots are reserved", "too many connections for role")


class Others:
    """Another program, which takes connections and gives all of them back."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._held = ExitStack()

    def take(self, most: int = ALL) -> None:
        """As many as there are, up to so many."""
        with contextlib.suppress(psycopg2.OperationalError):
            for _ in range(most):
                self._held.callback(psycopg2.connect(self._url, application_name="another program").close)

    def took_all(self) -> bool:
        """Take what has become free since; True."""
        self.take()
        return True

    def let_go(self) -> None:
        self._held.close()

    def __enter__(self) -> Others:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()


@contextlib.contextmanager
def limited_role(world: World) -> Iterator[str]:
    """A role that may have a few connections and owns the world's database; its URL."""
    url = make_url(world.url)
    name = f"app_{url.database}"
    with administration(world) as execute:
        execute(f"CREATE ROLE {name} LOGIN CONNECTION LIMIT {LIMIT}")
        execute(f"ALTER DATABASE {url.database} OWNER TO {name}")
    try:
        yield url.set(username=name).render_as_string(hide_password=False)
    finally:
        with administration(world) as execute:
            execute(f"REASSIGN OWNED BY {name} TO {url.username}")
            execute(f"DROP ROLE {name}")


def refuses_with_the_sum(world: World, url: str) -> None:
    """More workers than there are connections: nothing is started, and the numbers are said."""
    said = ""
    with Others(url) as others:
        others.take(3)
        try:
            told_under_chaos(world, slow, range(10), lambda run: None, database=url, workers=4)
        except ConfigError as error:
            said = str(error)
    assert "4 workers x 1 thread + 2 of the parent = 6" in said
    assert f"{LIMIT} - 3 in use by others = 5" in said
    world.said(said)
    world.struck("exhaustions at start")


@scenario(
    "max_connections exhausted by others, at start and in the middle",
    dose=2,
    soak=20,
    bound="the numbers in the message; waits or shrinks",
)
def exhausted(world: World) -> None:
    """At start by the limit of a role, in the middle by all that the server has."""
    with limited_role(world) as url, Others(url) as before, Others(world.url) as middle:
        items = range(200)
        oracle.create(url, items)
        refuses_with_the_sum(world, url)
        before.take()
        middle.take(80)
        back: list[float] = []

        def chaos(run: Told) -> None:
            wait_until(lambda: run.is_over or is_full(run, 0), 20.0)
            assert not run.is_over
            assert not run.settled
            before.let_go()
            world.struck("exhaustions at start")
            run.wait_for(20)
            middle.take()
            known = len(run.notices)
            for pid in run.workers():
                assert kill(pid)
            wait_until(lambda: middle.took_all() and (run.is_over or is_full(run, known)), 20.0, every_s=0.001)
            assert not run.is_over, "the run did not wait for a connection"
            world.struck("exhaustions in the middle")
            middle.let_go()
            back.append(time.monotonic())

        run = told_under_chaos(world, slow, items, chaos, database=url)
        ledger = world.judge(items, run=run.run)
        assert ledger.counts.retries == 0
        world.within(run.first_after(back[0]), 5.0, "return after a connection is free")


def is_full(run: Told, known: int) -> bool:
    """Has it said so, beyond its first notices?"""
    return any(full in one for one in run.notices[known:] for full in FULL)


@exhausted.control
def _(world: World) -> str:
    with Others(world.url) as others:
        pool = NaivePool(world)
        others.take(90)
        with pool:
            pool.wait_for(5)
            wait_until(lambda: others.took_all() and pool.is_over, 30.0)
            others.let_go()
            return pool.outcome()
