"""Starting worker processes: forkserver with preloaded modules where there is one, else spawn; fork on request.

The standard library would have a child import the caller's ``__main__`` first. A worker needs nothing of it, since
functions of ``__main__`` travel by value, and importing it would run a script without a main guard again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.process
import os
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, spawn
from multiprocessing.connection import Connection, wait
from typing import Any

from batchrun.errors import BatchrunError
from batchrun.execution.worker import worker_main

PRELOAD = ("batchrun.execution.worker", "sqlalchemy.orm", "sqlalchemy.dialects.sqlite", "psycopg2")
"""What the fork server imports once, so that a worker starts in milliseconds. A missing one is passed over."""

_START_LOCK = threading.Lock()


def default_start_method() -> str:
    """forkserver: it forks a process that has neither threads nor connections; spawn where it does not exist."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


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

    def __init__(self, method: str | None, folder: str | None, blob: bytes, *, captures_output: bool = False) -> None:
        self.method = method or default_start_method()
        if self.method not in multiprocessing.get_all_start_methods():
            raise BatchrunError(f"The start method {self.method!r} does not exist on this system.")
        self._context: Any = multiprocessing.get_context(self.method)
        self._folder = folder
        self._blob = blob
        self._captures_output = captures_output
        if self.method == "forkserver":
            self._context.set_forkserver_preload(list(PRELOAD))

    def launch(self, theirs: Connection, number: int) -> Process:
        """Start worker ``number``. Raises EOFError or OSError when it cannot be started just now, as when the fork
        server was killed: the next try starts a new one.
        """
        inherited = self.method == "fork"
        made = self._context.Process(
            target=worker_main,
            args=(theirs, number, self._folder, self._blob, inherited, self._captures_output),
            name=f"batchrun-{number}",
            daemon=False,
        )
        with _START_LOCK, without_main_module():
            made.start()
        server = getattr(forkserver._forkserver, "_forkserver_pid", None) if self.method == "forkserver" else None
        return Process(made, server)


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


def preload_early() -> None:
    """Start the fork server before the parent's own imports, so that both import at the same time."""
    if default_start_method() == "forkserver":
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        forkserver.ensure_running()
