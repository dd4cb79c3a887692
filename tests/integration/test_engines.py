"""Engines: no connection crosses a process, whatever the task closes over and however workers are started.

"The program everybody writes first" makes an engine at the top of a script, uses it, and then forks. Here it runs as
written; the control shows what a plain fork makes of it.
"""

from __future__ import annotations

import functools
import importlib.util
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, inspect, select, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from batchrun import job, run_parallel
from batchrun.api import Place, start_job
from batchrun.database.engines import spec_of, worker_engine
from batchrun.database.urls import normalise
from batchrun.errors import ConfigError, DatabaseError, JobError
from batchrun.execution.packing import check_crossing
from batchrun.jobs import job_of
from batchrun.ledger.marks import MarksSpec
from batchrun.options import RunOptions
from batchrun.tasks import task_shape
from tests.support import oracle, scripts
from tests.support.databases import engine_for
from tests.support.oracle import Account, assert_exactly_once, verdict, work
from tests.support.waiting import wait_until

ITEMS = range(1, 21)


@pytest.fixture
def pg_url(kept_url: str) -> str:
    return kept_url


def run(task: Any, database: Any, items: range = ITEMS, **options: Any) -> Any:
    return run_parallel(task, items, database, **{"workers": 2, "progress": False, **options})


# ------------------------------------------------------------------------------------------ the program everybody writes first
FIRST = """
from sqlalchemy import create_engine, text
from batchrun import run_parallel
engine = create_engine({url!r}); used = engine.connect(); mine = used.execute(text({pid!r})).scalar()
write = "INSERT INTO effects (item, worker, attempt) SELECT n, {as_number}, 1 FROM accounts WHERE id = :i"
task = lambda session, item: session.execute(text(write), dict(i=item))
report = run_parallel(task, range(1, 101), engine, workers=2, progress=False, start_method={method!r})
print(report.done, mine == used.execute(text({pid!r})).scalar(), mine, used.execute(text("SELECT 42")).scalar(), flush=True)
"""


@pytest.mark.parametrize(
    ("database_url", "method"),
    [("postgresql", "fork"), ("postgresql", "forkserver"), ("postgresql", "spawn"), ("sqlite", "fork")],
    indirect=["database_url"],
)
def test_the_program_everybody_writes_first_gets_the_right_rows_and_keeps_its_connection(
    database_url: str, tmp_path: Path, method: str
) -> None:
    items = range(1, 101)
    oracle.create(database_url, items)
    with engine_for(database_url).begin() as connection:
        connection.execute(text("UPDATE accounts SET n = id"))  # the right row is told by its content
    url = engine_for(database_url).url.render_as_string(hide_password=False)
    pid = "SELECT 0" if database_url.startswith("sqlite") else "SELECT pg_backend_pid()"
    source = FIRST.format(url=url, pid=pid, as_number=pid.removeprefix("SELECT "), method=method)
    code, said, wrong = scripts.run(tmp_path, source)
    assert (code, wrong) == (0, "")
    done, is_same, mine, answer = said.split()
    assert (done, is_same, answer) == ("100", "True", "42")
    with engine_for(database_url).connect() as connection:
        rows = connection.execute(text("SELECT item, worker FROM effects")).all()
    assert sorted(row.item for row in rows) == list(items)
    if mine != "0":
        assert int(mine) not in {row.worker for row in rows}
        assert 1 <= len({row.worker for row in rows}) <= 2


def test_control_a_plain_fork_shares_the_parents_connection(pg_url: str, tmp_path: Path) -> None:
    source = f"""
    import os
    from sqlalchemy import create_engine, text
    engine = create_engine({engine_for(pg_url).url.render_as_string(hide_password=False)!r})
    with engine.connect() as used: mine = used.execute(text("SELECT pg_backend_pid()")).scalar()
    if (child := os.fork()) == 0:
        with engine.connect() as used: os._exit(used.execute(text("SELECT pg_backend_pid()")).scalar() == mine)
    print("shared" if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) else "apart")
    """
    assert scripts.run(tmp_path, source)[1] == "shared\n"


def test_workers_never_import_main(pg_url: str, tmp_path: Path) -> None:
    source = """
    import sys
    from pathlib import Path
    from batchrun import run_parallel
    with Path("imports").open("a") as file: file.write("x")
    def task(item): return [getattr(sys.modules["__main__"], name, None) for name in ("task", "run_parallel")]
    for method in ("fork", "forkserver", "spawn"):
        report = run_parallel(task, range(4), workers=1, progress=False, results=True, start_method=method)
        print(method, report.done, method == "fork" or report.results == [[None, None]] * 4)
    """
    code, said, wrong = scripts.run(tmp_path, source)
    assert (code, wrong) == (0, "")
    assert said.splitlines() == ["fork 4 True", "forkserver 4 True", "spawn 4 True"]
    assert (tmp_path / "imports").read_text() == "x"


# ------------------------------------------------------------------------------------------ what may not cross
def in_closure(forbidden: Any) -> Callable[..., Any]:
    handle = forbidden
    return lambda session, item: handle


def in_default(forbidden: Any) -> Callable[..., Any]:
    def task(session: Any, item: Any, *, handle: Any = forbidden) -> None: ...

    return task


def in_partial(forbidden: Any) -> Callable[..., Any]:
    def task(session: Any, item: Any, handle: Any) -> None: ...

    return functools.partial(task, handle=forbidden)


def in_bound_method(forbidden: Any) -> Callable[..., Any]:
    class Service:
        def __init__(self) -> None:
            self.handle = forbidden

        def task(self, session: Any, item: Any) -> None: ...

    return Service().task


def in_callable_object(forbidden: Any) -> Callable[..., Any]:
    class Service:
        def __init__(self) -> None:
            self.handle = forbidden

        def __call__(self, session: Any, item: Any) -> None: ...

    return Service()


def in_closure_of_a_closure(forbidden: Any) -> Callable[..., Any]:
    handle = forbidden

    def helper() -> Any:
        return handle

    return lambda session, item: helper()


def in_a_dict(forbidden: Any) -> Callable[..., Any]:
    settings = {"handle": [forbidden]}
    return lambda session, item: settings


def in_a_global_of_main(forbidden: Any) -> Callable[..., Any]:
    names: dict[str, Any] = {"__name__": "__main__", "handle": forbidden}
    exec("def task(session, item): return [handle for _ in range(1)]", names)  # noqa: S102  # as a script would define it
    found: Callable[..., Any] = names["task"]
    return found


PLACES: dict[Callable[[Any], Callable[..., Any]], str] = {
    in_closure: "handle", in_default: "handle", in_partial: "handle", in_bound_method: "handle", in_callable_object: "handle",
    in_closure_of_a_closure: "handle", in_a_dict: "an element of a collection", in_a_global_of_main: "handle",
}  # fmt: skip


@pytest.fixture
def handles(sqlite_url: str) -> Iterator[dict[str, Any]]:
    engine = create_engine(oracle.create(sqlite_url, ITEMS))
    with engine.connect() as connection, Session(engine) as session:
        factory = sessionmaker(engine)
        made = [engine, connection, session, factory, scoped_session(factory)]
        yield {type(one).__name__: one for one in made}
    engine.dispose()


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("kind", ["Engine", "Connection", "Session", "sessionmaker", "scoped_session"])
def test_a_task_that_carries_a_connection_is_refused_by_name_before_anything_starts(
    handles: dict[str, Any], sqlite_url: str, kind: str, place: Callable[[Any], Callable[..., Any]]
) -> None:
    with pytest.raises(JobError) as caught:
        run(place(handles[kind]), sqlite_url, name="refused")
    told = str(caught.value)
    assert repr(PLACES[place]) in told
    assert f"SQLAlchemy {kind}" in told
    assert ("database=" if kind == "Engine" else "session") in told.partition("process.")[2]  # the remedy
    assert not inspect(handles["Engine"]).has_table("batchrun_run")


def test_an_initializer_that_carries_a_connection_is_refused_too(handles: dict[str, Any], sqlite_url: str) -> None:
    engine = handles["Engine"]
    with pytest.raises(JobError, match=r"The initializer .* uses the variable 'engine'"):
        run(work, sqlite_url, initializer=lambda: engine)


def test_a_global_of_an_importable_module_does_not_cross_and_is_not_refused() -> None:
    """Its worker imports the module and makes one of its own; only what travels by value would be shared."""
    check_crossing(task_with_global)


GLOBAL_ENGINE = create_engine("sqlite:///never-opened.db")


def task_with_global(session: Session, item: int) -> str:
    return str(GLOBAL_ENGINE.url)


def test_a_mapped_class_of_main_is_refused(sqlite_url: str, tmp_path: Path) -> None:
    source = f"""
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
    from batchrun import run_parallel
    class Base(DeclarativeBase): pass
    class Thing(Base):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)
    def task(session, item): session.add(Thing(id=item))
    run_parallel(task, range(3), {sqlite_url!r}, progress=False, name="refused")
    """
    code, _, wrong = scripts.run(tmp_path, source)
    assert code == 1
    assert "JobError" in wrong
    assert "'Thing'" in wrong
    assert "Move the class to a module" in wrong


# ------------------------------------------------------------------------------------------ what may
def plain_partial(session: Session, item: int, *, by: int) -> None:
    for _ in range(by):
        work(session, item)


class Holder:
    """Its bound method is a task."""

    def __init__(self) -> None:
        self.attempt = 1

    def task(self, session: Session, item: int) -> None:
        work(session, item, self.attempt)


def tasks_of_all_kinds() -> dict[str, Callable[..., Any]]:
    attempt = 1

    def local(session: Session, item: int) -> None:
        work(session, item, attempt)

    def with_mapped_class(session: Session, item: int) -> None:
        account = session.get_one(Account, item)
        account.n += 1
        session.add(oracle.Effect(item=item, worker=0, attempt=attempt))

    return {
        "closure": local,
        "lambda": lambda session, item: work(session, item, attempt),
        "mapped class": with_mapped_class,
        "partial": functools.partial(plain_partial, by=1),
        "partial of a lambda": functools.partial(lambda by, session, item: work(session, item, by), 1),
        "bound method": Holder().task,
    }


@pytest.mark.parametrize("kind", tasks_of_all_kinds())
def test_functions_of_all_kinds_are_tasks(sqlite_url: str, kind: str) -> None:
    oracle.create(sqlite_url, ITEMS)
    report = run(tasks_of_all_kinds()[kind], sqlite_url, name="kinds", workers=1)
    assert report.done == len(ITEMS), report.failures
    assert_exactly_once(sqlite_url, "kinds", ITEMS)


# ------------------------------------------------------------------------------------------ pools
def backend(session: Session) -> Any:
    return session.connection().execute(text("SELECT pg_backend_pid()")).scalar()


def returns_backend(session: Session, item: int) -> Any:
    return backend(session)


def test_a_held_connection_serves_all_items_of_a_worker(pg_url: str) -> None:
    report = run(returns_backend, pg_url, workers=1, results=True)
    assert len(set(report.results)) == 1


@job(transaction="item")
def writes_backend(session: Session, item: int) -> None:
    """Write which backend served the item."""
    work(session, item)
    session.execute(text("UPDATE effects SET worker = pg_backend_pid() WHERE item = :item"), {"item": item})


@writes_backend.items
def numbers() -> range:
    return ITEMS


def test_null_pool_takes_a_connection_for_each_transaction(pg_url: str, tmp_path: Path) -> None:
    oracle.create(pg_url, ITEMS)
    known = job_of(writes_backend)
    assert known is not None
    report = start_job(known, {}, RunOptions(workers=1), Place(pg_url, tmp_path, pool="null"))
    assert report.done == len(ITEMS), report.failures
    assert_exactly_once(pg_url, report.run, ITEMS)
    with engine_for(pg_url).connect() as connection:
        assert len(connection.execute(select(oracle.Effect.worker).distinct()).all()) == len(ITEMS)


def test_null_pool_and_queue_pool_are_what_they_are_called(pg_url: str) -> None:
    queue = worker_engine(spec_of(pg_url), threads=3, application_name="x").engine
    assert isinstance(queue.pool, QueuePool)
    assert (queue.pool.size(), queue.pool._max_overflow) == (3, 0)
    assert isinstance(worker_engine(spec_of(pg_url, pool="null"), threads=3, application_name="x").engine.pool, NullPool)


def test_a_worker_has_exactly_as_many_connections_as_threads(pg_url: str) -> None:
    counted = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'batchrun:%'"

    def task(session: Session, item: int) -> Any:
        session.execute(text("SELECT pg_sleep(0.05)"))  # work
        return oracle.scalar(session.connection(), counted)

    report = run(task, pg_url, workers=1, threads=3, results=True)
    assert report.done == len(ITEMS), report.failures
    assert max(report.results) == 3


# ------------------------------------------------------------------------------------------ what the server sees
def test_the_server_sees_run_epoch_worker_and_job_and_looks_whether_the_client_lives(any_url: str) -> None:
    if any_url.startswith("sqlite"):  # there is no server; that its workers run is what remains to be seen
        assert run(lambda session, item: 1, any_url, items=range(2), name="seen").done == 2
        return
    oracle.create(any_url, ITEMS)
    shown = "SELECT current_setting('application_name') || '|' || current_setting('client_connection_check_interval')"

    def a_job_with_quite_a_long_name_that_does_not_fit_into_63_bytes_at_all(session: Session, item: int) -> None:
        session.execute(text(f"INSERT INTO labels (name) SELECT left({shown[7:]}, 40)"))
        assert oracle.scalar(session.connection(), shown) == sessions_name(session) + "|500ms"

    def sessions_name(session: Session) -> Any:
        query = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        return oracle.scalar(session.connection(), query)

    task = a_job_with_quite_a_long_name_that_does_not_fit_into_63_bytes_at_all
    report = run(task, any_url, items=range(1), name="seen", workers=1)
    assert report.done == 1, report.failures
    with engine_for(any_url).connect() as connection:
        name = str(oracle.scalar(connection, "SELECT name FROM labels"))
    assert name == f"batchrun:{report.run[:8]}:1:0:{task.__name__}"[:40]


@pytest.mark.parametrize("given", ["plain", "x" * 100, "é" * 60, "日本" * 30])
def test_the_application_name_is_cut_at_63_bytes_and_never_inside_a_character(pg_url: str, given: str) -> None:
    from batchrun.execution.work import Work

    run_id = "0123456789"
    named = Work(run_id, given, work, task_shape(work, has_session=True), RunOptions(), marks=MarksSpec(run_id, 7, None))
    engine = worker_engine(spec_of(pg_url), threads=1, application_name=named.application_name(12)).engine
    with engine.connect() as connection:
        seen = str(oracle.scalar(connection, "SHOW application_name"))
    engine.dispose()
    wanted = f"batchrun:01234567:7:12:{given}"
    if wanted.isascii():
        assert seen == wanted[:63]
    else:  # the server shows other characters escaped; what matters is that they were whole
        assert seen.startswith("batchrun:01234567:7:12:")
    cut = wanted.encode()[:63].decode(errors="ignore")
    assert 60 <= len(cut.encode()) <= 63 or wanted == cut


# ------------------------------------------------------------------------------------------ engines, factories, arguments
def test_the_arguments_of_the_users_engine_are_those_of_the_workers(pg_url: str) -> None:
    engine = create_engine(engine_for(pg_url).url, connect_args={"options": "-c work_mem=7MB"})
    report = run(lambda session, item: oracle.scalar(session.connection(), "SHOW work_mem"), engine, results=True)
    assert set(report.results) == {"7MB"}
    engine.dispose()


def test_a_factory_makes_the_engine_in_the_worker_listeners_included(database_url: str) -> None:
    oracle.create(database_url, ITEMS)
    target = engine_for(database_url).url

    def make() -> Engine:
        engine = create_engine(target)

        @event.listens_for(engine, "before_cursor_execute", retval=True)
        def marked(connection: Connection, cursor: Any, statement: str, *rest: Any) -> tuple[str, Any]:
            return statement.replace("/* here */ 1", "/* listener */ 2"), rest[0]

        return engine

    def task(session: Session, item: int) -> Any:
        work(session, item)
        return oracle.scalar(session.connection(), "SELECT /* here */ 1")

    report = run(task, make, results=True)
    assert report.done == len(ITEMS), report.failures
    assert set(report.results) == {2}
    assert verdict(database_url, ITEMS).is_exact


def test_a_factory_that_makes_no_engine_is_a_job_error() -> None:
    with pytest.raises(JobError, match="returned str, not an Engine"):
        run(work, lambda: "sqlite:///x.db")


def test_an_engine_with_a_creator_is_refused_with_the_factory_as_the_remedy(sqlite_url: str) -> None:
    import sqlite3

    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(":memory:"), poolclass=NullPool)
    with pytest.raises(ConfigError, match=r"in-memory|database=make_engine"):
        run(work, engine)
    made = create_engine(sqlite_url, creator=lambda: sqlite3.connect("x.db"))
    with pytest.raises(ConfigError, match="database=make_engine"):
        run(work, made)


MEMORY = ["sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true", "sqlite:///file:x?mode=memory&uri=true"]


@pytest.mark.parametrize("url", MEMORY)
def test_an_in_memory_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="in-memory SQLite"):
        run(work, url)


def test_an_engine_or_factory_of_an_in_memory_database_is_refused() -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with pytest.raises(ConfigError, match="in-memory SQLite"):
        run(work, engine)
    with pytest.raises((ConfigError, JobError), match="in-memory SQLite"):
        run(work, lambda: create_engine("sqlite://", poolclass=NullPool))


def test_anything_else_is_no_database() -> None:
    with pytest.raises(ConfigError, match="database is a int"):
        run(work, 5)


# ------------------------------------------------------------------------------------------ URLs and drivers
@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say which PostgreSQL drivers there are."""
    plain = importlib.util.find_spec

    def only(*names: str) -> None:
        def find(name: str, package: str | None = None) -> Any:
            return None if name in ("psycopg", "psycopg2") and name not in names else plain(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find)

    return only


@pytest.mark.parametrize(
    ("given", "drivers", "wanted"),
    [
        ("postgresql://u@h/d", ["psycopg2", "psycopg"], "postgresql+psycopg2"),
        ("postgres://u@h/d", ["psycopg2", "psycopg"], "postgresql+psycopg2"),
        ("postgres://u@h/d", ["psycopg"], "postgresql+psycopg"),
        ("postgresql://u@h/d", ["psycopg"], "postgresql+psycopg"),
        ("postgresql+psycopg://u@h/d", ["psycopg2", "psycopg"], "postgresql+psycopg"),
        ("postgres+psycopg2://u@h/d", ["psycopg2"], "postgresql+psycopg2"),
        ("sqlite:///x.db", [], "sqlite+pysqlite"),
    ],
)
def test_a_url_means_the_driver_that_is_installed_psycopg2_first(
    installed: Callable[..., None], given: str, drivers: list[str], wanted: str
) -> None:
    installed(*drivers)
    assert normalise(given).drivername == wanted


@pytest.mark.parametrize(
    ("given", "package"),
    [
        ("postgresql://u:pw@h/d", "psycopg2-binary"),
        ("postgresql+psycopg2://u:pw@h/d", "psycopg2-binary"),
        ("postgresql+psycopg://u:pw@h/d", r"'psycopg\[binary\]'"),
    ],
)
def test_a_driver_that_is_not_installed_is_named_with_its_package(
    installed: Callable[..., None], given: str, package: str
) -> None:
    installed()
    with pytest.raises(ConfigError, match=f"is not installed: pip install {package}") as caught:
        normalise(given)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("postgresql+asyncpg://u:pw@h/d", "'asyncpg' is not supported"),
        ("postgresql+pg8000://u:pw@h/d", "'pg8000' is not supported"),
        ("mysql://u:pw@h/d", "type 'mysql'"),
        ("sqlite+aiosqlite:///x.db", "'aiosqlite' is not supported"),
        ("no url, but s3cret", "cannot be read"),
        ("postgresql://u:pw@h:port/d", "cannot be read"),
    ],
)
def test_a_url_that_is_no_use_is_refused_without_showing_it(given: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        normalise(given)
    assert "pw" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_relative_file_is_relative_to_the_folder_it_was_named_in(tmp_path: Path) -> None:
    assert normalise("sqlite:///x.db", tmp_path).database == str(tmp_path / "x.db")
    assert normalise(f"sqlite:///{tmp_path}/y.db").database == str(tmp_path / "y.db")


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="Check that the folder exists"):
        run(work, f"sqlite:///{tmp_path}/nowhere/x.db")


# ------------------------------------------------------------------------------------------ inline
@pytest.mark.parametrize("options", [{}, {"transaction": "chunk"}, {"batched": True}, {"read_only": True}, {"name": "same"}])
def test_inline_gives_what_workers_give(database_url: str, options: dict[str, Any]) -> None:
    wanted: dict[str, Any] = {"results": True} if "name" not in options else {}

    def task(session: Session, given: Any) -> Any:
        many = given if isinstance(given, list) else [given]
        if 13 in many:
            raise ValueError("unlucky")
        if "read_only" not in options:
            for item in many:
                work(session, item)
        return [item * 2 for item in many] if isinstance(given, list) else given * 2

    seen = []
    for workers in (0, 2):
        Path(database_url.removeprefix("sqlite:///")).unlink(missing_ok=True)
        oracle.create(database_url, ITEMS)
        named = {**options, "name": f"same {workers}"} if "name" in options else options
        report = run(task, database_url, workers=workers, **named, **wanted)
        failures = [(one.item, one.error.type, one.error.message, one.attempts) for one in report.failures]
        effects = verdict(database_url, ITEMS).applied
        seen.append((report.status, report.done, report.failed, report.guarantee, report.results, failures, effects))
    assert operator.eq(*seen)
    assert seen[0][1:3] == (len(ITEMS) - 1, 1)


def test_no_session_of_ours_is_left_after_a_run(postgres: Any, pg_url: str) -> None:
    left = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'batchrun%'"
    for workers in (0, 2):
        run(returns_backend, pg_url, workers=workers, threads=2 if workers else 1)
        with engine_for(pg_url).connect() as connection:
            wait_until(lambda: oracle.scalar(connection, left) == 0, 5)
