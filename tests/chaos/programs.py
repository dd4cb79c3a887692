"""Parents that are programs of their own: the command line, as a user or cron starts it, in a project folder."""

from __future__ import annotations

import array
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.world import World, helper_pids, worker_pids
from tests.support import oracle
from tests.support.databases import engine_for
from tests.support.scripts import ROOT
from tests.support.waiting import wait_until

JOBS = '''
"""The jobs of the chaos suite."""

from __future__ import annotations

import os
import time
from pathlib import Path

from sqlalchemy import column, select, table
from sqlalchemy.orm import Session

from batchrun import Context, job, keyset
from tests.support import oracle

HOLD = Path(__file__).parents[1] / "hold"


@job
def add_one(session: Session, item: int, ctx: Context, *, pause: float = 0.003) -> None:
    """Add one to an account, and leave a row that says so."""
    oracle.work(session, item, ctx.attempt)
    time.sleep(pause)  # work
    if HOLD.exists():
        HOLD.with_name(f"held-{os.getpid()}").touch()
    while HOLD.exists():
        time.sleep(0.01)  # work


@add_one.items
def accounts(untouched: bool = False):
    """untouched: only those that nobody has added to yet."""
    known = table("accounts", column("id"), column("n")).c
    return keyset(select(known.id).where(known.n == 0) if untouched else select(known.id))
'''
JOB = "add_one"


@dataclass(frozen=True)
class Ended:
    """How a program ended. report: the object of ``--json``; empty where it printed none."""

    code: int
    report: dict[str, Any]
    err: str

    @property
    def run(self) -> str:
        return str(self.report["run"])


@dataclass
class Project:
    """A project folder with the job ``add_one`` over the accounts. While the file ``hold`` is there, its items hang."""

    world: World
    grace: float = 10.0
    started: list[Program] = field(default_factory=list)
    _former: Any = signal.SIG_DFL

    def __enter__(self) -> Project:
        jobs = self.world.folder / "project" / "jobs"
        jobs.mkdir(parents=True)
        (jobs / "chaos.py").write_text(JOBS)
        (jobs.parent / "config.toml").write_text(f"[database]\nurl = '${{CHAOS_URL}}'\n[run]\ngrace = {self.grace}\n")
        self._former = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and a run leaves it so
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGHUP, self._former)
        for program in self.started:
            program.kill()
            program.end()

    @property
    def hold(self) -> Path:
        return self.world.folder / "project" / "hold"

    def let_go(self) -> None:
        """Items no longer hang."""
        for path in [self.hold, *self.hold.parent.glob("held-*")]:
            path.unlink(missing_ok=True)

    def has_run(self) -> bool:
        """Was one opened yet?"""
        return bool(self.call("runs", code=None).report.get("runs"))

    def newest_run(self) -> str:
        """The id of the newest run in the ledger."""
        with engine_for(self.world.url).connect() as connection:
            return str(oracle.scalar(connection, "SELECT id FROM batchrun_run ORDER BY started DESC LIMIT 1"))

    def start(self, *arguments: str, redirected: str = "", **environment: str) -> Program:
        """``batchrun ...`` as a process, with --json where it runs something; the URL is in the environment, not in argv.

        redirected: what a shell is to do with its streams, such as ``>&-``.
        """
        wants_json = arguments[0] in ("run", "resume", "retry", "show", "runs")
        command = [sys.executable, "-m", "batchrun", *arguments, *(["--json"] if wants_json else [])]
        if redirected:
            command = ["sh", "-c", f'exec "$@" {redirected}', "sh", *command]
        process = subprocess.Popen(
            command,
            cwd=self.world.folder / "project",
            env={**os.environ, "PYTHONPATH": str(ROOT), "CHAOS_URL": self.world.url, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        program = Program(self.world, process)
        self.started.append(program)
        return program

    def call(self, *arguments: str, code: int | None = 0) -> Ended:
        """The same, to its end; asserts the exit code unless it is None."""
        ended = self.start(*arguments).end()
        assert code is None or ended.code == code, (ended.code, ended.err)
        return ended

    def show_agrees(self, ledger: oracle.Books, run: str = "last") -> None:
        """``show`` says what the ledger says."""
        shown = self.call("show", run).report
        counts = ledger.counts
        assert shown["status"] == ledger.status
        for name in ("planned", "done", "failed", "skipped", "quarantined", "unknown", "pending"):
            assert shown[name] == getattr(counts, name), name


@dataclass
class Program:
    """A running ``batchrun`` command."""

    world: World
    process: subprocess.Popen[str]
    ended: Ended | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None

    def workers(self) -> list[int]:
        return worker_pids(self.pid)

    def helpers(self, kind: str) -> list[int]:
        """Its "forkserver" or "resource_tracker"."""
        return helper_pids(self.pid, kind)

    def wait_applied(self, count: int, timeout_s: float = 60.0) -> int:
        """Wait until the data shows so many effects; the program must still run then. Returns how many there are."""

        def far_enough() -> int:
            assert not self.is_over, self.end()
            found = oracle.applied(self.world.url)
            return found if found >= count else 0

        return wait_until(far_enough, timeout_s, every_s=0.005, what=f"{count} effects are committed")

    def said_bytes(self) -> int:
        """How much it has written to stderr that nobody has read."""
        assert self.process.stderr is not None
        found = array.array("i", [0])
        fcntl.ioctl(self.process.stderr.fileno(), termios.FIONREAD, found)
        return found[0]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, as ``kill -9`` does."""
        self.process.kill()

    def stop(self) -> None:
        self.send(signal.SIGSTOP)

    def go_on(self) -> None:
        self.send(signal.SIGCONT)

    def end(self, timeout_s: float = 120.0) -> Ended:
        """Wait for its end; what it printed is kept for the judge of secrets."""
        if self.ended is None:
            try:
                out, err = self.process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
            self.world.said(out, err)
            lines = out.splitlines()
            self.ended = Ended(self.process.returncode, json.loads(lines[-1]) if lines else {}, err)
        return self.ended
