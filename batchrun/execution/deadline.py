"""Time limits inside a worker: at its deadline an item's statement is cancelled and its task gets an ItemTimeout.

    deadline -> the running statement is cancelled on the server, by a thread
             -> a moment later ItemTimeout is raised in the task: by SIGALRM in the main thread, which also ends a
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
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from batchrun.errors import ItemTimeout

if TYPE_CHECKING:
    from batchrun.database.gate import Gate


HEAD_START_S = 0.05


class Deadline:
    """Guards one thread's items. Its one watching thread sleeps at most a limit at a time, so arming needs no signal."""

    def __init__(self, timeout_s: float | None, *, by_signal: bool, kill_after_s: float = 1.0) -> None:
        self.timeout_s = timeout_s
        self._head_start_s = min(HEAD_START_S, kill_after_s / 4)
        self._by_signal = by_signal and threading.current_thread() is threading.main_thread()
        self._armed: tuple[float, Gate | None, int] | None = None
        self._lock = threading.Lock()
        self._inside: object = None  # what is armed, until its block ends
        self._ended = threading.Event()
        self._watching = False
        self.expired = False
        self._began = 0.0

    @contextlib.contextmanager
    def guard(self, gate: Gate | None) -> Iterator[float | None]:
        """Run a block under the limit; yields its deadline on the monotonic clock, None without a limit.

        Raises ItemTimeout at the end of a block that overran without noticing.
        """
        self.expired = False
        if self.timeout_s is None:
            yield None
            return
        self._began = time.monotonic()
        deadline = self._began + self.timeout_s
        self._armed = self._inside = (deadline, gate, threading.get_ident())
        self._watch()
        try:
            with self._alarm(self.timeout_s + (self._head_start_s if gate else 0.0)):
                yield deadline
        finally:
            self._disarm()
        if self.expired:
            raise self.error()

    def error(self) -> ItemTimeout:
        return ItemTimeout(f"The item's time limit of {self.timeout_s:g} s is over.")

    def has_run(self, share: float) -> bool:
        """Is this share of the limit over since the task began? True also when it has ended and its COMMIT is what runs."""
        return self.timeout_s is not None and time.monotonic() - self._began >= self.timeout_s * share

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._watch_on, name="batchrun-deadline", daemon=True).start()

    def _watch_on(self) -> None:
        assert self.timeout_s is not None
        while True:
            armed = self._armed
            left = self.timeout_s if armed is None else min(self.timeout_s, armed[0] - time.monotonic())
            if left > 0:
                time.sleep(left)
            elif armed is not None:
                self._expire(armed)

    def _expire(self, armed: tuple[float, Gate | None, int]) -> None:
        with self._lock:
            if self._armed is not armed:
                return
            self._armed = None
            self.expired = True
            _, gate, thread_id = armed
            self._ended.clear()
            _cancel(gate)
        if gate is not None:
            self._ended.wait(self._head_start_s)
        with self._lock:
            if self._inside is armed and not self._by_signal:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(ItemTimeout))

    def _disarm(self) -> None:
        with self._lock:
            armed, self._armed, self._inside = self._armed, None, None
            self._ended.set()
            if armed is not None and self.expired:  # the signal was faster than the thread: the statement still runs
                _cancel(armed[1])
            if self.expired and not self._by_signal:  # take back one that has not been delivered yet
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), None)

    @contextlib.contextmanager
    def _alarm(self, after_s: float) -> Iterator[None]:
        if not self._by_signal:
            yield
            return
        previous = signal.signal(signal.SIGALRM, self._raise)
        signal.setitimer(signal.ITIMER_REAL, after_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.expired = True
        raise self.error()


def _cancel(gate: Gate | None) -> None:
    if gate is not None:
        with contextlib.suppress(Exception):  # nothing was running, or the connection is gone: both are fine
            gate.driver.cancel(gate.raw)
