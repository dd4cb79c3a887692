"""The gate: whatever a task does to its transaction, its work and the mark are committed together or not at all.

Each test is one row of the rules, on SQLite, psycopg2 and psycopg 3. Runs are inline (``workers=0``), because the gate
lives with the connection and not with the process; what kills a process is in test_crash_points.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from batchrun import Context, Report, Skip, run_parallel
from batchrun.database import gate as gate_module
from batchrun.database.engines import spec_of, worker_engine
from batchrun.database.statements import Effect as TextEffect
from batchrun.database.statements import effect_of
from batchrun.errors import AlreadyRunning, ConfigError
from batchrun.ledger.schema import tables
from tests.support import oracle
from tests.support.databases import engine_for
from tests.support.oracle import Account, Effect, Label, assert_exactly_once, work

ITEMS = range(1, 6)
BAD = 3
"""The item whose task misbehaves; the others show that the run goes on as if nothing had been."""


@pytest.fixture
def pg_url(kept_url: str) -> str:
    return kept_url


@pytest.fixture
def url(any_url: str) -> str:
    return oracle.create(any_url, ITEMS)


@pytest.fixture(params=["psycopg2", "psycopg3"])
def postgres_url(request: pytest.FixtureRequest) -> str:
    """For rules that only PostgreSQL needs."""
    found: str = request.getfixturevalue({"psycopg2": "pg_url", "psycopg3": "psycopg_url"}[request.param])
    return oracle.create(found, ITEMS)


def run(task: Callable[..., Any], database: Any, **options: Any) -> Report:
    """One durable run over ITEMS."""
    given = {"name": "gate", "workers": 0, "progress": False, "retries": 0, **options}
    return run_parallel(task, ITEMS, database, **given)


def failure(report: Report) -> str:
    """The type of the one failure, which must be BAD's."""
    assert [outcome.item for outcome in report.failures] == [BAD], report.failures
    error = report.failures[0].error
    assert error is not None
    return error.type.rpartition(".")[2]


def misbehaving(how: Callable[[Session, int], None]) -> Callable[[Session, int], None]:
    """A task that does the work, and for BAD what ``how`` does instead."""

    def task(session: Session, item: int) -> None:
        how(session, item) if item == BAD else work(session, item)

    return task


@contextlib.contextmanager
def without_gate() -> Iterator[None]:
    """The control: SQLAlchemy's own commit and rollback, so that a task's commit() is one."""
    plain = gate_module.Gate.do_commit

    def commit_at_once(self: gate_module.Gate) -> None:
        if self.active and self.is_open and not self.final:
            self.driver.send(self.raw, ("COMMIT",))
            self.driver.send(self.raw, ("BEGIN",))
        else:
            plain(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_module.Gate, "do_commit", commit_at_once)
        yield


# ------------------------------------------------------------------------------------------ commit and rollback
def commits_then_raises(session: Session, item: int) -> None:
    work(session, item)
    session.commit()
    work(session, item)
    raise ValueError("after the commit")


def test_nothing_stands_of_an_item_that_commits_works_on_and_raises(url: str) -> None:
    report = run(misbehaving(commits_then_raises), url)
    assert failure(report) == "ValueError"
    assert_exactly_once(url, "gate", ITEMS)
    assert BAD not in oracle.verdict(url, ITEMS).applied


def test_control_without_the_gate_the_first_half_of_such_an_item_stands(url: str) -> None:
    with without_gate():
        report = run(misbehaving(commits_then_raises), url)
    assert report.failed in (0, 1)
    assert BAD in oracle.verdict(url, ITEMS).applied


def test_a_task_that_commits_at_its_end_or_in_its_middle_is_done_once(url: str) -> None:
    def task(session: Session, item: int) -> None:
        session.execute(update(Account).where(Account.id == item).values(n=Account.n + 1))
        session.commit()
        session.add(Effect(item=item, worker=0, attempt=1))
        session.commit()
        session.commit()

    assert run(task, url).done == len(ITEMS)
    assert_exactly_once(url, "gate", ITEMS)


def test_rollback_then_work_then_commit_is_safe(url: str) -> None:
    with engine_for(url).begin() as connection:
        connection.execute(insert(Label).values(id=0, name="taken"))

    def task(session: Session, item: int) -> None:
        try:
            session.add(Label(id=item, name="taken"))
            session.commit() if item % 2 else session.flush()
        except IntegrityError:
            session.rollback()
            session.add(Label(id=item, name=f"free {item}"))
            work(session, item)
            session.commit()

    assert run(task, url).done == len(ITEMS)
    assert_exactly_once(url, "gate", ITEMS)
    with engine_for(url).connect() as connection:
        assert connection.execute(select(Label.id).order_by(Label.id)).scalars().all() == [0, *ITEMS]


def test_a_rollback_alone_leaves_an_item_that_is_done_without_any_effect(url: str) -> None:
    def task(session: Session, item: int) -> None:
        work(session, item)
        session.rollback()

    assert run(task, url).done == len(ITEMS)
    assert not oracle.verdict(url, ITEMS).applied


def test_a_rollback_after_a_commit_fails_the_item(url: str) -> None:
    def commits_then_rolls_back(session: Session, item: int) -> None:
        work(session, item)
        session.commit()
        work(session, item)
        session.rollback()

    report = run(misbehaving(commits_then_rolls_back), url)
    assert failure(report) == "SplitTransaction"
    assert "session.begin_nested()" in report.failures[0].error.message  # type: ignore[union-attr]
    assert_exactly_once(url, "gate", ITEMS)


def test_savepoints_undo_only_what_is_inside_them(url: str) -> None:
    def task(session: Session, item: int) -> None:
        work(session, item)
        with contextlib.suppress(ValueError), session.begin_nested():
            work(session, item)
            raise ValueError("only the savepoint goes")
        nested = session.begin_nested()
        work(session, item)
        nested.rollback()
        with session.begin_nested():
            session.add(Label(id=item, name=f"kept {item}"))

    assert run(task, url).done == len(ITEMS)
    assert_exactly_once(url, "gate", ITEMS)
    with engine_for(url).connect() as connection:
        assert connection.execute(select(Label.id).order_by(Label.id)).scalars().all() == list(ITEMS)


def test_a_savepoint_saves_the_item_from_a_statement_that_fails(url: str) -> None:
    def task(session: Session, item: int) -> None:
        work(session, item)
        with contextlib.suppress(IntegrityError), session.begin_nested():
            session.execute(insert(Account).values(id=item, n=100))

    assert run(task, url).done == len(ITEMS)
    assert_exactly_once(url, "gate", ITEMS)


def test_session_begin_as_a_block_works_because_the_session_comes_unbegun(url: str) -> None:
    def task(session: Session, item: int) -> None:
        with session.begin():
            work(session, item)

    assert run(task, url).done == len(ITEMS)
    assert_exactly_once(url, "gate", ITEMS)


def test_an_error_inside_session_begin_undoes_all_of_it(url: str) -> None:
    def raises_inside(session: Session, item: int) -> None:
        with session.begin():
            work(session, item)
            raise ValueError

    assert failure(run(misbehaving(raises_inside), url)) == "ValueError"
    assert_exactly_once(url, "gate", ITEMS)


def test_a_session_may_be_closed_inside_a_task(url: str) -> None:
    def task(session: Session, item: int) -> None:
        work(session, item)
        session.close() if item == BAD else session.commit()
        session.close()
        if item == BAD:  # what was not committed went with close(), as everywhere
            work(session, item)
            session.commit()
            session.close()

    assert run(task, url).done == len(ITEMS)
    assert_exactly_once(url, "gate", ITEMS)


def test_commit_and_rollback_on_the_connection_itself_are_no_way_around(url: str) -> None:
    def ends_the_connections_transaction(session: Session, item: int) -> None:
        work(session, item)
        session.connection().commit() if item % 2 else session.connection().rollback()
        if item == BAD:
            raise ValueError("after the connection's commit")

    report = run(ends_the_connections_transaction, url)
    assert report.failed == len(ITEMS)  # SQLAlchemy itself refuses to commit a Session whose connection has moved on
    assert_exactly_once(url, "gate", ITEMS)
    assert not oracle.verdict(url, ITEMS).applied


def test_a_second_session_on_the_same_connection_shares_the_items_transaction(url: str) -> None:
    def task(session: Session, item: int) -> None:
        factory = sessionmaker(session.connection())
        with factory.begin() as second:
            work(second, item)
        if item == BAD:
            raise ValueError

    assert failure(run(task, url)) == "ValueError"
    assert_exactly_once(url, "gate", ITEMS)


def test_skip_after_a_commit_leaves_nothing(url: str) -> None:
    def skips(session: Session, item: int) -> None:
        work(session, item)
        session.commit()
        raise Skip("changed its mind")

    report = run(misbehaving(skips), url)
    assert (report.done, report.skipped) == (len(ITEMS) - 1, 1)
    assert_exactly_once(url, "gate", ITEMS, skipped=[BAD])


# ------------------------------------------------------------------------------------------ swallowed SQL errors
def swallows(session: Session, item: int) -> None:
    work(session, item)
    with contextlib.suppress(Exception):
        session.execute(text("SELECT * FROM there_is_no_such_table"))


def swallows_on_the_raw_cursor(session: Session, item: int) -> None:
    work(session, item)
    raw: Any = session.connection().connection.dbapi_connection
    with contextlib.suppress(Exception), raw.cursor() as cursor:
        cursor.execute("SELECT * FROM there_is_no_such_table")


@pytest.mark.parametrize("how", [swallows, swallows_on_the_raw_cursor])
def test_a_swallowed_sql_error_is_failed_and_never_done_on_postgresql(
    postgres_url: str, how: Callable[[Session, int], None]
) -> None:
    report = run(misbehaving(how), postgres_url)
    assert failure(report) == "SwallowedError"
    assert_exactly_once(postgres_url, "gate", ITEMS)
    assert BAD not in oracle.verdict(postgres_url, ITEMS).applied


def test_control_a_swallowed_sql_error_is_a_success_that_lost_its_work_by_hand(postgres_url: str) -> None:
    with Session(engine_for(postgres_url)) as session:
        work(session, BAD)
        with contextlib.suppress(Exception):
            session.connection().exec_driver_sql("SELECT * FROM there_is_no_such_table")
        session.commit()  # PostgreSQL answers ROLLBACK, and nobody says so
    assert BAD in oracle.verdict(postgres_url, [BAD]).lost


def test_a_swallowed_sql_error_costs_nothing_on_sqlite(sqlite_url: str) -> None:
    oracle.create(sqlite_url, ITEMS)
    assert run(misbehaving(swallows), sqlite_url).done == len(ITEMS)
    assert_exactly_once(sqlite_url, "gate", ITEMS)


# ------------------------------------------------------------------------------------------ transaction control as text
CONTROL = ["COMMIT", "commit;", "BEGIN", "ROLLBACK", " /* a */ COMMIT", "SELECT 1; COMMIT", "END", "ROLLBACK WORK", "--\nCOMMIT"]


def test_transaction_control_as_text_is_refused_and_nothing_of_the_item_stands(any_url: str) -> None:
    items = range(len(CONTROL) + 1)
    oracle.create(any_url, items)

    def task(session: Session, item: int) -> None:
        work(session, item)
        if item < len(CONTROL):
            session.execute(text(CONTROL[item]))

    report = run_parallel(task, items, any_url, name="gate", workers=0, progress=False, retries=0)
    types = {outcome.item: outcome.error.type.rpartition(".")[2] for outcome in report.failures if outcome.error}
    assert types == dict.fromkeys(range(len(CONTROL)), "TransactionControl")
    assert_exactly_once(any_url, "gate", items)
    assert oracle.verdict(any_url, items).applied == {len(CONTROL)}


MORE_CONTROL = ["START TRANSACTION", "COMMIT AND CHAIN", "ABORT", "PREPARE TRANSACTION 'x'", "SELECT 1; ROLLBACK AND CHAIN"]


def test_transaction_control_as_text_is_refused_on_postgresql_and_nothing_of_the_item_stands(postgres_url: str) -> None:
    statements = dict(zip(ITEMS, MORE_CONTROL, strict=True))

    def task(session: Session, item: int) -> None:
        work(session, item)
        session.execute(text(statements[item]))

    report = run(task, postgres_url)
    assert {outcome.error.type.rpartition(".")[2] for outcome in report.failures if outcome.error} == {"TransactionControl"}
    assert report.failed == len(ITEMS)
    assert_exactly_once(postgres_url, "gate", ITEMS)
    assert not oracle.verdict(postgres_url, ITEMS).applied


def test_a_swallowed_refusal_leaves_the_item_whole(url: str) -> None:
    def task(session: Session, item: int) -> None:
        with contextlib.suppress(gate_module.TransactionControl):
            session.execute(text("COMMIT"))
        work(session, item)

    assert run(task, url).done == len(ITEMS)
    assert_exactly_once(url, "gate", ITEMS)


def test_rollback_to_savepoint_as_text_is_no_transaction_control(url: str) -> None:
    def task(session: Session, item: int) -> None:
        work(session, item)
        session.execute(text("SAVEPOINT mine"))
        work(session, item)
        session.execute(text("ROLLBACK TO SAVEPOINT mine"))
        session.execute(text("ROLLBACK TO mine"))
        session.execute(text("RELEASE SAVEPOINT mine"))

    assert run(task, url).done == len(ITEMS)
    assert_exactly_once(url, "gate", ITEMS)


BODIES = {
    1: "DO $$ BEGIN UPDATE accounts SET n = n + 0; END $$",
    2: "CREATE OR REPLACE FUNCTION plain() RETURNS int LANGUAGE plpgsql AS $body$ BEGIN PERFORM 1; RETURN 1; END; $body$",
    3: "CREATE OR REPLACE FUNCTION old() RETURNS int LANGUAGE sql AS 'SELECT 1; SELECT 2;'",
    4: "CREATE OR REPLACE FUNCTION standard() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END",
    5: "CREATE OR REPLACE PROCEDURE made() LANGUAGE plpgsql AS $$ BEGIN BEGIN NULL; END; COMMIT; END $$",
}


def test_a_do_block_or_the_body_of_a_function_is_no_transaction_control(postgres_url: str) -> None:
    def task(session: Session, item: int) -> None:
        session.connection().exec_driver_sql(BODIES[item])
        work(session, item)

    report = run(task, postgres_url)
    assert report.done == len(ITEMS), report.failures
    assert_exactly_once(postgres_url, "gate", ITEMS)


def test_a_trigger_with_a_body_is_no_transaction_control_on_sqlite(sqlite_url: str) -> None:
    oracle.create(sqlite_url, ITEMS)

    def task(session: Session, item: int) -> None:
        session.execute(
            text(f"CREATE TRIGGER t{item} AFTER INSERT ON labels BEGIN UPDATE accounts SET n = n; DELETE FROM labels; END")
        )
        work(session, item)

    assert run(task, sqlite_url).done == len(ITEMS)
    assert_exactly_once(sqlite_url, "gate", ITEMS)


@pytest.mark.parametrize(
    ("statement", "effect"),
    [
        ("SELECT 'COMMIT'", TextEffect.PLAIN),
        ('SELECT "commit" FROM t', TextEffect.PLAIN),
        ("INSERT INTO t VALUES ('x; COMMIT')", TextEffect.PLAIN),
        ("SELECT CASE WHEN a THEN b END", TextEffect.PLAIN),
        ("SET LOCAL work_mem = '1MB'", TextEffect.PLAIN),
        ("UPDATE t SET a = 1", TextEffect.PLAIN),
        ("SET work_mem = '1MB'", TextEffect.LEAVES),
        ("SELECT pg_advisory_lock(1)", TextEffect.LEAVES),
        ("SELECT pg_advisory_xact_lock(1)", TextEffect.PLAIN),
        ("CREATE TEMP TABLE x (a int)", TextEffect.LEAVES),
        ("SELECT 1; commit", TextEffect.CONTROL),
        ("/* a */ begin", TextEffect.CONTROL),
        (r"SELECT E'it\'s'; COMMIT; SELECT 'x'", TextEffect.CONTROL),
        (r"INSERT INTO t VALUES (E'\'; COMMIT; ')", TextEffect.PLAIN),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; COMMIT", TextEffect.CONTROL),
    ],
)
def test_what_a_text_does_is_judged_without_its_quoted_parts(statement: str, effect: TextEffect) -> None:
    assert effect_of(statement) is effect


# ------------------------------------------------------------------------------------------ past the session
def raw_of(session: Session) -> Any:
    """The driver's own connection."""
    return session.connection().connection.dbapi_connection


def commits_past_the_session(session: Session, item: int) -> None:
    """Each driver's own way; psycopg2's commit() does nothing in driver autocommit, so there it is a cursor's COMMIT."""
    work(session, item)
    raw = raw_of(session)
    if type(raw).__module__.startswith("psycopg2"):
        with raw.cursor() as cursor:
            cursor.execute("COMMIT")
    else:
        raw.commit()


def commits_past_the_session_and_raises(session: Session, item: int) -> None:
    commits_past_the_session(session, item)
    raise ValueError("after the driver's commit")


def commits_past_the_session_and_skips(session: Session, item: int) -> None:
    commits_past_the_session(session, item)
    raise Skip("after the driver's commit")


def commits_past_the_session_and_rolls_back(session: Session, item: int) -> None:
    commits_past_the_session(session, item)
    session.rollback()


def runs_a_script(session: Session, item: int) -> None:
    work(session, item)
    raw_of(session).executescript("UPDATE accounts SET n = n; DELETE FROM labels;")


PAST = {
    2: commits_past_the_session,
    4: commits_past_the_session_and_raises,
    6: commits_past_the_session_and_skips,
    8: commits_past_the_session_and_rolls_back,
}


def test_a_commit_by_the_driver_is_recorded_as_failed_in_part_and_the_rest_is_fine(any_url: str) -> None:
    items = range(10)
    oracle.create(any_url, items)
    past = {**PAST, 1: runs_a_script} if any_url.startswith("sqlite") else PAST

    def task(session: Session, item: int) -> None:
        past.get(item, work)(session, item)

    report = run_parallel(task, items, any_url, name="gate", workers=0, progress=False, retries=3)
    types = {one.item: one.error.type.rpartition(".")[2] for one in report.failures if one.error}
    assert types == dict.fromkeys(past, "PartialCommit")
    ledger = assert_exactly_once(any_url, "gate", items, partly=past)
    assert all("(partial)" in ledger.messages[item] for item in past)


@pytest.mark.parametrize("options", [{"transaction": "chunk"}, {"batched": True}], ids=["chunk", "batched"])
def test_a_commit_by_the_driver_inside_a_shared_transaction_fails_only_what_it_touched(url: str, options: dict[str, Any]) -> None:
    past = {BAD: commits_past_the_session, 23: commits_past_the_session_and_raises}
    items = range(1, 41)
    oracle.create(url, items)

    def task(session: Session, given: Any) -> None:
        for item in given if isinstance(given, list) else [given]:
            past.get(item, work)(session, item)
            if item == 30:
                raise ValueError("an item behind them fails as well")

    report = run_parallel(task, items, url, name="gate", workers=0, progress=False, retries=0, **options)
    ledger = oracle.books(url, "gate", items)
    partly = {item for item, message in ledger.messages.items() if "(partial)" in message}
    assert partly == set(past) if "transaction" in options else partly >= set(past)
    assert 30 in ledger.of("failed")
    assert_exactly_once(url, "gate", items, partly=partly)
    assert report.pending == 0


def test_a_driver_that_was_switched_out_of_autocommit_does_not_reach_the_next_item(postgres_url: str) -> None:
    def switches(session: Session, item: int) -> None:
        raw = raw_of(session)
        with raw.cursor() as cursor:
            cursor.execute("COMMIT")
        raw.autocommit = False
        work(session, item)

    run(misbehaving(switches), postgres_url)
    assert not oracle.verdict(postgres_url, ITEMS).doubled
    assert oracle.verdict(postgres_url, ITEMS).applied == set(ITEMS)


def test_what_a_raw_cursor_writes_is_committed_with_the_mark(url: str) -> None:
    def on_the_raw_cursor(session: Session, item: int) -> None:
        cursor = raw_of(session).cursor()
        cursor.execute(f"UPDATE accounts SET n = n + 1 WHERE id = {item}")
        cursor.execute(f"INSERT INTO effects (item, worker, attempt) VALUES ({item}, 0, 1)")
        cursor.close()
        if item == BAD:
            raise ValueError

    assert failure(run(on_the_raw_cursor, url)) == "ValueError"
    assert_exactly_once(url, "gate", ITEMS)


def test_copy_is_committed_with_the_mark(postgres_url: str) -> None:
    def copies(session: Session, item: int) -> None:
        session.execute(update(Account).where(Account.id == item).values(n=Account.n + 1))
        copy_in(raw_of(session), f"{item}\t0\t1\n")
        if item == BAD:
            raise ValueError

    assert failure(run(copies, postgres_url)) == "ValueError"
    assert_exactly_once(postgres_url, "gate", ITEMS)


def copy_in(raw: Any, rows: str) -> None:
    import io

    statement = "COPY effects (item, worker, attempt) FROM STDIN"
    with raw.cursor() as cursor:
        if hasattr(cursor, "copy_expert"):
            cursor.copy_expert(statement, io.StringIO(rows))
        else:
            with cursor.copy(statement) as copy:
                copy.write(rows)


# ------------------------------------------------------------------------------------------ what outlives a transaction
LEAVES = {
    "SET": "SET work_mem = '7MB'",
    "set_config": "SELECT set_config('work_mem', '7MB', false)",
    "search_path": "SET search_path = pg_catalog, public",
    "temp table": "CREATE TEMP TABLE left_behind (a int)",
    "advisory lock": "SELECT pg_advisory_lock(42)",
    "LISTEN": "LISTEN somebody",
}
TRACES = (
    "SELECT current_setting('work_mem') || current_setting('search_path')"
    " || (SELECT count(*) FROM pg_class WHERE relname = 'left_behind')"
    " || (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
    " || (SELECT count(*) FROM pg_listening_channels())"
)


def test_what_an_item_sets_for_the_session_does_not_reach_the_next(pg_url: str, tmp_path: Path) -> None:
    items = range(2 * len(LEAVES))
    oracle.create(pg_url, items)
    seen, statements = tmp_path / "seen", list(LEAVES.values())

    def task(session: Session, item: int) -> None:
        with seen.open("a") as file:
            print(oracle.scalar(session.connection(), TRACES), file=file)
        if item % 2 == 0:
            session.execute(text(statements[item // 2]))
        work(session, item)

    report = run_parallel(task, items, pg_url, name="gate", workers=0, progress=False)
    assert report.done == len(items), report.failures
    found = seen.read_text().splitlines()
    assert len(found) == len(items)
    assert len(set(found)) == 1
    assert_exactly_once(pg_url, "gate", items)


def test_control_a_connection_that_is_kept_hands_a_setting_on(pg_url: str) -> None:
    engine = create_engine(engine_for(pg_url).url, pool_size=1, max_overflow=0)
    with engine.begin() as connection:
        before = oracle.scalar(connection, TRACES)
        connection.execute(text(LEAVES["SET"]))
    with engine.begin() as connection:
        assert oracle.scalar(connection, TRACES) != before
    engine.dispose()


def test_set_local_keeps_the_connection(pg_url: str, tmp_path: Path) -> None:
    oracle.create(pg_url, ITEMS)
    seen = tmp_path / "seen"

    def task(session: Session, item: int) -> None:
        session.execute(text("SET LOCAL work_mem = '7MB'"))
        with seen.open("a") as file:
            print(oracle.scalar(session.connection(), "SELECT pg_backend_pid()"), file=file)
        work(session, item)

    assert run(task, pg_url).done == len(ITEMS)
    assert len(set(seen.read_text().splitlines())) == 1


def test_large_results_can_be_streamed(url: str) -> None:
    with engine_for(url).begin() as connection:
        connection.execute(insert(Label), [{"id": n, "name": str(n)} for n in range(500)])

    def task(session: Session, item: int) -> None:
        query = select(Label.id).order_by(Label.id)
        streamed = session.execute(query, execution_options={"stream_results": True, "yield_per": 50}).scalars()
        assert list(streamed) == list(range(500))
        by_entity = session.scalars(select(Label).order_by(Label.id).execution_options(yield_per=100))
        assert sum(label.id for label in by_entity) == sum(range(500))
        partly = session.execute(query, execution_options={"stream_results": True})
        assert partly.fetchone() == (0,)  # and the rest is never read
        work(session, item)

    report = run(task, url)
    assert report.done == len(ITEMS), report.failures
    assert_exactly_once(url, "gate", ITEMS)


# ------------------------------------------------------------------------------------------ isolation levels
@pytest.mark.parametrize(
    ("driver", "level", "how"),
    [
        ("psycopg2", "SERIALIZABLE", "create_engine"),
        ("psycopg2", "REPEATABLE READ", "execution_options"),
        ("psycopg2", "REPEATABLE READ", "factory"),
        ("psycopg", "REPEATABLE READ", "create_engine"),
        ("psycopg", "SERIALIZABLE", "factory"),
    ],
)
def test_begin_carries_the_isolation_level_of_the_users_engine(
    pg_url: str, tmp_path: Path, driver: str, level: str, how: str
) -> None:
    seen = tmp_path / "seen"
    target = engine_for(oracle.create(pg_url, ITEMS)).url.set(drivername=f"postgresql+{driver}")

    def make() -> Engine:
        if how == "execution_options":
            return create_engine(target).execution_options(isolation_level=level)
        return create_engine(target, isolation_level=level)

    def task(session: Session, item: int) -> None:
        with seen.open("a") as file:
            print(oracle.scalar(session.connection(), "SHOW transaction_isolation"), file=file)
        work(session, item)

    report = run(task, make if how == "factory" else make())
    assert report.done == len(ITEMS), report.failures
    assert set(seen.read_text().splitlines()) == {level.lower()}
    assert_exactly_once(pg_url, "gate", ITEMS)


@pytest.mark.parametrize("how", ["create_engine", "execution_options"])
def test_autocommit_as_the_engines_level_is_refused(url: str, how: str) -> None:
    target = engine_for(url).url
    plain = create_engine(target) if how == "execution_options" else create_engine(target, isolation_level="AUTOCOMMIT")
    engine = plain.execution_options(isolation_level="AUTOCOMMIT") if how == "execution_options" else plain
    with pytest.raises(ConfigError, match="AUTOCOMMIT"):
        run(oracle.task, engine)
    engine.dispose()
    assert not oracle.verdict(url, ITEMS).applied


def test_autocommit_asked_for_inside_a_task_does_not_split_the_item(url: str) -> None:
    def asks(session: Session, item: int) -> None:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        work(session, item)
        raise ValueError("after what would have been committed at once")

    report = run(misbehaving(asks), url)
    assert report.failed == 1
    ledger = oracle.books(url, "gate", ITEMS)
    partly = [BAD] if "(partial)" in ledger.messages[BAD] else []
    assert_exactly_once(url, "gate", ITEMS, partly=partly)


# ------------------------------------------------------------------------------------------ constraints at COMMIT
def test_a_deferred_constraint_violated_at_commit_fails_the_item_and_takes_no_mark(url: str) -> None:
    def violates(session: Session, item: int) -> None:
        session.add(Label(id=item, name="of nobody", account=12345))
        work(session, item)
        session.commit()

    def make() -> Engine:
        engine = create_engine(engine_for(url).url)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", lambda raw, record: raw.execute("PRAGMA foreign_keys = ON"))
        return engine

    database = make if url.startswith("sqlite") else url
    report = run(misbehaving(violates), database)
    assert failure(report) in ("IntegrityError", "ForeignKeyViolation")
    assert_exactly_once(url, "gate", ITEMS)
    assert BAD not in oracle.verdict(url, ITEMS).applied


# ------------------------------------------------------------------------------------------ the mark matches no row
def ledger_says(url: str, statement: str) -> None:
    with engine_for(url).begin() as connection:
        connection.execute(text(statement))


def taken_over(url: str) -> None:
    """What a new owner does first."""
    with engine_for(url).begin() as connection:
        connection.execute(text("UPDATE batchrun_run SET epoch = epoch + 1"))
        connection.execute(text("UPDATE batchrun_chunk SET epoch = epoch + 1"))


def test_an_item_whose_run_was_taken_over_writes_nothing(url: str) -> None:
    def task(session: Session, item: int) -> None:
        work(session, item)
        if item == BAD:
            session.rollback()  # only now the row is free for another owner
            taken_over(url)
            work(session, item)

    with pytest.raises(AlreadyRunning, match="taken over"):
        run(task, url)
    seen = oracle.verdict(url, ITEMS)
    assert seen.applied < set(ITEMS)
    assert BAD not in seen.applied
    assert not seen.doubled
    with engine_for(url).connect() as connection:
        known = tables()
        assert connection.execute(select(known.run.c.status)).scalar() == "running"  # the new owner's business
        assert connection.execute(select(known.item.c.pos)).all() == []


def test_except_exception_does_not_swallow_that_the_mark_was_missed(url: str) -> None:
    def task(session: Session, item: int) -> None:
        work(session, item)
        if item == BAD:
            session.rollback()
            taken_over(url)
            try:
                work(session, item)
            except Exception:  # as careless as tasks are
                pytest.fail("the task saw it")

    with pytest.raises(AlreadyRunning):
        run(task, url)
    assert BAD not in oracle.verdict(url, ITEMS).applied


def test_control_without_the_epoch_in_the_mark_an_old_owner_writes_on(url: str) -> None:
    from batchrun.ledger.marks import Marks

    def of_items(self: Marks, no: int, pos: int, count: int = 1) -> str:
        return f"UPDATE {self._chunk} SET pos = pos + {count} WHERE run = '{self.spec.run}' AND no = {no} AND pos = {pos}"

    def task(session: Session, item: int) -> None:
        work(session, item)
        if item == BAD:
            session.rollback()
            taken_over(url)
            work(session, item)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(AlreadyRunning):
        patch.setattr(Marks, "of_items", of_items)
        run(task, url)
    assert BAD in oracle.verdict(url, ITEMS).applied


def settled_by_another(url: str, item: int) -> None:
    """What a zombie of the same epoch does: the work and the mark, committed."""
    with engine_for(url).begin() as connection:
        connection.execute(text("UPDATE batchrun_chunk SET pos = pos + 1 WHERE pos < size"))
        with Session(connection) as session:
            work(session, item)
            session.flush()
            session.expunge_all()
            session.commit()


def test_an_item_that_somebody_settled_meanwhile_is_done_once(url: str) -> None:
    def task(session: Session, item: int) -> None:
        work(session, item)
        if item == BAD:
            session.rollback()
            settled_by_another(url, item)
            work(session, item)

    report = run_parallel(task, [BAD], url, name="gate", workers=0, progress=False)
    assert report.done == 1
    assert_exactly_once(url, "gate", [BAD])


def test_zero_rows_after_a_zombie_that_rolled_back_means_again_and_not_done(url: str) -> None:
    missed: list[int] = []
    plain = gate_module.Gate.open

    def first_finds_no_row(self: gate_module.Gate) -> None:
        plain(self)
        if self._mark and not missed:
            missed.append(1)
            self.roll_back()
            raise gate_module.MarkMissed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_module.Gate, "open", first_finds_no_row)
        assert run(oracle.task, url).done == len(ITEMS)
    assert missed
    assert_exactly_once(url, "gate", ITEMS)


def test_a_mark_waits_for_a_zombies_open_transaction_and_then_learns_the_truth(postgres_url: str, tmp_path: Path) -> None:
    """Two connections of one epoch: the second attempt's BEGIN + mark blocks until the first has ended."""
    from threading import Thread

    from batchrun.ledger.marks import Marks, MarksSpec, Spot
    from tests.support.waiting import wait_until

    run(oracle.task, postgres_url, name="other")
    run_id = oracle.run_id(postgres_url, "other")
    ledger_says = engine_for(postgres_url)
    with ledger_says.begin() as connection:
        connection.execute(text("UPDATE batchrun_chunk SET pos = 0, open = true"))
    engine = worker_engine(spec_of(postgres_url), threads=2, application_name="batchrun:test")
    marks = Marks(MarksSpec(run_id, 1, None), tables(), engine.engine.dialect)
    mark = marks.of(Spot(0, 0))
    zombie, second = engine.engine.connect(), engine.engine.connect()
    gates = [engine.gates[id(one.connection.dbapi_connection)] for one in (zombie, second)]
    for gate in gates:
        gate.arm(["BEGIN"], mark)
    gates[0].open()
    outcome: list[str] = []

    def attempt() -> None:
        try:
            gates[1].open()
            outcome.append("mine")
        except gate_module.MarkMissed:
            outcome.append("missed")

    thread = Thread(target=attempt)
    thread.start()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%batchrun_chunk%'"
    with ledger_says.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
        wait_until(lambda: watcher.execute(text(waiting)).scalar())
    assert not outcome
    gates[0].final = True
    gates[0].do_commit()
    thread.join()
    assert outcome == ["missed"]
    for gate, one in zip(gates, (zombie, second), strict=True):
        gate.disarm()
        one.close()
    engine.engine.dispose()


# --------------------------------------------------------------------------------------- a connection that is gone
def loses_its_connection(session: Session, item: int) -> None:
    """As careful code does elsewhere: what was lost is done again, on the connection that SQLAlchemy makes anew."""
    try:
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    except DBAPIError:
        session.rollback()
    work(session, item)


@pytest.mark.parametrize("transaction", ["item", "chunk"])
def test_work_on_a_connection_made_anew_inside_an_item_is_refused_and_done_once(postgres_url: str, transaction: str) -> None:
    tries: list[int] = []

    def task(session: Session, item: int) -> None:
        tries.append(item)
        (loses_its_connection if tries.count(item) == 1 else work)(session, item)

    report = run(task, postgres_url, transaction=transaction)
    assert (report.done, report.failed) == (len(ITEMS), 0)
    assert_exactly_once(postgres_url, "gate", ITEMS)


@pytest.mark.parametrize("transaction", ["item", "chunk"])
@pytest.mark.parametrize("goes_on", [False, True])
def test_an_item_that_invalidates_its_own_connection_is_failed_and_nothing_of_it_stands(
    url: str, transaction: str, goes_on: bool
) -> None:
    def how(session: Session, item: int) -> None:
        work(session, item)
        session.flush()
        session.invalidate()
        if goes_on:
            work(session, item)

    report = run(misbehaving(how), url, transaction=transaction)
    assert failure(report) == "ConnectionGone"
    assert_exactly_once(url, "gate", ITEMS)
    assert BAD not in oracle.verdict(url, ITEMS).applied


# ------------------------------------------------------------------------------------------ pinned to SQLAlchemy
def noted(name: str, plain: Callable[[Any], None], calls: list[str]) -> Callable[[Any], None]:
    def called(connection: Any) -> None:
        calls.append(name)
        plain(connection)

    return called


def test_this_sqlalchemy_calls_the_dialects_own_begin_commit_and_rollback(url: str) -> None:
    """The gate replaces three methods of one dialect *instance*. If SQLAlchemy ever went another way, all would be void."""
    engine = worker_engine(spec_of(url), threads=1, application_name="batchrun:pin")
    calls: list[str] = []
    dialect: Any = engine.engine.dialect
    for name in ("do_begin", "do_commit", "do_rollback"):
        setattr(dialect, name, noted(name, getattr(dialect, name), calls))

    with engine.engine.connect() as connection:
        del calls[:]
        connection.execute(text("SELECT 1"))
        connection.commit()
        assert calls == ["do_begin", "do_commit"]
        del calls[:]
        connection.execute(text("SELECT 1"))
        connection.rollback()
        assert calls == ["do_begin", "do_rollback"]
        for ending in ("commit", "rollback", "close"):
            del calls[:]
            session = Session(connection)
            session.execute(text("SELECT 1"))
            getattr(session, ending)()
            session.close()
            assert calls == ["do_begin", "do_commit" if ending == "commit" else "do_rollback"], ending
    engine.engine.dispose()


WAYS: dict[str, Callable[[Connection], object]] = {
    "do_execute": lambda connection: connection.execute(text("COMMIT")),
    "do_execute, by the driver's text": lambda connection: connection.exec_driver_sql("COMMIT"),
    "do_execute_no_params": lambda connection: connection.execute(text("COMMIT").execution_options(no_parameters=True)),
    "do_executemany": lambda connection: connection.exec_driver_sql("COMMIT", [{"a": 1}, {"a": 2}]),
}


@pytest.mark.parametrize("way", WAYS)
def test_this_sqlalchemy_sends_every_statement_through_the_dialects_own_methods(postgres_url: str, way: str) -> None:
    """Where COMMIT as a text is looked for: three more methods of the dialect's instance."""

    def how(session: Session, item: int) -> None:
        WAYS[way](session.connection())

    report = run(misbehaving(how), postgres_url)
    assert failure(report) == "TransactionControl"
    assert_exactly_once(postgres_url, "gate", ITEMS)


def test_another_engine_of_the_same_process_has_no_gate(url: str) -> None:
    """What the gate does is in the dialect's instance; the class and every other engine stay as they are."""
    gated = worker_engine(spec_of(url), threads=1, application_name="batchrun:pin")
    other = engine_for(url)
    assert "do_commit" in vars(gated.engine.dialect)
    assert "do_commit" not in vars(other.dialect)
    with other.begin() as connection:
        connection.execute(insert(Effect).values(item=1, worker=os.getpid(), attempt=1))
    assert oracle.applied(url) == 1
    gated.engine.dispose()


def test_the_worker_holds_one_transaction_open_and_commits_it_once_an_item(postgres_url: str) -> None:
    """BEGIN + mark, work, COMMIT: the server sees one transaction id for all of a task's commits."""
    seen: list[object] = []

    def task(session: Session, item: int, ctx: Context) -> None:
        for _ in range(3):
            work_id = oracle.scalar(session.connection(), "SELECT pg_current_xact_id()::text")
            seen.append(work_id)
            session.commit()
        work(session, item, ctx.attempt)

    assert run(task, postgres_url).done == len(ITEMS)
    assert len(seen) == 3 * len(ITEMS)
    assert len(set(seen)) == len(ITEMS)
