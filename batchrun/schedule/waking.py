"""Sleeping until it is time, a child has ended, or a signal asks to end."""

from __future__ import annotations

import contextlib
import signal
import socket
from types import FrameType
from typing import Any, Self

ENDING = ("SIGTERM", "SIGINT", "SIGHUP")


class Waker:
    """Inside its ``with``, signals no longer end the process: they are kept in ``asked``, and wake ``wait``. Main thread only."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._former: dict[int, Any] = {}
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._former_fd = -1

    def __enter__(self) -> Self:
        self._former_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for name in (*ENDING, "SIGCHLD"):
            number = getattr(signal, name)
            if name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup
            self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._former_fd)
        for number, former in self._former.items():
            signal.signal(number, former or signal.SIG_DFL)
        self._reader.close()
        self._writer.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self.asked.append(signal.Signals(number).name)

    def wait(self, most_s: float) -> None:
        """Sleep at most so long; a signal, or the end of a child, ends it. Those before the call count too."""
        self._reader.settimeout(max(0.001, most_s))
        with contextlib.suppress(TimeoutError, BlockingIOError):
            self._reader.recv(4096)
