"""The database goes away, takes no writes, is full or out of connections: the run waits, says so, burns no attempt."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

import batchrun.api
from batchrun import Context, Report, keyset, run_parallel
from batchrun.database.urls import normalise
from batchrun.errors import ConfigError, DatabaseError
from batchrun.events import Event, Notice
from batchrun.execution import link
from batchrun.ledger.owner import Owner
from tests.postgres import Server
from tests.support import oracle
from tests.support.databases import Clones, engine_for
from tests.support.oracle import Account, Effect, applied, assert_exactly_once
from tests.support.proxy import CuttingProxy
from tests.support.standby import Standby, make_synchronous
from tests.support.waiting import wait_until

BACK_S = 5.0
"""Within so many seconds of the server's return the next item is through."""


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the run tells people."""
    told: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, Notice):
            told.append(event.text)

    monkeypatch.setattr(batchrun.api, "_bar", lambda progress: observe)
    return told


class Running(threading.Thread):
    """A run in a thread, so that the test can do things to its server meanwhile."""

    def __init__(self, task: Any, items: Any, url: str, **options: Any) -> None:
        super().__init__(daemon=True)
        given = {"name": "away", "workers": 2, "start_method": "fork", **options}
        self._call: Callable[[], Report] = lambda: run_parallel(task, items, url, **given)
        self._report: Report | None = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._report = self._call()
        except BaseException as error:
            self._error = error

    def report(self, timeout_s: float = 60.0) -> Report:
        """Wait for its end."""
        self.join(timeout_s)
        assert not self.is_alive(), "the run does not end"
        if self._error is not None:
            raise self._error
        assert self._report is not None
        return self._report


def slowly(session: Session, item: int, ctx: Context) -> None:
    """The plain task, a few milliseconds long."""
    oracle.work(session, item, ctx.attempt)
    time.sleep(0.005)  # work


def slow_batch(session: Session, items: list[int], ctx: Context) -> None:
    for item in items:
        slowly(session, item, ctx)


def is_further(url: str, count: int) -> bool:
    with contextlib.suppress(OperationalError):
        return applied(url) > count
    return False


def assert_unbilled(report: Report, url: str, items: range, notices: list[str]) -> None:
    """Everything done at the first attempt; one line about the wait, one about its end."""
    assert (report.done, report.failed, report.retries) == (len(items), 0, 0), report.failures
    assert_exactly_once(url, "away", items)
    with engine_for(url).connect() as connection:
        assert set(connection.execute(select(Effect.attempt)).scalars()) == {1}
    waits = [line for line in notices if "waiting for it" in line]
    backs = [line for line in notices if "is back after" in line]
    assert 1 <= len(waits) <= 2, f"one line every five seconds: {notices}"
    assert len(backs) == 1, notices


MODES: dict[str, tuple[Any, dict[str, Any]]] = {
    "item": (slowly, {}),
    "chunk": (slowly, {"transaction": "chunk"}),
    "batched": (slow_batch, {"batched": True}),
}


@pytest.mark.parametrize(
    ("mode", "how", "driver"),
    [
        ("chunk", "immediate", "psycopg2"),
        ("batched", "fast", "psycopg"),
    ],
)
def test_a_restart_under_load_is_waited_for(
    own_postgres: Server, pg_url: str, notices: list[str], mode: str, how: str, driver: str
) -> None:
    items = range(400)
    url = pg_url.replace("postgresql://", f"postgresql+{driver}://")
    oracle.create(url, items)
    task, options = MODES[mode]
    running = Running(task, keyset(select(Account.id)), url, **options)
    wait_until(lambda: is_further(url, 40), 30)
    own_postgres.stop(how)
    wait_until(lambda: any("waiting for it" in line for line in notices), 10, what=lambda: f"{notices}")
    own_postgres.start()
    back, seen = time.monotonic(), applied(url)
    wait_until(lambda: is_further(url, seen), BACK_S, what="an item is through after the server's return")
    print(f"went on {time.monotonic() - back:.2f} s after the return")
    assert_unbilled(running.report(), url, items, notices)


def test_a_smart_shutdown_lets_the_run_end_first(own_postgres: Server, pg_url: str) -> None:
    items = range(100)
    oracle.create(pg_url, items)
    running = Running(slowly, items, pg_url)
    wait_until(lambda: is_further(pg_url, 10), 30)
    own_postgres.stop("smart")
    report = running.report()
    own_postgres.start()
    assert (report.done, report.retries) == (100, 0)
    assert_exactly_once(pg_url, "away", items)


def test_control_a_pool_by_hand_loses_what_a_restart_interrupts(own_postgres: Server, pg_url: str) -> None:
    oracle.create(pg_url, range(2))
    own_postgres.stop("immediate")
    with pytest.raises(OperationalError):
        oracle.naive_item(pg_url, 0)
    own_postgres.start()


def test_down_before_the_first_item(own_postgres: Server, pg_url: str, notices: list[str]) -> None:
    items, is_open, is_down = range(20), threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        is_open.set()
        is_down.wait(30)
        yield from items

    oracle.create(pg_url, items)
    running = Running(oracle.task, source(), pg_url)
    assert is_open.wait(30)
    own_postgres.stop("immediate")
    is_down.set()
    wait_until(lambda: any("waiting for it" in line for line in notices), 10)
    own_postgres.start()
    assert_unbilled(running.report(), pg_url, items, notices)


def test_down_when_the_end_is_to_be_recorded(
    own_postgres: Server, pg_url: str, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    items, at_end, is_down, finish = range(20), threading.Event(), threading.Event(), Owner.finish

    def held(self: Owner, *arguments: Any) -> None:
        at_end.set()
        is_down.wait(30)
        finish(self, *arguments)

    monkeypatch.setattr(Owner, "finish", held)
    oracle.create(pg_url, items)
    running = Running(oracle.task, items, pg_url)
    assert at_end.wait(30)
    own_postgres.stop("immediate")
    is_down.set()
    wait_until(lambda: any("waiting for it" in line for line in notices), 10)
    own_postgres.start()
    assert_unbilled(running.report(), pg_url, items, notices)


# ------------------------------------------------------------------------------------------------- read-only
@contextlib.contextmanager
def read_only(clones: Clones) -> Iterator[None]:
    """Every new transaction of the server's refuses writes, as a demoted primary's would."""
    clones.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    clones.execute("SELECT pg_reload_conf()")
    wait_until(lambda: clones.execute("SHOW default_transaction_read_only") == [("on",)])
    try:
        yield
    finally:
        reset(clones)


def reset(clones: Clones) -> None:
    connection: Any = psycopg2.connect(clones.server.url(), options="-c default_transaction_read_only=off")
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("ALTER SYSTEM RESET default_transaction_read_only")
        cursor.execute("SELECT pg_reload_conf()")
    wait_until(lambda: clones.execute("SHOW default_transaction_read_only") == [("off",)])


@pytest.mark.parametrize("name", ["away", None])
def test_a_server_that_takes_no_writes_for_a_while_is_waited_for(
    clones: Clones, psycopg_url: str, notices: list[str], name: str | None
) -> None:
    items = range(150)
    oracle.create(psycopg_url, items)
    running = Running(slowly, items, psycopg_url, name=name)
    wait_until(lambda: is_further(psycopg_url, 20), 30)
    with read_only(clones):
        wait_until(lambda: any("read-only" in line or "no writes" in line for line in notices), 10, what=lambda: f"{notices}")
    if name:
        assert_unbilled(running.report(), psycopg_url, items, notices)
    else:
        report = running.report()
        assert (report.done, report.retries) == (150, 0)
        assert applied(psycopg_url) == 150


def test_a_run_on_a_read_only_server_is_refused_before_any_item(clones: Clones, pg_url: str) -> None:
    oracle.create(pg_url, range(2))
    with read_only(clones), pytest.raises(DatabaseError, match=r"read-only, so the run cannot be recorded.*target_session_attrs"):
        run_parallel(oracle.task, range(2), pg_url, name="away", workers=0)
    assert applied(pg_url) == 0


def test_a_task_that_makes_its_own_transaction_read_only_fails_and_the_run_ends(pg_url: str) -> None:
    oracle.create(pg_url, range(2))

    def task(session: Session, item: int) -> None:
        if item:
            session.execute(text("SET TRANSACTION READ ONLY"))
        oracle.work(session, item)

    report = run_parallel(task, range(2), pg_url, name="away", workers=0)
    assert (report.done, report.failed, report.failures[0].error.sqlstate) == (1, 1, "25006")  # type: ignore[union-attr]


def test_a_failover_to_a_synchronous_standby_loses_nothing(notices: list[str]) -> None:
    items = range(300)
    with Server() as primary, contextlib.closing(Standby(primary)) as standby:
        standby.start()
        make_synchronous(primary)
        hosts = f"host=127.0.0.1:{primary.port}&host=127.0.0.1:{standby.port}&target_session_attrs=read-write"
        url = f"postgresql+psycopg://postgres@/postgres?{hosts}"
        oracle.create(primary.url(), items)
        running = Running(slowly, items, url)
        wait_until(lambda: is_further(primary.url(), 40), 30)
        primary.kill()
        standby.promote()
        back, seen = time.monotonic(), applied(standby.url())
        wait_until(lambda: is_further(standby.url(), seen), BACK_S)
        print(f"went on {time.monotonic() - back:.2f} s after the promotion")
        assert_unbilled(running.report(), standby.url(), items, notices)


def test_both_ways_to_write_several_hosts_name_them_when_none_is_there() -> None:
    with socket.socket() as free, socket.socket() as other:
        free.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        first, second = (f"127.0.0.1:{one.getsockname()[1]}" for one in (free, other))
    for url in (f"postgresql://u@/x?host={first}&host={second}", f"postgresql+psycopg://u@{first},{second}/x"):
        with pytest.raises(DatabaseError, match=rf"cannot be reached .{first}, {second}, database x, user u"):
            run_parallel(oracle.task, range(2), url, name="away", workers=0)


@pytest.mark.parametrize("password", ["a,b", "1,2/3", "Zq000,0?9x", "12,0?9x=1&y"])
def test_a_password_that_looks_like_several_hosts_is_a_password(password: str) -> None:
    found = normalise(f"postgresql://app:{password}@there:5432/name")
    assert (found.password, found.host, found.port, found.database, dict(found.query)) == (password, "there", 5432, "name", {})


def test_hosts_that_cannot_be_read_are_a_configuration_error_that_does_not_repeat_them() -> None:
    for url in ("postgresql://app@one:secret,two/name", "postgresql://app@/name?host=one:secret&host=two"):
        with pytest.raises(ConfigError, match=r"cannot be (read|used)") as caught:
            run_parallel(lambda session, item: None, [1], url, workers=0, progress=False)
        assert "secret" not in str(caught.value)


def test_libpqs_way_to_write_several_hosts_becomes_sqlalchemys() -> None:
    found = normalise("postgresql://u:p%40@h1:1,h2:2/db?target_session_attrs=read-write")
    assert (found.username, found.password, found.database) == ("u", "p@", "db")
    assert dict(found.query) == {"host": ("h1:1", "h2:2"), "target_session_attrs": "read-write"}


# -------------------------------------------------------------------------------- no room, memory, connection
FULL = """
    CREATE TABLE no_room (code text);
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF EXISTS (SELECT FROM no_room) THEN
        RAISE EXCEPTION USING ERRCODE = (SELECT code FROM no_room), MESSAGE = 'No space left on device';
      END IF;
      RETURN NEW;
    END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON effects FOR EACH ROW EXECUTE FUNCTION refuse();
"""


def execute(url: str, statement: str) -> None:
    with engine_for(url).begin() as connection:
        connection.exec_driver_sql(statement)


@pytest.mark.parametrize(("code", "mode"), [("53100", "item"), ("53200", "chunk"), ("53100", "batched")])
def test_a_full_disk_is_waited_for(pg_url: str, notices: list[str], code: str, mode: str) -> None:
    items = range(100)
    oracle.create(pg_url, items)
    execute(pg_url, FULL)
    task, options = MODES[mode]
    running = Running(task, items, pg_url, **options)
    wait_until(lambda: is_further(pg_url, 10), 30)
    execute(pg_url, f"INSERT INTO no_room VALUES ('{code}')")
    wait_until(lambda: any("No space left" in line for line in notices), 10, what=lambda: f"{notices}")
    execute(pg_url, "DELETE FROM no_room")
    assert_unbilled(running.report(), pg_url, items, notices)


def test_a_full_sqlite_database_is_waited_for(sqlite_url: str, tmp_path: Path, notices: list[str]) -> None:
    items, full = range(20), tmp_path / "full"
    oracle.create(sqlite_url, items)
    full.touch()

    def task(session: Session, item: int) -> None:
        limit = 1 if full.exists() and item > 5 else 1_000_000
        session.connection().exec_driver_sql(f"PRAGMA max_page_count = {limit}")
        session.execute(text("CREATE TABLE IF NOT EXISTS blobs (b BLOB)"))
        session.execute(text("INSERT INTO blobs VALUES (zeroblob(100000))"))
        oracle.work(session, item)

    running = Running(task, items, sqlite_url, workers=1)
    wait_until(lambda: any("full" in line for line in notices), 10, what=lambda: f"{notices}")
    full.unlink()
    assert_unbilled(running.report(), sqlite_url, items, notices)


def test_connections_that_run_out_in_mid_run_are_waited_for(clones: Clones, notices: list[str]) -> None:
    items = range(150)
    with clones.clone() as name:
        role = f"{name}_role"
        clones.execute(f"CREATE ROLE {role} LOGIN")
        try:
            clones.execute(f"ALTER DATABASE {name} OWNER TO {role}")
            url = clones.server.url(name, user=role)
            oracle.create(url, items)
            running = Running(slowly, items, url)
            wait_until(lambda: is_further(url, 20), 30)
            clones.execute(f"ALTER ROLE {role} CONNECTION LIMIT 0")
            clones.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", role)
            wait_until(lambda: any("too many connections" in line for line in notices), 10, what=lambda: f"{notices}")
            clones.execute(f"ALTER ROLE {role} CONNECTION LIMIT -1")
            assert_unbilled(running.report(), url, items, notices)
        finally:
            clones.drop(name)
            clones.execute(f"DROP ROLE {role}")


# ------------------------------------------------------------------------------------- what a cut network leaves
def zombies(url: str) -> list[int]:
    """Sessions of workers that hold a transaction open."""
    statement = (
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'batchrun:%' AND datname = current_database() "
        "AND state = 'idle in transaction' AND state_change < now() - interval '300 ms'"
    )
    with engine_for(url).connect() as connection:
        return list(connection.execute(text(statement)).scalars())


def test_a_session_that_a_cut_network_left_is_ended_before_its_mark_is_taken_again(pg_url: str) -> None:
    items = range(10)
    oracle.create(pg_url, items)
    with CuttingProxy(pg_url, "abandon", most=1, share=1.0) as proxy:
        report = Running(oracle.task, items, proxy.url, workers=1).report(20)
    assert proxy.cuts == 1
    assert (report.done, report.retries) == (10, 0)
    assert_exactly_once(pg_url, "away", items)


def test_control_without_that_the_mark_hangs(pg_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_END_OLD", "SELECT {}")
    items = range(10)
    oracle.create(pg_url, items)
    with CuttingProxy(pg_url, "abandon", most=1, share=1.0) as proxy:
        running = Running(oracle.task, items, proxy.url, workers=1)
        left = wait_until(lambda: zombies(pg_url), 20)
        running.join(3.0)
        assert running.is_alive()
        assert zombies(pg_url) == left
        execute(pg_url, f"SELECT pg_terminate_backend({left[0]})")
        assert running.report().done == 10


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("mode", ["chunk", "batched"])
def test_a_commit_of_many_items_that_is_cut_is_resolved_by_the_ledger(pg_url: str, mode: str, where: str) -> None:
    items = range(200)
    oracle.create(pg_url, items)
    task: Callable[..., Any] = oracle.batch if mode == "batched" else oracle.task
    with CuttingProxy(pg_url, where, most=4, share=0.5) as proxy:
        report = Running(task, items, proxy.url, **MODES[mode][1]).report()
    assert proxy.cuts > 0
    assert (report.done, report.retries) == (200, 0)
    assert_exactly_once(pg_url, "away", items)
