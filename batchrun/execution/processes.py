"""Starting worker processes: forkserver with preloaded modules where there is one, else spawn; fork on request.

The standard library would have a child import the caller's ``__main__`` first. A worker needs nothing of it, since
functions of ``__main__`` travel by value, and importing it would run a script without a main guard again.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.process
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver, resource_tracker, spawn
from multiprocessing.connection import Connection, wait
from typing import Any

from batchrun.errors import BatchrunError
from batchrun.execution import preloading
from batchrun.execution.claims import Offers
from batchrun.execution.starter import STARTER_NAME, Starter
from batchrun.execution.tally import Tallies, nameless_file
from batchrun.execution.worker import worker_main

_START_LOCK = threading.RLock()
_STARTER = Starter()
_OUR_ENDS: set[Connection] = set()
"""The parent's ends of the pipes to all its workers. A forked worker has copies, and closes them: else no pipe would end."""


def _start_anew_in_child() -> None:
    """A forked child may start processes of its own. It is made while the lock is held; and the fork server is not its
    child, which the standard library would take it for, and would live for as long as the child held its pipe.
    """
    global _START_LOCK
    _START_LOCK = threading.RLock()
    server: Any = forkserver._forkserver
    if getattr(server, "_forkserver_pid", None) is not None:
        os.close(server._forkserver_alive_fd)
        server.__init__()


os.register_at_fork(after_in_child=_start_anew_in_child)


def default_start_method() -> str:
    """forkserver: it forks a process that has neither threads nor connections; spawn where it does not exist."""
    return "forkserver" if preloading.has_fork_server() else "spawn"


class Process:
    """One child: what the pool needs of ``multiprocessing.Process``."""

    def __init__(self, inner: Any, server: int | None) -> None:
        self._inner = inner
        self._server = server  # the fork server that made it
        self.pid: int = inner.pid
        self.sentinel: int = inner.sentinel

    def kill(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._inner.kill()

    def has_ended(self, timeout_s: float) -> bool:
        return bool(wait([self.sentinel], timeout_s))

    def exitcode(self) -> int | None:
        """Negative = the signal that killed it; None = not known, because the fork server died and took it along."""
        self._inner.join(1.0)
        code: int | None = self._inner.exitcode
        return None if code == 255 and self._server is not None and _is_dead(self._server) else code

    def close(self) -> None:
        self._inner.join()
        self._inner.close()


class Launcher:
    """Starts workers that all do the same work."""

    def __init__(
        self, method: str | None, folder: str | None, blob: bytes, *, captures_output: bool = False, may_use_sqlite: bool = False,
        preload: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """preload: modules that every worker needs beyond those that all workers need, such as the driver's."""
        self.method = method or default_start_method()
        if self.method not in multiprocessing.get_all_start_methods():
            raise BatchrunError(f"The start method {self.method!r} does not exist on this system.")
        self._may_use_sqlite = may_use_sqlite
        self._folder = folder
        self._blob = blob
        self._captures_output = captures_output
        preloading.choose(preload)

    def launch(self, theirs: Connection, claims: Connection, tally: Connection | None, number: int) -> Process:
        """Start worker ``number``. tally: where it notes how far it is; None = nowhere.

        Raises EOFError or OSError when it cannot be started just now, as when the fork server was killed: the next try
        starts a new one.
        """
        method = self._method_now()
        inherited = method == "fork"
        context: Any = multiprocessing.get_context(method)
        made = context.Process(
            target=_forked_worker if inherited else worker_main,
            args=(theirs, claims, tally, number, self._folder, self._blob, inherited, self._captures_output),
            name=f"batchrun-{number}",
            daemon=False,
        )
        before = _fork_server()
        _STARTER.call(functools.partial(_start, made))
        server = _fork_server() if method == "forkserver" else None
        if server is not None and server != before:
            preloading.started(server)
        return Process(made, server)

    def _method_now(self) -> str:
        """Fork only where it is safe. SQLite keeps in the process which of its locks are held: a copy of that, made while
        another thread writes, waits for ever for locks that nobody will let go.
        """
        return default_start_method() if self.method == "fork" and self._may_use_sqlite and _has_other_threads() else self.method


def _fork_server() -> int | None:
    return getattr(forkserver._forkserver, "_forkserver_pid", None)


def _has_other_threads() -> bool:
    """Threads that may be at work in a database: the starter and tqdm's monitor are not."""
    mine = threading.current_thread()
    return any(
        one is not mine and one.name != STARTER_NAME and not type(one).__module__.startswith("tqdm.")
        for one in threading.enumerate()
    )


def _start(process: Any) -> None:
    with _START_LOCK, without_main_module(), _a_dead_tracker_is_no_news():
        process.start()


@contextlib.contextmanager
def _a_dead_tracker_is_no_news() -> Iterator[None]:
    """Somebody killed the resource tracker, whom we give nothing to track. The standard library starts another one, with a
    warning that only worries, or, where warnings are errors, ends the run.
    """
    tracker: Any = resource_tracker._resource_tracker
    if tracker._fd is None or tracker._check_alive():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "resource_tracker: process died", UserWarning)
        yield


def worker_pipe() -> tuple[Connection, Connection]:
    """The parent's end and the worker's end of a pipe."""
    with _START_LOCK:
        _OUR_ENDS.difference_update([one for one in _OUR_ENDS if one.closed])
        ours, theirs = multiprocessing.Pipe(duplex=True)
        _OUR_ENDS.add(ours)
    return ours, theirs


def claims_pipe() -> tuple[Offers, Connection]:
    """The parent's side of the pipe that says whose an order is, and the worker's end."""
    with _START_LOCK:
        reader, writer = multiprocessing.Pipe(duplex=False)
        theirs = Connection(os.dup(reader.fileno()), writable=False)
        _OUR_ENDS.update((reader, writer))
    return Offers(writer, reader), theirs


def tally_file() -> tuple[Tallies, Connection]:
    """The parent's side of the file in which a worker notes how far it is, and the worker's side."""
    with _START_LOCK:
        ours = Connection(nameless_file())
        theirs = Connection(os.dup(ours.fileno()))
        _OUR_ENDS.add(ours)
    return Tallies(ours), theirs


def _forked_worker(*args: Any) -> None:
    """What a worker started by fork runs first: it lets go of the parent's pipes."""
    while _OUR_ENDS:
        with contextlib.suppress(OSError):
            _OUR_ENDS.pop().close()
    worker_main(*args)


def _is_dead(pid: int) -> bool:
    """Of a child of ours, without reaping it: that is the standard library's to do."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # reaped already


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Have children started by this thread skip the caller's ``__main__``; other threads' children are not touched."""
    plain = spawn.get_preparation_data
    here = threading.get_ident()

    def prepared(name: str) -> dict[str, Any]:
        data: dict[str, Any] = plain(name)
        if threading.get_ident() == here:
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    spawn.get_preparation_data = prepared
    try:
        yield
    finally:
        spawn.get_preparation_data = plain
