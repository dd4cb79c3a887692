"""What a test may not leave behind: processes, descriptors of this process, files of a run.

A process is ours if it descends from this one, or (an orphan) if it was started with this test run's mark in its
environment. The test server starts without the mark; multiprocessing's own helpers may stay.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

from batchrun.execution.starter import STARTER_NAME
from tests.support.waiting import wait_until

MARK = "BATCHRUN_TEST_MARK"
_HELPERS = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")
SEES_ALL = sys.platform == "linux"
"""Elsewhere there is no /proc: only the direct children that multiprocessing knows are seen."""


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it. A zombie is not listed: it is dead, its parent has only not looked yet.

    What is not needed to see that it is somebody else's is read late: a look at all processes comes after every test.
    """

    pid: int
    parent: int
    started: int = 0

    @property
    def command(self) -> str:
        return self._file("cmdline").replace(b"\0", b" ").decode(errors="replace").strip()

    @property
    def is_marked(self) -> bool:
        return f"{MARK}={os.getpid()}".encode() in self._file("environ").split(b"\0")

    def _file(self, name: str) -> bytes:
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            return Path(f"/proc/{self.pid}/{name}").read_bytes()
        return b""

    def __str__(self) -> str:
        return f"{self.pid}, child of {self.parent}: {self.command}"

    @property
    def looks_like_helper(self) -> bool:
        return any(helper in self.command for helper in _HELPERS)


def mark() -> None:
    """Put this run's mark in the environment, which everything started from here on inherits."""
    os.environ[MARK] = str(os.getpid())


def leftovers(allowed: Iterable[int | None] = ()) -> list[Process]:
    """Processes of ours that are alive, without multiprocessing's helpers and what descends from ``allowed``."""
    if not SEES_ALL:
        return [Process(child.pid or 0, os.getpid()) for child in multiprocessing.active_children()]
    everyone = {process.pid: process for process in _processes()}
    me, spared = os.getpid(), {pid for pid in allowed if pid}
    return [process for process in everyone.values() if process.pid != me and _is_ours(process, everyone, me, spared)]


def check_processes(allowed: Iterable[int | None] = (), timeout_s: float = 5.0) -> None:
    """Wait until no process of ours is left; AssertionError lists those that stay."""
    spared = tuple(allowed)
    wait_until(lambda: not leftovers(spared), timeout_s, what=lambda: f"no child is left: {[*map(str, leftovers(spared))]}")


def descriptors() -> dict[int, str]:
    """The open descriptors of this process and what they lead to, without those of multiprocessing's helpers."""
    spared = {
        getattr(forkserver._forkserver, "_forkserver_alive_fd", None),
        getattr(resource_tracker._resource_tracker, "_fd", None),
    }
    found = {}
    for path in Path("/proc/self/fd").iterdir() if SEES_ALL else ():
        with contextlib.suppress(OSError):  # that of the listing itself
            if int(path.name) not in spared:
                found[int(path.name)] = str(path.readlink())
    return found


def check_descriptors(before: dict[int, str], timeout_s: float = 5.0) -> None:
    """Wait until nothing is open that was not open before; AssertionError lists what stays."""

    def more() -> list[str]:
        return [where for number, where in descriptors().items() if before.get(number) != where]

    if more():
        gc.collect()  # what a failed or interrupted run left in a cycle is not lost
        wait_until(lambda: not more(), timeout_s, what=lambda: f"no further descriptor is open: {more()}")


def check_threads(before: set[threading.Thread], timeout_s: float = 5.0) -> None:
    """Wait until no thread is there that was not there before: with another thread in the process, a later test's run over
    SQLite is not forked as it asks (execution/processes.py), and its workers lack what it has patched.
    """

    def more() -> list[str]:
        return [one.name for one in threading.enumerate() if one not in before and one.name != STARTER_NAME]

    wait_until(lambda: not more(), timeout_s, what=lambda: f"no further thread is there: {more()}")


def check_files(folder: Path) -> None:
    """No folder with a run's lock files is left beside a SQLite database."""
    left = [path.name for path in folder.glob("*-batchrun-*")]
    assert not left, f"lock files are left: {left}"


def _is_ours(process: Process, everyone: dict[int, Process], me: int, spared: set[int]) -> bool:
    line = list(_ancestry(process, everyone))
    if any(one.pid in spared for one in line):
        return False
    descends = any(one.pid == me or one.parent == me for one in line)
    if not descends and (process.started < everyone[me].started or not process.is_marked):
        return False
    return not _is_helper(process, everyone, me)


def _is_helper(process: Process, everyone: dict[int, Process], me: int) -> bool:
    """A helper of this very process. A fork server's children have its command line: they are workers, not helpers."""
    parent = everyone.get(process.parent)
    return process.looks_like_helper and process.parent == me and not (parent and parent.looks_like_helper)


def _ancestry(process: Process, everyone: dict[int, Process]) -> Iterable[Process]:
    seen: set[int] = set()
    current: Process | None = process
    while current and current.pid not in seen:
        seen.add(current.pid)
        yield current
        current = everyone.get(current.parent)


def _processes() -> Iterable[Process]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, ValueError):  # it ended while we looked, or is another user's
                if found := _read(folder):
                    yield found


def _read(folder: Path) -> Process | None:
    fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return None if fields[0] in "ZX" else Process(int(folder.name), int(fields[1]), int(fields[19]))
