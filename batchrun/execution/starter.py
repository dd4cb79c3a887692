"""A thread that starts processes and never ends.

The kernel kills a worker when the *thread* that forked it ends, not the process. Under fork and spawn a worker that was
started in a thread of a web server's pool would die with that thread, in the middle of an item.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

STARTER_NAME = "batchrun-starter"


class Starter:
    """Calls functions in the main thread if we are in it, else in one thread that lives as long as the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._waiting: queue.SimpleQueue[tuple[Callable[[], object], Future[object]]] = queue.SimpleQueue()
        os.register_at_fork(after_in_child=self._forget)

    def call(self, function: Callable[[], object]) -> None:
        """Call it and wait for its end. Raises what it raises."""
        if threading.current_thread() is threading.main_thread():
            function()
            return
        done: Future[object] = Future()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(self._waiting,), name=STARTER_NAME, daemon=True)
                self._thread.start()
            self._waiting.put((function, done))
        done.result()

    @staticmethod
    def _run(waiting: queue.SimpleQueue[tuple[Callable[[], object], Future[object]]]) -> None:
        while True:
            function, done = waiting.get()
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

    def _forget(self) -> None:
        """In a forked child: the thread is not there, and the lock may have been held."""
        self._lock = threading.Lock()
        self._thread = None
        self._waiting = queue.SimpleQueue()
