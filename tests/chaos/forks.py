"""An engine that its parent has used, and workers that are forked from it: nobody reads another's answers.

Each check selects a random number and looks whether that comes back, in the workers and in threads of the parent, all
over one engine at module level, as the program has it that everybody writes first.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, make_url, text

from batchrun import run_parallel
from tests.chaos.scenario import scenario
from tests.chaos.world import World, by_driver
from tests.support.databases import engine_for
from tests.support.pgbouncer import PgBouncer

CHECKS = 100_000
"""At dose 1, over all combinations."""

A_BATCH = 50
METHODS = ("fork", "forkserver", "spawn")
ENGINES: dict[str, Engine] = {}
"""By URL. In a worker that was forked the parent's are here as well."""

ASK = text("SELECT CAST(:number AS int)")


def engine_of(url: str) -> Engine:
    if url not in ENGINES:
        ENGINES[url] = create_engine(engine_for(url).url, pool_size=3)
    return ENGINES[url]


def wrong_rows(connection: Connection, checks: int) -> int:
    """How many of so many answers were somebody else's."""
    asked = [random.randrange(1_000_000_000) for _ in range(checks)]
    return sum(connection.execute(ASK, {"number": number}).scalar_one() != number for number in asked)


def compare(session: Any, item: int, url: str) -> int:
    """A task: checks by its session, and by the engine it finds at module level."""
    wrong = wrong_rows(session.connection(), A_BATCH // 2)
    with engine_of(url).connect() as connection:
        return wrong + wrong_rows(connection, A_BATCH // 2)


class Compare:
    """The task with its URL: workers import this module, which knows nothing of this run."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, session: Any, item: int) -> int:
        return compare(session, item, self.url)


@contextlib.contextmanager
def threads_that_compare(engine: Engine) -> Iterator[list[int]]:
    """Two threads of the parent, which check for as long as the block runs; what they found, a number for each batch."""
    found: list[int] = []
    errors: list[BaseException] = []
    enough = threading.Event()

    def check() -> None:
        try:
            while not enough.is_set():
                with engine.connect() as connection:
                    found.append(wrong_rows(connection, A_BATCH))
                enough.wait(0.05)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=check) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        enough.set()
        for thread in threads:
            thread.join(30)
    assert not errors, errors


def play(world: World, url: str, method: str, checks: int) -> None:
    """One combination of a start method and a driver, with or without TLS."""
    engine = engine_of(url)
    pid = text("SELECT pg_backend_pid()")
    with engine.connect() as used:
        mine = used.execute(pid).scalar_one()
        with threads_that_compare(engine) as found:
            report = run_parallel(
                Compare(url), range(checks // A_BATCH), engine, workers=2, start_method=method, results=True, progress=False
            )
        assert report.ok, report.failures
        assert used.execute(pid).scalar_one() == mine, "the parent has another connection than before"
    engine.dispose()
    del ENGINES[url]
    wrong = sum(report.results or ()) + sum(found)
    assert wrong == 0, f"{wrong} wrong rows with {method}"
    world.struck("checks", A_BATCH * (len(found) + report.done))
    world.struck("runs over a used engine")


@scenario(
    "fork guard: an engine used in the parent, fork, forkserver and spawn",
    dose=3,
    bound="0 wrong rows in 100,000 checks; the parent's connection still works",
    databases=("postgresql", "psycopg3"),
)
def forked(world: World) -> None:
    """Each of the start methods once; the dose is the checks. With TLS, see below."""
    guard(world, world.url)
    world.judge_leftovers()


def guard(world: World, url: str) -> None:
    checks = round(CHECKS * world.factor / 12)
    for method in METHODS:
        play(world, url, method, checks)


@scenario(
    "fork guard: the same over TLS",
    dose=3,
    bound="0 wrong rows in 100,000 checks; the parent's connection still works",
    databases=("postgresql", "psycopg3"),
    needs="pgbouncer",
)
def forked_over_tls(world: World) -> None:
    """The wheel's PostgreSQL is built without TLS, so pgbouncer speaks it, in session mode."""
    with over_tls(world) as url:
        guard(world, url)
    world.judge_leftovers()


@contextlib.contextmanager
def over_tls(world: World) -> Iterator[str]:
    """A URL that leads to the world's database over TLS, with a certificate of its own making."""
    key, certificate = world.folder / "tls.key", world.folder / "tls.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    name = make_url(world.url).database or ""
    made = PgBouncer(world.server.url(), "session", 20, tls=(key, certificate))
    try:
        made.start(name)
        url = make_url(by_driver(world, made.url(name))).update_query_dict({"sslmode": "require"})
        yield url.render_as_string(hide_password=False)
    finally:
        made.close()


# ------------------------------------------------------------------------------------------ the controls
def checks_in_a_child(url: str, found: Any) -> None:
    """What a forked child does that has no guard: it goes on with its parent's engine. Sends wrong rows, errors."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # SQLAlchemy logs each of the errors
    wrong = errors = 0
    for _ in range(200):
        try:
            with ENGINES[url].connect() as connection:
                wrong += wrong_rows(connection, 5)
        except Exception:
            errors += 1
    found.send((wrong, errors))
    os._exit(0)


def unguarded(url: str) -> str:
    """Plain forks over an engine at module level that has a connection open."""
    with engine_of(url).connect() as connection:
        connection.execute(ASK, {"number": 1})
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    children = [context.Process(target=checks_in_a_child, args=(url, theirs)) for _ in range(4)]
    for child in children:
        child.start()
    hung = 0
    for child in children:
        child.join(3.0)
        if child.is_alive():
            hung += 1
            child.kill()
            child.join()
    wrong = errors = 0
    while ours.poll():
        one_wrong, one_errors = ours.recv()
        wrong, errors = wrong + one_wrong, errors + one_errors
    with contextlib.suppress(Exception):
        engine_of(url).dispose()
    del ENGINES[url]
    assert wrong or errors or hung, "the control survived: the scenario proves nothing"
    return f"reads {wrong} wrong rows, meets {errors} errors, {hung} of 4 processes hang"


@forked.control
def _(world: World) -> str:
    return unguarded(world.url)


@forked_over_tls.control
def _(world: World) -> str:
    with over_tls(world) as url:
        return unguarded(url)
