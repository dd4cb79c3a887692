"""No worker is left of a run whose parent died, whatever it died of and whatever the worker is doing.

The parent is a process of its own that the test kills. Workers are known by what they write down: their process ids.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import pytest

from batchrun import run_parallel
from batchrun.execution import orphans
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
GONE_S = 2.0


class Doing:
    """A task that says who runs it, and then does something that takes long."""

    def __init__(self, folder: Path, what: str) -> None:
        self.folder = folder
        self.what = what

    def __call__(self, item: int) -> None:
        (self.folder / f"{os.getpid()}.worker").touch()
        if self.what == "in C":  # holds the interpreter's lock for as long as anybody waits
            sum(range(10**11))
        if self.what == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)  # work


class Starting:
    """An initializer that is still at it when the parent dies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> None:
        Doing(self.folder, "sleeping")(0)


def carry_out(folder: Path, what: str, options: dict[str, Any], patch: Callable[[], None] | None = None) -> None:
    """The parent."""
    if patch:
        patch()
    initializer = Starting(folder) if what == "starting" else None
    run_parallel(Doing(folder, what), range(6), workers=2, progress=False, initializer=initializer, **options)


def no_prctl() -> None:
    """As where the kernel cannot be asked."""
    orphans.die_with_parent = lambda: False


@contextlib.contextmanager
def parent(*arguments: Any) -> Iterator[Any]:
    started = multiprocessing.get_context("fork").Process(target=carry_out, args=arguments)
    started.start()
    try:
        yield started
    finally:
        started.kill()
        started.join()


def workers(folder: Path, wanted: int = 1) -> list[int]:
    """Who has begun, as soon as so many have; their helpers too."""
    wait_until(lambda: len(list(folder.glob("*.worker"))) >= wanted, 30)
    return [int(path.stem) for path in folder.glob("*.worker")]


def state(pid: int) -> str:
    """R, S, T ..., empty = gone. A zombie is gone."""
    with contextlib.suppress(OSError):
        found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return "" if found in "ZX" else found
    return ""


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def check_gone(pids: list[int]) -> None:
    """Within two seconds; else they are ended here, lest they stay."""
    try:
        wait_until(lambda: not any(map(state, pids)), GONE_S, what=lambda: f"gone: {[(pid, state(pid)) for pid in pids]}")
    finally:
        for pid in pids:
            if state(pid):
                os.kill(pid, signal.SIGKILL)


CASES = [
    ("in C", "forkserver", 1),
    ("in C", "spawn", 1),
    ("in C", "fork", 1),
    ("stopped", "forkserver", 1),
    ("stopped", "fork", 1),
    ("sleeping", "forkserver", 2),
    ("starting", "forkserver", 1),
    ("starting", "spawn", 1),
    ("starting", "fork", 1),
]


@pytest.mark.parametrize(("what", "method", "threads"), CASES)
def test_workers_end_with_their_parent(tmp_path: Path, what: str, method: str, threads: int) -> None:
    with parent(tmp_path, what, {"start_method": method, "threads": threads}) as killed:
        found = workers(tmp_path, 1 if threads == 2 else 2)
        if what == "stopped":
            wait_until(lambda: all(state(pid) == "T" for pid in found))
        helpers = children(killed.pid)
        killed.kill()
        killed.join()
        check_gone(found + helpers)


def test_control_a_plain_worker_stays_when_its_parent_is_killed(tmp_path: Path) -> None:
    source = (
        "import multiprocessing, sys, time, os, pathlib\n"
        "def work():\n"
        "    pathlib.Path(sys.argv[1], f'{os.getpid()}.worker').touch(); time.sleep(60)\n"
        "multiprocessing.get_context('fork').Process(target=work).start()\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", source, str(tmp_path)])
    found = workers(tmp_path)
    killed.kill()
    killed.wait()
    with pytest.raises(AssertionError, match="Not within"):
        check_gone(found)
    wait_until(lambda: not any(map(state, found)))


# ------------------------------------------------------------------------------------------ helpers die
class KillsOnce:
    """A task that kills one of multiprocessing's helpers, once."""

    def __init__(self, folder: Path, pid: Callable[[], int | None]) -> None:
        self.victim = pid()
        self.mark = folder / "killed"

    def __call__(self, item: int) -> int:
        if self.victim and not self.mark.exists():
            self.mark.touch()
            os.kill(self.victim, signal.SIGKILL)
        return os.getpid()


def server_pid() -> int | None:
    forkserver.ensure_running()
    found: Any = forkserver._forkserver
    return int(found._forkserver_pid)


def tracker_pid() -> int | None:
    resource_tracker.ensure_running()
    found: Any = resource_tracker._resource_tracker
    return int(found._pid)


@pytest.mark.parametrize("helper", [server_pid, tracker_pid])
def test_the_death_of_a_helper_leaves_nobody_and_loses_nothing(tmp_path: Path, helper: Callable[[], int | None]) -> None:
    report = run_parallel(KillsOnce(tmp_path, helper), range(30), workers=2, progress=False, results=True)
    assert report.done == 30
    assert (tmp_path / "killed").exists()
    check_gone([pid for pid in set(report.results or []) if pid])


# ------------------------------------------------------------------------------------------ where there is no PDEATHSIG
@pytest.mark.parametrize("what", ["sleeping", "starting"])
def test_without_the_kernels_help_a_watcher_ends_a_busy_worker(tmp_path: Path, what: str) -> None:
    with parent(tmp_path, what, {"start_method": "fork"}, no_prctl) as killed:
        found = workers(tmp_path, 2)
        killed.kill()
        killed.join()
        check_gone(found)


def without_watcher() -> None:
    no_prctl()
    orphans.watch = lambda connection: None


def test_control_without_kernel_and_watcher_a_busy_worker_stays(tmp_path: Path) -> None:
    with parent(tmp_path, "sleeping", {"start_method": "fork"}, without_watcher) as killed:
        found = workers(tmp_path, 2)
        killed.kill()
        killed.join()
        with pytest.raises(AssertionError, match="Not within"):
            check_gone(found)
        wait_until(lambda: not any(map(state, found)))


class OneIsIdle(Doing):
    def __call__(self, item: int) -> None:
        (self.folder / f"{os.getpid()}.worker").touch()
        if item:
            wait_until((self.folder / "never").exists, 60)


def carry_out_idle(folder: Path) -> None:
    """A source of unknown length: two workers, one of which has nothing to do."""
    without_watcher()
    run_parallel(OneIsIdle(folder, ""), iter([1]), workers=2, progress=False, start_method="fork")


def test_an_idle_forked_worker_reads_the_end_of_its_pipe(tmp_path: Path) -> None:
    """Also the first of several, of whose pipe all later ones had inherited the other end."""
    started = multiprocessing.get_context("fork").Process(target=carry_out_idle, args=(tmp_path,))
    started.start()
    found: list[int] = []
    try:
        wait_until(lambda: len(children(started.pid or 0)) >= 2, 30)
        found = children(started.pid or 0)
        workers(tmp_path)
        started.kill()
        started.join()
        wait_until(lambda: sum(bool(state(pid)) for pid in found) <= 1, GONE_S)
    finally:
        started.kill()
        started.join()
        for pid in filter(state, found):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(state, found)))


def test_a_worker_whose_parent_died_before_the_kernel_was_asked_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(orphans, "die_with_parent", lambda: True)
    monkeypatch.setattr(orphans, "_let_go_of_fork_server", lambda: None)
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        monkeypatch.setattr(orphans, "_expected_parent", lambda inherited: os.getppid())
        orphans.guard_against_orphanhood(theirs, inherited=True)
        assert ended == []
        monkeypatch.setattr(orphans, "_expected_parent", lambda inherited: os.getppid() + 1)
        orphans.guard_against_orphanhood(theirs, inherited=True)
        assert ended == [1]
