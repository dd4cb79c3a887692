"""Whose is an order that waits at a worker? The parent may take it back until the worker begins it.

    parent  --- the order's number ---> a pipe of its own <--- the worker reads it: it begins the order
                                                          <--- the parent reads it: the order is taken back

Both hold the reading end. A read of a pipe is atomic, so the kernel gives each number to exactly one of them: there is no
lock that somebody who dies could hold, and the worker need not listen, which it cannot while an item runs.
"""

from __future__ import annotations

import os
import struct
from multiprocessing.connection import Connection

_NUMBER = struct.Struct("!q")


class Offers:
    """The parent's side: what one worker was given and has not begun. Numbers grow."""

    def __init__(self, writer: Connection, reader: Connection) -> None:
        os.set_blocking(reader.fileno(), False)  # for the worker's end as well, which is the same pipe's
        os.set_blocking(writer.fileno(), False)
        self._writer, self._reader = writer, reader

    def add(self, order: int) -> None:
        """Call this before the order is sent."""
        os.write(self._writer.fileno(), _NUMBER.pack(order))

    def take_back(self) -> int | None:
        """The number of the first order that the worker has not begun, and now never will; None where there is none."""
        return _next(self._reader)

    def close(self) -> None:
        self._writer.close()
        self._reader.close()


class Claims:
    """The worker's side. Orders come in the order in which their numbers were written."""

    def __init__(self, reader: Connection) -> None:
        self._reader = reader
        self._ahead: int | None = None

    def claim(self, order: int) -> bool:
        """May this order be begun? False where the parent took it back."""
        found = _next(self._reader) if self._ahead is None else self._ahead
        self._ahead = found if found != order else None  # a later order's number: this one's is gone
        return found == order


def _next(reader: Connection) -> int | None:
    try:
        return int(_NUMBER.unpack(os.read(reader.fileno(), _NUMBER.size))[0])
    except BlockingIOError:
        return None
