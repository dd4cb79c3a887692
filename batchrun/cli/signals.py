"""Signals while a run is carried out: the first asks it to end, the second ends it at once, the third leaves at once.

before the run is open   the first leaves by Interrupted; what there is of the run can be resumed; the third leaves at once
then                     stop.request(): running items may finish; again: they are cut off; again: os._exit
after it                 nothing more happens: the run is recorded, only its report is still printed
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchrun.plans import StopRequest

EXIT_CODES = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143}


class Interrupted(BaseException):
    """Raised out of the opening of a run by a signal. exit_code: 128 and the signal's number."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.exit_code = EXIT_CODES[name]


class SignalWatch:
    """Handles SIGINT, SIGTERM and SIGHUP inside a ``with``.

    stop: what to ask. advice: called with nothing, returns the line that says how to go on. keeps: leave the signals
    ignored behind, because the process ends anyway; else the former handlers come back. line: makes a line of the text
    that is said to be stopping.

    A background shell starts programs with SIGINT ignored, so the handlers are set explicitly; SIGHUP alone stays
    ignored where it was, which is what nohup is for.
    """

    def __init__(
        self, stop: StopRequest, advice: Callable[[], str], *, keeps: bool, line: Callable[[str], str] | None = None
    ) -> None:
        self._stop = stop
        self._line = line or above_a_bar
        self._advice = advice
        self._keeps = keeps
        self._former: dict[int, Any] = {}
        self._is_open = self._is_over = self._was_swallowed = False
        self.first: str | None = None
        self.came_late = False
        """A signal came when the run was over, or on the way out: what is still going on may be left off."""

    @property
    def exit_code(self) -> int | None:
        """What the process ends with if the run was interrupted; None without a signal."""
        return EXIT_CODES[self.first] if self.first else None

    def opened(self) -> None:
        """The run is open: from now on it ends by itself when asked."""
        self._is_open = True

    def over(self) -> None:
        """The run is recorded: nothing is left to interrupt."""
        self._is_over = True

    def __enter__(self) -> SignalWatch:
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._note_swallowed
        if threading.current_thread() is threading.main_thread():
            for name in EXIT_CODES:
                number = getattr(signal, name, None)
                if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                    self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_over = True
        sys.unraisablehook = self._unraisable
        for number, former in self._former.items():
            signal.signal(number, signal.SIG_IGN if self._keeps else former or signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self.first = self.first or name
        if self._is_over:
            self.came_late = True
            return
        self._stop.request(name)  # also here: where the exception is swallowed, the run ends as soon as it is open
        if self._stop.level > 2:
            os._exit(EXIT_CODES[self.first])
        if self._is_open:
            if self._stop.level == 1:
                _tell(self._line(f"{name}: finishing what is running; {self._advice()}"))
        elif self._stop.level == 1 or self._was_swallowed:
            self._was_swallowed = False
            raise Interrupted(name)
        else:
            self.came_late = True  # it must not interrupt the way out

    def _note_swallowed(self, unraisable: Any) -> None:
        """A handler may run in a weak reference's callback or in ``__del__``, out of which nothing can be raised."""
        if isinstance(unraisable.exc_value, Interrupted):
            self._was_swallowed = True
        else:
            self._unraisable(unraisable)


def above_a_bar(text: str) -> str:
    """Over what a bar has drawn on its line, and the rest of it cleared."""
    return f"\r{text}\x1b[K" if os.isatty(2) else text


def _tell(line: str) -> None:
    """Write to stderr by the system call alone: a handler may stand in the midst of a write to the stream."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
