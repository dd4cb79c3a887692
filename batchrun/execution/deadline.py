"""Time limits inside a worker: at its deadline an item's statement is cancelled and its task gets an ItemTimeout.

    deadline -> a thread cancels the running statement on the server
             -> a moment later it raises ItemTimeout in the task: by SIGALRM in the main thread, which also ends a
                sleep, else as an asynchronous exception at the next byte code
The moment lets the driver's own error come first: it says what was cancelled, and whether it waited for a lock.
What heeds neither (a loop in C that holds the interpreter's lock) is killed by the parent, ``kill_after`` later.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from batchrun.errors import ItemTimeout

if TYPE_CHECKING:
    from batchrun.database.gate import Gate


HEAD_START_S = 0.05

CLOSE_S = 1.0
"""The watching thread may just be asking a server that does not answer."""


class _Armed(NamedTuple):
    """One block under a limit."""

    deadline: float
    gate: Gate | None
    thread_id: int


class Deadline:
    """Guards one thread's items. Its one watching thread sleeps at most a limit at a time, so arming needs no system call.

    expired: the limit of the present block, or of the last one, is over.
    """

    def __init__(self, timeout_s: float | None, *, by_signal: bool, kill_after_s: float = 1.0) -> None:
        self.timeout_s = timeout_s
        self._head_start_s = min(HEAD_START_S, kill_after_s / 4)
        self._by_signal = by_signal and threading.current_thread() is threading.main_thread()
        self._has_handler = False
        self._armed: _Armed | None = None
        self._lock = threading.Lock()
        self._inside: _Armed | None = None  # what is armed, until its block ends
        self._signalled: _Armed | None = None
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None
        self._over = threading.Event()
        self.expired = False
        self._began = 0.0

    def begin(self, gate: Gate | None) -> float | None:
        """From now on the limit runs, until ``end``. Returns when it is over, on the monotonic clock; None without a limit."""
        self.expired = False
        if self.timeout_s is None:
            return None
        if self._by_signal and not self._has_handler:
            signal.signal(signal.SIGALRM, self._raise)
            self._has_handler = True
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="batchrun-deadline", daemon=True)
            self._watcher.start()
        self._began = time.monotonic()
        deadline = self._began + self.timeout_s
        self._armed = self._inside = _Armed(deadline, gate, threading.get_ident())
        return deadline

    def end(self) -> None:
        """The block has ended, and is not interrupted any more. ``expired`` says whether it overran, also unnoticed."""
        if self.timeout_s is None:
            return
        with self._lock:
            inside, self._armed, self._inside = self._inside, None, None
            if self.expired and inside is not None:
                self._ended.set()
                _set_exception(inside.thread_id, None)  # take back one that has not been delivered yet

    def error(self) -> ItemTimeout:
        return ItemTimeout(f"The item's time limit of {self.timeout_s:g} s is over.")

    def has_run(self, share: float) -> bool:
        """Is this share of the limit over since the task began? True also when it has ended and its COMMIT is what runs."""
        return self.timeout_s is not None and time.monotonic() - self._began >= self.timeout_s * share

    def close(self) -> None:
        """No block will follow. Inline this is the caller's process, where no thread may stay behind."""
        self._over.set()
        if self._watcher is not None:
            self._watcher.join(CLOSE_S)

    def _watch(self) -> None:
        assert self.timeout_s is not None
        left = self.timeout_s
        while not self._over.wait(left):
            armed = self._armed
            left = self.timeout_s if armed is None else max(0.0, min(self.timeout_s, armed.deadline - time.monotonic()))
            if armed is not None and left == 0:
                self._expire(armed)

    def _expire(self, armed: _Armed) -> None:
        with self._lock:
            if self._armed is not armed:
                return
            self._armed = None
            self.expired = True
            self._ended.clear()
            _cancel(armed.gate)
        if armed.gate is not None:
            self._ended.wait(self._head_start_s)
        with self._lock:
            if self._inside is armed:
                self._interrupt(armed)

    def _interrupt(self, armed: _Armed) -> None:
        """Raise ItemTimeout in the block. A task may have left a handler of its own, which the signal must not reach."""
        self._has_handler = self._by_signal and signal.getsignal(signal.SIGALRM) == self._raise
        if self._has_handler:
            self._signalled = armed
            signal.pthread_kill(armed.thread_id, signal.SIGALRM)
        else:
            _set_exception(armed.thread_id, ItemTimeout)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler. It may come late, in the next block even."""
        if self._inside is not None and self._inside is self._signalled:
            raise self.error()


def _set_exception(thread_id: int, kind: type[BaseException] | None) -> None:
    """Have it raised in a thread at its next byte code; None takes back what was not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(kind) if kind else None)


def _cancel(gate: Gate | None) -> None:
    if gate is not None:
        with contextlib.suppress(Exception):  # nothing was running, or the connection is gone: both are fine
            gate.driver.cancel(gate.raw)
