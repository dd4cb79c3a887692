"""How far an order has come, where a message for each item would cost too much and no ledger keeps the count.

    worker  --- order, settled --->  sixteen bytes of a file that has no name  <--- the parent reads it when the worker is dead

The worker overwrites them after each item that is done: a system call, and nobody wakes up. The kernel keeps the file for as
long as one of the two has it open, whatever becomes of the other.
"""

from __future__ import annotations

import os
import struct
import tempfile
from multiprocessing.connection import Connection

_NOTE = struct.Struct("!qq")

pack_note = _NOTE.pack
"""(order, so many of its items that are done, from its first on) -> a note."""


def nameless_file() -> int:
    """The descriptor of an empty file in memory where the system has such, else on disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("batchrun-tally")
    with tempfile.TemporaryFile(prefix="batchrun-") as file:
        return os.dup(file.fileno())


class Tally:
    """Where one thread of a worker writes its note: ``os.pwrite(tally.descriptor, pack_note(order, settled), tally.at)``."""

    def __init__(self, file: Connection, thread: int = 0) -> None:
        self._file = file  # held, since the descriptor is closed with it
        self.descriptor, self.at = file.fileno(), thread * _NOTE.size


class Tallies:
    """The notes of all threads of one worker, in the parent."""

    def __init__(self, file: Connection) -> None:
        self._file = file

    def read(self) -> dict[int, int]:
        """Order -> items done. Of an order whose note another one's has replaced, messages have told."""
        data = os.pread(self._file.fileno(), os.fstat(self._file.fileno()).st_size, 0)
        return dict(_NOTE.iter_unpack(data))

    def close(self) -> None:
        self._file.close()
