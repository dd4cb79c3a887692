"""What tasks print and log, on its way to the parent, which draws it above its bar. Only for the command line."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Callable

from batchrun.execution.orders import Message, Said
from batchrun.execution.whereabouts import whereabouts
from batchrun.items import item_name

LONGEST_LINE = 64 * 1024
_FORMATTER = logging.Formatter()


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
            item, attempt = place()
            self._send(Said("PRINT", text[start : start + LONGEST_LINE], "", item, attempt, "", time.time()))


class _Records(logging.Handler):
    """Sends log records as plain data; the parent shows them with their level, or writes them as JSON."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(said_of(record))
        except Exception:
            self.handleError(record)


def said_of(record: logging.LogRecord) -> Said:
    """A log record as plain data. Called where it was made: only there it is known which item the thread is at."""
    text = record.getMessage()
    trace = _FORMATTER.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else record.exc_text or ""
    stack = [_FORMATTER.formatStack(record.stack_info)] if record.stack_info else []
    return Said(
        record.levelname, text[:LONGEST_LINE], record.name, *place(), "\n".join(filter(None, [trace, *stack])), record.created
    )


def place() -> tuple[str | int | float | bool | None, int]:
    """The item this thread is at, as it is named, and its attempt; (None, 0) where it is at none."""
    at = whereabouts()
    return (None, 0) if at is None else (item_name(at[0]), at[1])


def capture(send: Callable[[Message], None]) -> None:
    """Redirect this process's prints and logs. What C code writes to descriptor 1 goes to stderr: stdout is for results."""
    os.dup2(2, 1)
    sys.stdout = sys.stderr = _Lines(send)
    root = logging.getLogger()
    root.handlers = [_Records(send)]
    root.setLevel(logging.INFO)
