"""``batchrun.testing``: what the tests of a user's jobs stand on, and the fixtures of pytest."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from batchrun import Context, Retry, Skip, iter_parallel, job, keyset, lines, run_parallel
from batchrun.errors import ConfigError, JobError
from batchrun.runs import RunStatus
from batchrun.testing import interrupt_after, run_job
from tests.support.databases import engine_for

ROOT = Path(__file__).parents[2]


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]


@job(transaction="chunk")
def add_interest(session: Session, account: int, *, percent: int = 10) -> int:
    """Add interest to every account."""
    found = session.get_one(Account, account)
    found.balance += found.balance * percent // 100
    return found.balance


@add_interest.items
def accounts(session: Session, above: int = 0):  # type: ignore[no-untyped-def]
    session.add(Account(id=99, balance=1000))  # what the items function does belongs to the test's transaction, too
    session.commit()
    return keyset(select(Account.id).where(Account.id > above))


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Three accounts, committed."""
    made = engine_for(database_url)
    Base.metadata.create_all(made)
    with Session(made) as session:
        session.add_all([Account(id=n, balance=100 * n) for n in (1, 2, 3)])
        session.commit()
    yield made
    made.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as made:
        yield made


def balances(engine: Engine) -> dict[int, int]:
    with engine.connect() as connection:
        return {row.id: row.balance for row in connection.execute(text("SELECT id, balance FROM accounts ORDER BY id"))}


UNCHANGED = {1: 100, 2: 200, 3: 300}


# ------------------------------------------------------------------------------------------------------- run_job
def test_a_job_runs_inside_the_callers_transaction_and_a_rollback_undoes_all_of_it(session: Session, engine: Engine) -> None:
    own = Account(id=4, balance=400)
    session.add(own)  # not even flushed
    report = run_job(add_interest, session=session, params={"percent": "20", "above": 1})
    assert (report.status, report.planned, report.done, report.failed) == (RunStatus.DONE, 4, 4, 0)
    assert report.results == [240, 360, 480, 1200]
    assert own.balance == 480  # the test's objects are read anew
    session.rollback()
    assert balances(engine) == UNCHANGED


def test_a_caller_may_commit_it_as_well(session: Session, engine: Engine) -> None:
    run_job(add_interest, session=session, items=[1])
    session.commit()
    assert balances(engine) == {1: 110, 2: 200, 3: 300}


def test_it_joins_a_session_that_is_itself_joined_to_a_transaction(engine: Engine) -> None:
    with engine.connect() as connection:
        outer = connection.begin()
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            run_job(add_interest, session=session)
            session.commit()
            assert session.get_one(Account, 3).balance == 330
        outer.rollback()
    assert balances(engine) == UNCHANGED


@job(retries=2)
def troubled(session: Session, number: int, ctx: Context) -> str:
    session.execute(text("UPDATE accounts SET balance = balance + 1 WHERE id = :id"), {"id": number})
    if number == 1:
        raise Skip("not wanted")
    if number == 2:
        raise ValueError("two is broken")
    if ctx.attempt < 3 and number == 3:
        raise Retry("not yet")
    return f"{ctx.job} {ctx.key} {ctx.attempt}"


def test_items_are_skipped_failed_and_tried_again_each_rolled_back_alone(session: Session) -> None:
    report = run_job(troubled, session=session, items=[1, 2, 3])
    assert (report.skipped, report.failed, report.done, report.retries) == (1, 1, 1, 2)
    assert report.results == [None, None, "troubled testing:2 3"]
    (failure,) = report.failures
    assert failure.error is not None
    assert (failure.item, failure.error.type, failure.error.message) == (2, "ValueError", "two is broken")
    assert not report.ok
    assert [session.get_one(Account, n).balance for n in (1, 2, 3)] == [100, 200, 301]


@job(batched=True)
def in_lists(session: Session, numbers: list[int]) -> list[int]:
    session.execute(text("UPDATE accounts SET balance = 0 WHERE id IN (1, 2, 3)"))
    if 2 in numbers:
        raise ValueError("two is broken")
    return [number * 10 for number in numbers]


def test_a_list_that_fails_is_halved_until_the_guilty_item_is_known(session: Session) -> None:
    report = run_job(in_lists, session=session, items=[1, 2, 3])
    assert (report.done, report.failed, report.results) == (2, 1, [10, None, 30])
    assert [failure.item for failure in report.failures] == [2]


@job
def commits_then_rolls_back(session: Session, number: int) -> None:
    session.execute(text("UPDATE accounts SET balance = 0"))
    session.commit()
    session.rollback()


@job
def sends_commit(session: Session, number: int) -> None:
    session.execute(text("UPDATE accounts SET balance = 0"))
    session.execute(text("COMMIT"))


@job(read_only=True)
def writes_although_it_may_not(session: Session, number: int) -> None:
    session.execute(text("UPDATE accounts SET balance = 0"))


@pytest.mark.parametrize(
    ("task", "error"),
    [
        (commits_then_rolls_back, "batchrun.database.gate.SplitTransaction"),
        (sends_commit, "batchrun.database.gate.TransactionControl"),
        (writes_although_it_may_not, ""),
    ],
    ids=["split", "control", "read-only"],
)
def test_what_a_run_refuses_fails_here_as_well(task: object, error: str, session: Session, engine: Engine) -> None:
    report = run_job(task, session=session, items=[1, 2])  # type: ignore[arg-type]
    assert report.failed == 2
    assert report.failures[0].error is not None
    assert error in report.failures[0].error.type
    assert session.get_one(Account, 1).balance == 100
    session.get_one(Account, 1).balance = 5  # its transaction is whole, and takes writes
    session.flush()
    session.rollback()
    assert balances(engine) == UNCHANGED


STARTED: list[str] = []


@job(transaction="none", limit=2)
def say(line: str, ctx: Context, *, loud: bool = False) -> str:
    return f"{ctx.state} {line.upper() if loud else line}"


@say.initializer
def voice() -> Iterator[str]:
    STARTED.append("began")
    yield "says"
    STARTED.append("ended")


@say.items
def lines_of(name: str = "said.txt"):  # type: ignore[no-untyped-def]
    return lines(name)


def test_a_job_without_a_session_runs_too_with_its_initializer_limit_and_folder(tmp_path: Path) -> None:
    (tmp_path / "said.txt").write_text("one\ntwo\nthree\n")
    report = run_job(say, params={"loud": True}, folder=tmp_path)
    assert report.results == ["says ONE", "says TWO"]
    assert STARTED == ["began", "ended"]


def test_what_cannot_run_is_refused(session: Session, engine: Engine) -> None:
    with pytest.raises(ConfigError, match="There are no items: pass items="):
        run_job(troubled, session=session)
    with pytest.raises(JobError, match="takes a session, but there is none"):
        run_job(troubled, items=[1])
    with pytest.raises(ConfigError, match="did you mean 'percent'"):
        run_job(add_interest, session=session, params={"percentage": 1})
    careless = Session(engine.execution_options(isolation_level="AUTOCOMMIT"))
    with careless, pytest.raises(ConfigError, match="the session is in AUTOCOMMIT, so nothing could be undone"):
        run_job(add_interest, session=careless)


# ----------------------------------------------------------------------------------------------- interrupt_after
def insert(session: Session, item: int) -> None:
    session.add(Account(id=1000 + item, balance=0))


def test_a_run_is_interrupted_after_so_many_items_and_goes_on_there(engine: Engine, database_url: str) -> None:
    workers = 2 if engine.dialect.name == "sqlite" else 0

    def call() -> object:
        report = run_parallel(insert, range(60), database_url, name="test", workers=workers, progress=False)
        return report.status, report.done, report.pending

    with interrupt_after(25):
        assert call() == (RunStatus.INTERRUPTED, 25, 0)
        assert call() == (RunStatus.INTERRUPTED, 50, 0)
        assert call() == (RunStatus.DONE, 60, 0)
    assert len(balances(engine)) == 63


def test_outside_the_block_and_with_fewer_items_nothing_is_interrupted(database_url: str) -> None:
    with interrupt_after(10):
        assert run_parallel(abs, range(9), workers=0, progress=False).done == 9
        assert [outcome.value for outcome in iter_parallel(abs, range(-30, 0), workers=0, progress=False)] == list(
            range(30, 20, -1)
        )
    assert run_parallel(abs, range(30), workers=0, progress=False).done == 30
    with pytest.raises(ValueError, match="0 is not a number of items"), interrupt_after(0):
        pass


# ------------------------------------------------------------------------------------------------------- fixtures
TEST_OF_A_USER = """
from sqlalchemy import create_engine, text
from batchrun import job

@job
def put(session, item: int):
    session.execute(text("INSERT INTO things VALUES (:item)"), {"item": item})

def test_in_the_session(run_job, batchrun_session):
    batchrun_session.execute(text("CREATE TABLE things (id INTEGER)"))
    batchrun_session.commit()
    assert run_job(put, items=range(3)).done == 3
    assert batchrun_session.scalar(text("SELECT count(*) FROM things")) == 3

def test_nothing_of_it_is_left(batchrun_db):
    engine = create_engine(batchrun_db)
    with engine.connect() as connection:
        tables = "information_schema.tables WHERE table_name" if "postgresql" in batchrun_db else "sqlite_master WHERE name"
        assert connection.scalar(text(f"SELECT count(*) FROM {tables} = 'things'")) == 0
    engine.dispose()
"""


def test_the_fixtures_give_a_session_that_is_rolled_back(tmp_path: Path, pg_url: str) -> None:
    (tmp_path / "test_things.py").write_text(TEST_OF_A_USER)
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "batchrun.pytest_plugin"]
    done = subprocess.run([*pytest_here, "--batchrun-db", pg_url], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_pytest_finds_the_fixtures_by_itself_where_batchrun_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"batchrun.pytest_plugin": "batchrun.pytest_plugin"}


def test_neither_batchrun_nor_its_testing_imports_pytest_and_the_plugin_imports_little() -> None:
    for program in (
        "import batchrun.testing, sys; assert 'pytest' not in sys.modules",
        "import batchrun.pytest_plugin, sys; assert 'sqlalchemy' not in sys.modules",
    ):
        assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
