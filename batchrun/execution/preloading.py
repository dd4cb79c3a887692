"""What a fork server has imported before it forks anybody, so that a worker starts in milliseconds.

    run_parallel()   the first worker starts one: a new interpreter, which imports what all workers need and the drivers
    the command      it forks one from itself, once it has imported the job and before it opens the database: nothing is
                     imported twice, and the job's own imports are there as well

A copy must hold no thread and no connection. So it is only made where the job's imports left nothing open in this process;
else, and where there is no Linux, the new interpreter serves, and each worker imports the job.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from typing import Any

from batchrun.execution.orphans import this_is_the_fork_server

MODULES = ("batchrun.execution.worker", "batchrun.execution.output", "sqlalchemy.orm", "multiprocessing.popen_forkserver")
"""What every worker needs, whatever its database. A test tells of one that is missing here."""
TITLES = (b"batchrun:multiprocessing.forkserver", b"multiprocessing.forkserver", b"forkserver")
"""The command line of a fork server that is a copy, and of its workers: the longest that finds room where the parent's stands."""

_IS_LINUX = sys.platform == "linux"
_any_server: Any = forkserver._forkserver
_any_util: Any = util


@dataclass(frozen=True, slots=True)
class Open:
    """Threads and open descriptors of this process: what a fork would copy badly."""

    threads: int
    descriptors: frozenset[tuple[int, int, int]]

    def is_within(self, before: Open) -> bool:
        return self.threads <= before.threads and self.descriptors <= before.descriptors


def what_is_open() -> Open:
    """What there is now. On Linux it sees the threads of C libraries as well."""
    threads = len(list(Path("/proc/self/task").iterdir())) if _IS_LINUX else threading.active_count()
    return Open(threads, frozenset(_descriptors()))


def _descriptors() -> Iterator[tuple[int, int, int]]:
    for path in list(Path("/proc/self/fd" if _IS_LINUX else "/dev/fd").iterdir()):
        with contextlib.suppress(OSError):  # the one that read the folder
            found = os.fstat(int(path.name))
            yield int(path.name), found.st_dev, found.st_ino


def has_fork_server() -> bool:
    """Does this system have such a thing?"""
    return "forkserver" in multiprocessing.get_all_start_methods()


@dataclass(slots=True)
class _Served:
    """What the fork server has that was started for us: its process, and the modules."""

    pid: int | None = None
    modules: frozenset[str] = frozenset()


_wanted: set[str] = set()
_served = _Served()


def choose(modules: Sequence[str]) -> None:
    """Say what a new interpreter imports beside what every worker needs. A missing one is passed over.

    A server of ours that lacks some of it, since another run's database needed another driver, is ended if it has nobody:
    else each worker would import that anew, which takes longer than all the rest of its start.
    """
    if not has_fork_server():
        return
    _wanted.update(MODULES, modules)
    is_ours = _served.pid is not None and _any_server._forkserver_pid == _served.pid
    if is_ours and not _wanted <= _served.modules and not multiprocessing.active_children():
        end()
    multiprocessing.set_forkserver_preload(sorted(_wanted))


def started(pid: int) -> None:
    """A launch of ours has started this fork server."""
    _served.pid, _served.modules = pid, frozenset(_wanted)


def fork_server_from_here(modules: Sequence[str], before: Open) -> bool:
    """Fork the fork server from this process. False where that is not safe, or there is one already.

    modules: what workers need beside ``MODULES``; a missing one is passed over. before: what was open when this process was
    known to hold no connection.
    """
    for name in (*MODULES, *modules):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    is_possible = _IS_LINUX and has_fork_server() and _any_server._forkserver_pid is None
    if not is_possible or what_is_open().threads > 1 or not what_is_open().is_within(before):
        return False
    resource_tracker.ensure_running()
    multiprocessing.set_forkserver_preload([])
    plain = _any_util.spawnv_passfds
    _any_util.spawnv_passfds = _forked
    try:
        forkserver.ensure_running()
    except OSError:  # no process or descriptor is free: when workers are started, that is waited for
        return False
    finally:
        _any_util.spawnv_passfds = plain
    return True


def _forked(path: Any, arguments: Sequence[Any], passed: Sequence[int]) -> int:
    """In place of starting an interpreter with ``-c command``: have a copy of this process carry out that command."""
    every = signal.valid_signals()
    held = signal.pthread_sigmask(signal.SIG_BLOCK, every)
    try:
        pid = os.fork()
        if pid == 0:
            _serve(str(arguments[-1]), passed, held)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _serve(command: str, passed: Sequence[int], mask: Any) -> None:
    """Be the fork server, to the end of this process.

    It lives for as long as somebody holds its pipe, whatever signals the group gets: running items are to come to their end.
    """
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _let_go_of_descriptors({0, 1, 2, *passed})
        _any_server.__init__()  # its lock is held by the frames that we are a copy of
        this_is_the_fork_server()
        _show_as_fork_server()
        exec(command, {})  # noqa: S102 - multiprocessing's own, which a new interpreter would be given
    except SystemExit:
        code = 0
    finally:
        os._exit(code)


def _show_as_fork_server() -> None:
    """Have ``ps`` tell it from the parent: its command line, a copy of the parent's, is written over where the kernel reads it.

    It says what a fork server says that is an interpreter of its own, so that whoever looks for one finds either.
    """
    if not _IS_LINUX:
        return
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5): fields 48 and 49, of which 2 are before ")"
    title = next((one for one in TITLES if start and len(one) < end - start), None)
    if title is not None:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, title, len(title))


def _let_go_of_descriptors(kept: set[int]) -> None:
    """What else is open leads nowhere from now on. The numbers stay taken: objects that we have copies of may close them."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number, *_ in list(_descriptors()):
        if number not in kept and number != nowhere:
            os.dup2(nowhere, number, inheritable=False)
    os.close(nowhere)


def end() -> None:
    """End the fork server, which has nobody any more. The next start finds it dead, and makes another one.

    The command calls it at its own end: the last moment of a copy would hold our stderr.
    """
    can_wait = hasattr(os, "waitid")  # not on macOS before Python 3.13; there a server simply stays
    if can_wait and _any_server._forkserver_pid is not None:
        with contextlib.suppress(OSError):
            os.kill(_any_server._forkserver_pid, signal.SIGKILL)
            os.waitid(os.P_PID, _any_server._forkserver_pid, os.WEXITED | os.WNOWAIT)
