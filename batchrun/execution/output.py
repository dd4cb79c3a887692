"""What tasks print and log, on its way to the parent, which draws it above its bar. Only for the command line."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable

from batchrun.execution.orders import Message, Said

LONGEST_LINE = 64 * 1024


class _Lines(io.TextIOBase):
    """A text stream that sends whole lines."""

    encoding = "utf-8"

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # as a text stream must: click finds out what it writes to by trying bytes first
            raise TypeError(f"write() takes a text, not {type(text).__name__}")
        whole, newline, self._rest = (self._rest + text).rpartition("\n")
        if newline:
            self._tell(whole)
        elif len(self._rest) > LONGEST_LINE:
            self.flush_rest()
        return len(text)

    def flush_rest(self) -> None:
        text, self._rest = self._rest, ""
        if text:
            self._tell(text)

    def _tell(self, text: str) -> None:
        for start in range(0, len(text), LONGEST_LINE):
            self._send(Said("PRINT", text[start : start + LONGEST_LINE]))


class _Records(logging.Handler):
    """Sends log records as text; the parent shows them with their level."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        super().__init__()
        self._send = send
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(Said(record.levelname, self.format(record)))
        except Exception:
            self.handleError(record)


def capture(send: Callable[[Message], None]) -> None:
    """Redirect this process's prints and logs. What C code writes to descriptor 1 goes to stderr: stdout is for results."""
    os.dup2(2, 1)
    sys.stdout = sys.stderr = _Lines(send)
    root = logging.getLogger()
    root.handlers = [_Records(send)]
    root.setLevel(logging.INFO)
