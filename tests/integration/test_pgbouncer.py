"""Behind a real pgbouncer: every promise holds in transaction mode, and nothing of ours reaches the pooler's other clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from batchrun import Context, run_parallel
from batchrun.api import Place, start_job
from batchrun.database.budget import limits_of
from batchrun.database.drivers import driver_named
from batchrun.database.engines import control_engine, source_engine, spec_of, worker_engine
from batchrun.database.pooler import NOTICE, is_pooled
from batchrun.events import Event, Notice
from batchrun.jobs import Job
from batchrun.ledger import schema
from batchrun.ledger.owner import Owner
from batchrun.options import RunOptions, with_options
from tests.support import crashes, oracle, scripts
from tests.support.databases import Clones
from tests.support.pgbouncer import PgBouncer

Bouncer = Callable[..., PgBouncer]
ITEMS = range(40)
DRIVERS = pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
SHOWN = "SELECT current_setting('work_mem'), current_setting('default_transaction_read_only'), to_regclass('left_behind')"


@contextmanager
def client(url: str, **options: Any) -> Iterator[Any]:
    """Another program, in autocommit: a cursor. It tells the server no name."""
    connection = psycopg2.connect(url.replace("+psycopg2", "").replace("+psycopg", ""), **options)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def answer(cursor: Any, statement: str) -> Any:
    cursor.execute(statement)
    return cursor.fetchone()


# ------------------------------------------------------------------------------------------ noticed
@DRIVERS
def test_a_pooler_is_noticed_in_either_mode_and_only_there(pg_url: str, pg_database: str, bouncer: Bouncer, driver: str) -> None:
    direct = pg_url.replace("postgresql", f"postgresql+{driver}", 1)
    through = [bouncer(mode).url(pg_database, driver) for mode in ("transaction", "session")]
    seen: list[tuple[bool, Any]] = []
    for url in (direct, *through):
        for make in (source_engine, control_engine):
            engine = make(spec_of(url), application_name="batchrun-test")
            with engine.connect() as connection:
                raw: Any = connection.connection.dbapi_connection
                seen.append((is_pooled(connection), getattr(raw, "prepare_threshold", None)))
            assert (limits_of(engine, "run00000", threads=1) is None) is is_pooled_engine(engine)
            engine.dispose()
    prepares = 5 if driver == "psycopg" else None
    assert seen == [(False, prepares)] * 2 + [(True, None)] * 4


def is_pooled_engine(engine: Engine) -> bool:
    with engine.connect() as connection:
        return is_pooled(connection)


# ------------------------------------------------------------------------------------------ a run through it
@DRIVERS
def test_a_run_whose_worker_is_killed_is_exact_in_transaction_mode(
    pg_url: str, pg_database: str, bouncer: Bouncer, tmp_path: Path, driver: str
) -> None:
    oracle.create(pg_url, ITEMS)
    told: list[Event] = []
    report = start_job(
        Job("crashing", crashes.Crashing("after a flush", 7, tmp_path), items=lambda: ITEMS),
        {},
        with_options(RunOptions(), {"workers": 2, "start_method": "fork"}),
        Place(bouncer(size=3).url(pg_database, driver), tmp_path),
        observers=(told.append,),
        captures_output=False,
    )
    assert report.done == len(ITEMS)
    assert crashes.noted(tmp_path, "tries") == 2
    oracle.assert_exactly_once(pg_url, report.run, ITEMS)
    notices = [event.text for event in told if isinstance(event, Notice)]
    assert notices.count(NOTICE) == 1


def test_a_run_whose_parent_is_killed_goes_on(pg_url: str, pg_database: str, bouncer: Bouncer, tmp_path: Path) -> None:
    oracle.create(pg_url, ITEMS)
    url = bouncer(size=4).url(pg_database)
    given = f"crashes.slow, {len(ITEMS)}, {url!r}, 'after dispatch', transaction='item', start_method='fork'"
    code, _, _ = scripts.run(tmp_path, f"from tests.support import crashes\ncrashes.carry_out({given})")
    assert code == -9
    crashes.carry_out(crashes.slow, len(ITEMS), url, start_method="fork")
    oracle.assert_exactly_once(pg_url, "crash", ITEMS)


def test_a_run_in_session_mode_is_exact(pg_url: str, pg_database: str, bouncer: Bouncer) -> None:
    oracle.create(pg_url, ITEMS)
    url = bouncer("session", size=8).url(pg_database)
    run_parallel(oracle.batch, ITEMS, url, name="batches", batched=True, workers=1, start_method="fork", progress=False)
    oracle.assert_exactly_once(pg_url, "batches", ITEMS)


# ------------------------------------------------------------------------------------------ nothing reaches the next client
def leaves_things(session: Session, item: int, ctx: Context) -> None:
    """What outlives a transaction: a setting, a temporary table, a lock, a cursor; then an error in one item."""
    session.execute(text("SET work_mem = '7MB'"))
    session.execute(text("CREATE TEMPORARY TABLE left_behind (a int)"))
    session.execute(text("SELECT pg_advisory_lock(4711)"))
    oracle.work(session, item, ctx.attempt)
    if item == 3:
        raise ValueError


def streams(session: Session, item: int, ctx: Context) -> None:
    """Reads with a cursor on the server and leaves it open."""
    rows = session.execute(text("SELECT generate_series(1, 1000)"), execution_options={"yield_per": 10})
    assert next(iter(rows)) == (1,)
    oracle.work(session, item, ctx.attempt)


@pytest.mark.parametrize(
    ("driver", "task"),
    [("psycopg2", leaves_things), ("psycopg", leaves_things), ("psycopg2", streams)],  # psycopg 3's cursors end with COMMIT
)
def test_what_a_task_leaves_is_cleared_before_the_session_serves_another(
    pg_url: str, pg_database: str, bouncer: Bouncer, driver: str, task: Any
) -> None:
    oracle.create(pg_url, range(6))
    through = bouncer(size=1).url(pg_database, driver)
    report = run_parallel(task, range(6), through, name="leaves", workers=0, progress=False)
    assert (report.done, report.failed) == ((5, 1) if task is leaves_things else (6, 0))
    with client(through) as cursor:
        assert answer(cursor, SHOWN) == ("4MB", "off", None)
        assert answer(cursor, "SELECT count(*) FROM pg_cursors") == (0,)
        assert answer(cursor, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == (0,)
    oracle.assert_exactly_once(pg_url, "leaves", range(6))


def reads(session: Session, item: int) -> int:
    return int(session.execute(text("SELECT :item + 1"), {"item": item}).scalar_one())


def writes(session: Session, item: int, ctx: Context) -> None:
    oracle.work(session, item)


@DRIVERS
def test_reading_only_refuses_writes_and_leaves_the_session_as_it_was(
    pg_url: str, pg_database: str, bouncer: Bouncer, driver: str
) -> None:
    oracle.create(pg_url, range(3))
    through = bouncer(size=1).url(pg_database, driver)
    options: dict[str, Any] = {"read_only": True, "workers": 0, "progress": False}
    assert run_parallel(reads, range(3), through, results=True, **options).results == [1, 2, 3]
    assert run_parallel(reads, range(3), through, name="reads", **options).done == 3
    report = run_parallel(writes, range(3), through, **options)
    assert report.failed == 3
    assert "read-only transaction" in (report.failures[0].error.message if report.failures[0].error else "")
    with client(through) as cursor:
        assert answer(cursor, SHOWN) == ("4MB", "off", None)
        assert answer(cursor, "SHOW client_connection_check_interval") == ("0",)


def test_control_what_a_direct_connection_sets_reaches_the_poolers_next_client(pg_database: str, bouncer: Bouncer) -> None:
    through = bouncer(size=1).url(pg_database)
    plain = psycopg2.connect(through.replace("+psycopg2", ""))
    driver_named("psycopg2").prepare(plain, read_only=True, wait_s=0)
    with client(through) as cursor:
        assert answer(cursor, SHOWN)[1] == "on"
        assert answer(cursor, "SHOW client_connection_check_interval") != ("0",)
    plain.close()


def test_workers_prepare_nothing_behind_a_pooler(pg_database: str, bouncer: Bouncer) -> None:
    through = bouncer(size=1).url(pg_database, "psycopg")
    made = worker_engine(spec_of(through), threads=1, application_name="batchrun-test")
    with made.engine.connect() as connection:
        for item in range(8):
            connection.execute(text("SELECT CAST(:item AS integer)"), {"item": item})
        assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() == 0
    made.engine.dispose()


# ------------------------------------------------------------------------------------------ whose session is it?
@contextmanager
def owner_through(url: str) -> Iterator[Owner]:
    """An owner of run ``abcdefgh`` that reaches the ledger through the pooler."""
    engine = control_engine(spec_of(url), application_name="batchrun-owner:abcdefgh:test")
    yield Owner(engine, schema.ensure(engine, None), "abcdefgh")
    engine.dispose()


NAME = "batchrun:abcdefgh:1:0:test"


def used_by(url: str, name: str) -> None:
    """A worker of that name had the pooler's session, and is gone."""
    with client(url, application_name=name) as cursor:
        answer(cursor, "SELECT 1")


def test_a_session_that_merely_bears_our_name_is_left_alone(pg_database: str, bouncer: Bouncer, clones: Clones) -> None:
    through = bouncer(size=2).url(pg_database)
    with owner_through(through) as owner, client(through) as another:
        used_by(through, NAME)
        answer(another, "BEGIN; CREATE TABLE precious (a int); SELECT current_setting('application_name')")
        assert owner.end_sessions_of(0) == 0
        owner.epoch = 2
        assert owner.end_older_sessions() == 0
        another.execute("COMMIT")
        with client(clones.server.url(pg_database)) as cursor:
            assert answer(cursor, "SELECT to_regclass('precious')") == ("precious",)


def test_control_by_its_name_alone_another_programs_session_would_be_ended(
    pg_database: str, bouncer: Bouncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = bouncer(size=2).url(pg_database)
    monkeypatch.setattr(Owner, "_holds_a_mark", lambda self: "true")
    with owner_through(through) as owner, client(through) as another:
        used_by(through, NAME)
        assert answer(another, "BEGIN; SELECT current_setting('application_name')") == (NAME,)
        assert owner.end_sessions_of(0) == 1
        with pytest.raises(psycopg2.OperationalError):
            another.execute("COMMIT")


def test_a_session_that_holds_a_mark_is_ended(pg_database: str, bouncer: Bouncer) -> None:
    through = bouncer(size=2).url(pg_database)
    with owner_through(through) as owner, client(through, application_name=NAME) as worker:
        worker.execute("BEGIN; UPDATE batchrun_chunk SET pos = pos + 1 WHERE run = 'abcdefgh'")
        assert owner.end_sessions_of(1) == 0
        assert owner.end_sessions_of(0) == 1
        with pytest.raises(psycopg2.OperationalError):
            worker.execute("COMMIT")


def test_control_a_driver_that_prepares_breaks_on_the_next_clients_session(pg_database: str, bouncer: Bouncer) -> None:
    through = bouncer(size=1).url(pg_database).replace("+psycopg2", "")
    with psycopg.connect(through, autocommit=True) as first, psycopg.connect(through, autocommit=True) as second:
        for item in range(8):
            first.execute("SELECT %s::int", (item,))
        with client(through) as cursor:
            (name,) = answer(cursor, "SELECT name FROM pg_prepared_statements")
        if name.startswith("PGBOUNCER"):
            return  # from 1.21 on it can be told to keep its clients' statements apart
        second.prepare_threshold = 0
        with pytest.raises(psycopg.errors.DuplicatePreparedStatement):
            second.execute("SELECT %s::int", (1,))
