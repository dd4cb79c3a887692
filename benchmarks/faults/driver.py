"""One case: a fresh database, the program in a process group of its own, the fault from outside, and a watchdog."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import create_engine, insert

from benchmarks.faults.cases import Case, Notes
from benchmarks.faults.judge import Result, Seen, guilty_of
from benchmarks.faults.work import Account, Base
from tests.postgres import Server
from tests.support.proxy import CuttingProxy

ROOT = Path(__file__).parents[2]
HANG_S = 8.0
"""So long nothing settles after the fault and the program does next to nothing, then it hangs."""
BUSY_S = 1.0
"""CPU seconds that count as doing something: a loaded machine may need long to start four workers."""
HANG_THOUGH_BUSY_S = 30.0
"""So long nothing settles whatever it does, then it hangs as well: it may start workers in vain for ever."""
MOST_S = 180.0
"""No case takes longer."""
DOWN_S = 1.0
CUTS = 8
LOOK_S = 0.05
ORPHANS_AFTER_S = 2.0


def run_case(server: Server, peer: str, fault: str, items: int, guilty: int, seed: int) -> Result:
    """Carry out one case and judge it. Nothing of it is left afterwards."""
    began = time.monotonic()
    prepare(server, items)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True))
        case = Case(peer, fault, url_of(server), folder, items, guilty)
        if fault == "commit":
            proxy = stack.enter_context(CuttingProxy(url_of(server), "after", most=CUTS, share=0.05, seed=seed, only=b""))
            case = replace(case, url=proxy.url)
            watch = Watch(case, server, happened=lambda: proxy.cuts > 0)
        else:
            watch = Watch(case, server)
        with watch:
            ending = watch.run()
        notes = Notes(folder)
        seen = Seen(
            items=items, applied=applied(server), done=frozenset(notes.done), failed=frozenset(notes.failed), ending=ending,
            guilty=guilty_of(fault, items, guilty), orphans=watch.orphans, seconds=round(time.monotonic() - began, 1),
        )  # fmt: skip
        return Result(peer, fault, seen)


# ------------------------------------------------------------------------------------------------- the database
def prepare(server: Server, items: int) -> None:
    """An empty schema with an account for each item; sessions of an earlier case are ended."""
    with connected(server) as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    engine = create_engine(url_of(server))
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(Account), [{"id": item, "n": 0} for item in range(items)])
    engine.dispose()


def url_of(server: Server) -> str:
    """The URL with the driver named: SQLAlchemy 2.1 takes another one for ``postgresql://``."""
    return server.url().replace("postgresql:", "postgresql+psycopg2:")


@contextlib.contextmanager
def connected(server: Server) -> Iterator[Any]:
    connection = psycopg2.connect(server.url(), connect_timeout=5)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def applied(server: Server) -> dict[int, int]:
    """Item -> how often its effect was committed: the greater of its account and its rows, which no half can hide."""
    with connected(server) as cursor:
        cursor.execute(
            "SELECT a.id, greatest(a.n, count(e.id)) FROM accounts a LEFT JOIN effects e ON e.item = a.id GROUP BY a.id, a.n"
        )
        return {item: int(times) for item, times in cursor.fetchall() if times}


# -------------------------------------------------------------------------------------------------- the program
@dataclass
class Watch:
    """Starts the program, does to it what comes from outside, and waits for its end or for nothing to happen any more.

    happened: tells that the fault came about where the program leaves no mark itself.
    """

    case: Case
    server: Server
    happened: Callable[[], bool] | None = None
    orphans: int = 0
    _groups: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _began: float = 0.0
    _moved: float = 0.0
    _state: tuple[int, int] = (0, 0)
    _busy: float = 0.0
    _cpu_s: float = 0.0
    _is_due: bool = True

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for group in self._groups:
            end_group(group.pid)
            group.wait()

    def run(self) -> str:
        """Returns how it ended: "ended", "raised ...", "hung", "late" or "died: ..."."""
        self._began = self._moved = self._busy = time.monotonic()
        program = self._start()
        while program.poll() is None:
            time.sleep(LOOK_S)
            self._look()
            if self._is_due and self._state[0] >= self.case.items // 3 and self.case.fault in ("server", "parent"):
                program = self._strike(program)
            if self._hangs():
                return "hung"
            if time.monotonic() - self._began > MOST_S:
                return "late"
        self._count_orphans(program.pid)
        return Notes(self.case.folder).end or f"died: exit code {program.returncode}"

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or every worker compiles SQLAlchemy anew
        command = [sys.executable, "-m", "benchmarks.faults.program", self.case.text()]
        with (Path(self.case.folder) / "output").open("ab") as output:
            program = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._groups.append(program)
        return program

    def _look(self) -> None:
        """See whether anything moved: an effect in the database, or a note of the program."""
        try:
            with connected(self.server) as cursor:
                cursor.execute("SELECT count(*) FROM effects")
                effects = int(cursor.fetchone()[0])
        except psycopg2.OperationalError:
            effects = self._state[0]
        notes = Path(self.case.folder) / "notes"
        state = (effects, notes.stat().st_size if notes.exists() else 0)
        if state != self._state:
            self._state, self._moved = state, time.monotonic()
        cpu_s = sum(one.cpu_s for one in members(self._groups[-1].pid))
        if abs(cpu_s - self._cpu_s) > BUSY_S:  # less, when a process of the group has ended
            self._cpu_s, self._busy = cpu_s, time.monotonic()

    def _strike(self, program: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """What comes from outside, once, when a third is applied."""
        self._is_due = False
        self.case.mark.touch()
        if self.case.fault == "server":
            self.server.stop("fast")
            time.sleep(DOWN_S)
            self.server.start()
        else:
            program.kill()
            program.wait()
            self._count_orphans(program.pid, after_s=0.0)
            program = self._start()
        self._moved = time.monotonic()
        return program

    def _hangs(self) -> bool:
        now = time.monotonic()
        marked = self.case.mark.exists()
        if not (marked or (self.happened is not None and self.happened())):
            return False
        since = max(self._moved, now - (time.time() - self.case.mark.stat().st_mtime) if marked else 0.0)
        return now - max(since, self._busy) > HANG_S or now - since > HANG_THOUGH_BUSY_S

    def _count_orphans(self, group: int, after_s: float = ORPHANS_AFTER_S) -> None:
        until = time.monotonic() + after_s
        while members(group) and time.monotonic() < until:
            time.sleep(LOOK_S)
        self.orphans = len(members(group))


@dataclass(frozen=True)
class Member:
    """A living process of a group."""

    pid: int
    cpu_s: float


def members(group: int) -> list[Member]:
    """The living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                found.append(Member(int(path.parent.name), cpu_s))
    return found


def end_group(group: int) -> None:
    """SIGKILL to a process group that we made; it is no matter if it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
