"""Fixtures: a real PostgreSQL for the whole session, a database of its own for each test, and a check for leaks."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from batchrun.events import Event, Notice
from batchrun.runner import Runner
from tests.postgres import LOCKED_PASSWORD, LOCKED_USER, Postgres, Server, connect
from tests.support import browsers, leaks, pgbouncer
from tests.support.commands import CommandLine
from tests.support.databases import Clones
from tests.support.pgbouncer import PgBouncer

_servers: list[Postgres] = []


_MEMORY = Path("/dev/shm")
_MEMORY_FREE = 2 * 1024**3
"""Bytes that must be free there: what all tests together leave is far less."""


def pytest_configure(config: pytest.Config) -> None:
    leaks.mark()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each program of the tests would compile batchrun: 0.3 s, hundreds of times
    if not hasattr(config, "workerinput") and _is_memory(_MEMORY):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))  # so that no commit of SQLite waits for a disk


def _is_memory(folder: Path) -> bool:
    """A file system in memory, with enough room for the tests' files."""
    try:
        kinds = {at: kind for _, at, kind in (line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines())}
        room = os.statvfs(folder)
    except OSError:
        return False
    return kinds.get(str(folder)) == "tmpfs" and os.access(folder, os.W_OK) and room.f_bavail * room.f_frsize >= _MEMORY_FREE


def pytest_report_header() -> str:
    return "leaks: every process below this one" if leaks.SEES_ALL else "leaks: only direct children, since there is no /proc"


def pytest_unconfigure(config: pytest.Config) -> None:
    """The suite's very last lines say what it could not look at."""
    if pgbouncer.PROGRAM is None and not hasattr(config, "workerinput"):
        config.get_terminal_writer().line(pgbouncer.MISSING)
    if browsers.CHROMIUM is None and not hasattr(config, "workerinput"):
        config.get_terminal_writer().line(browsers.MISSING)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server; tests that stop, kill or restart one take ``own_postgres``."""
    server = connect()
    _servers.append(server)
    yield server
    if isinstance(server, Server):
        server.close()


@pytest.fixture(scope="session")
def clones(postgres: Postgres) -> Iterator[Clones]:
    """The server's factory of databases."""
    made = Clones(postgres)
    yield made
    made.close()


@pytest.fixture
def own_postgres(postgres: Postgres) -> Iterator[Server]:
    """A server that may be stopped, killed and restarted; up again at the end. The session's, unless that is not ours."""
    if isinstance(postgres, Server):
        yield postgres
        postgres.settle()
    else:
        with Server() as server:
            _servers.append(server)
            yield server
            _servers.remove(server)


@pytest.fixture
def pg_database(clones: Clones) -> Iterator[str]:
    """The name of an empty database of the test's own. At the end batchrun may have no session in it."""
    with clones.clone() as name:
        yield name
        clones.check_sessions(name)


@pytest.fixture
def pg_url(clones: Clones, pg_database: str) -> str:
    """``postgresql://...``, which batchrun takes for psycopg2 if that is installed."""
    return clones.server.url(pg_database)


@pytest.fixture(scope="module")
def kept_database(clones: Clones) -> Iterator[str]:
    """The name of one database for all tests of a module, in which each finds what the last one left."""
    with clones.clone() as name:
        yield name


@pytest.fixture
def kept_url(clones: Clones, kept_database: str) -> Iterator[str]:
    """As ``pg_url``, in the module's database, for tests that empty it first: a database for each can cost more than the test.

    A module whose tests all do that says so: ``pg_url`` there returns this.
    """
    yield clones.server.url(kept_database)
    clones.check_sessions(kept_database)


@pytest.fixture
def psycopg_url(pg_url: str) -> str:
    """``postgresql+psycopg://...``: psycopg 3."""
    return pg_url.replace("postgresql://", "postgresql+psycopg://", 1)


@pytest.fixture
def wrong_password_url(own_postgres: Server) -> str:
    """A URL the server refuses: the role must give its password, and this is not it."""
    return own_postgres.url(user=LOCKED_USER, password=f"not-{LOCKED_PASSWORD}")


@pytest.fixture
def bouncer(clones: Clones, pg_database: str) -> Iterator[Callable[..., PgBouncer]]:
    """Starts a pgbouncer over the test's server: ``bouncer("transaction", size=4)``."""
    if pgbouncer.PROGRAM is None:
        pytest.skip(pgbouncer.MISSING)
    with ExitStack() as stack:

        def start(mode: str = "transaction", *, size: int = 4) -> PgBouncer:
            made = PgBouncer(clones.server.url(), mode, size)
            stack.callback(made.close)
            made.start(pg_database)
            return made

        yield start


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A file of the test's own; it does not exist yet."""
    return f"sqlite:///{tmp_path / 'test.db'}"


_URLS = {"sqlite": "sqlite_url", "postgresql": "pg_url", "psycopg3": "psycopg_url"}


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> list[Notice]:
    """What the test's runs tell people."""
    found: list[Notice] = []
    plain = Runner._emit

    def emit(self: Runner, event: Event) -> None:
        if isinstance(event, Notice):
            found.append(event)
        plain(self, event)

    monkeypatch.setattr(Runner, "_emit", emit)
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The test runs twice: on SQLite, and on PostgreSQL by psycopg2."""
    url: str = request.getfixturevalue(_URLS[request.param])
    return url


@pytest.fixture(params=["sqlite", "postgresql", "psycopg3"])
def any_url(request: pytest.FixtureRequest) -> str:
    """The test runs three times: SQLite, PostgreSQL by psycopg2, PostgreSQL by psycopg 3."""
    url: str = request.getfixturevalue(_URLS[request.param])
    return url


@pytest.fixture
def batchrun(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line, called in this process: ``batchrun("show", "last", cwd=folder, NAME="value")``."""
    return CommandLine(capsys)


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test no process of ours may be left but the servers and multiprocessing's helpers, no descriptor and no
    thread more than before, and no lock file. That no session is left is checked where a database goes.
    """
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    before, threads = leaks.descriptors(), set(threading.enumerate())
    yield
    leaks.check_processes([server.pid for server in _servers if isinstance(server, Server)])
    leaks.check_descriptors(before)
    leaks.check_threads(threads)
    if folder:
        leaks.check_files(folder)
