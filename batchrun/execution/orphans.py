"""No worker outlives the process it works for, whatever that dies of.

    PDEATHSIG      the kernel kills us when the thread that forked us ends: at once, in C code and when stopped too
    a watcher      where there is no such thing: a thread that sees our pipe hang up, or another parent, and kills us
    end of pipe    an idle worker reads it and ends

Programs that a task started are the task's own: they are not ended.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import select
import signal
import sys
import threading
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

LOOK_S = 1.0
"""How often the watcher looks who our parent is; the end of the pipe wakes it at once."""

_PR_SET_PDEATHSIG = 1
_server = os.getpid()
"""Under forkserver this module is imported by the server, so here stands its process id."""


def _spare_the_fork_server_its_end() -> None:
    """Have a fork server that imports this end at once: taking all its modules down takes it a quarter of a second of
    work, in which its workers live on.
    """
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is forkserver.main.__code__:
            atexit.register(os._exit, 0)


_spare_the_fork_server_its_end()


def this_is_the_fork_server() -> None:
    """To be called in a fork server that is a copy of a process which had this module already."""
    global _server
    _server = os.getpid()


def guard_against_orphanhood(connection: Connection, *, inherited: bool) -> None:
    """Die with the parent. inherited: started by fork. To be called first thing in a worker's main thread.

    Under forkserver our parent is the fork server, which lives for as long as anybody holds its pipe: we let our copy
    go, so that the caller's death ends it, and its death us.
    """
    parent = _expected_parent(inherited)
    _let_go_of_fork_server()
    if not die_with_parent():
        watch(connection)
    if parent is not None and os.getppid() != parent:  # it died before the kernel knew that we want to be told
        os._exit(1)


def die_with_parent() -> bool:
    """Ask the kernel to kill us when the thread that forked us ends. False where it cannot do that."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0)


def watch(connection: Connection) -> None:
    """Start a thread that kills this process when its parent is gone.

    It needs the interpreter's lock: a task that holds it in C code ends with that code.
    """
    descriptor, parent = os.dup(connection.fileno()), os.getppid()
    threading.Thread(target=_watch, args=(descriptor, parent), name="batchrun-watcher", daemon=True).start()


def _watch(descriptor: int, parent: int) -> None:
    poll = select.poll()
    poll.register(descriptor, 0)  # no data, only the hang-up, which is always told
    while os.getppid() == parent and not poll.poll(LOOK_S * 1000):
        continue
    os.kill(os.getpid(), signal.SIGKILL)


def _expected_parent(inherited: bool) -> int | None:
    """Who forked us; None = not known."""
    if not inherited and _has_fork_server():
        return _server if os.getpid() != _server else None
    caller = multiprocessing.parent_process()
    return None if caller is None else caller.pid


def _has_fork_server() -> bool:
    """Were we made by a fork server? Then we have its pipe, but it is no child of ours."""
    server: Any = forkserver._forkserver
    return getattr(server, "_forkserver_alive_fd", None) is not None and getattr(server, "_forkserver_pid", None) is None


def _let_go_of_fork_server() -> None:
    server: Any = forkserver._forkserver
    if _has_fork_server():
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None
