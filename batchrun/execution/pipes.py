"""The parent's end of one worker's pipe: whole messages both ways, and nothing that blocks.

send  -> header and pickle, as much as the pipe takes now; the rest when the selector says that it takes more
read  -> what the pipe holds -> whole messages, unpickled in place
"""

from __future__ import annotations

import os
import pickle
import struct
import time
from collections import deque
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

from batchrun.execution.orders import Message

_HEADER = struct.Struct("!i")
_LONG_HEADER = struct.Struct("!Q")
_READ_SIZE = 1 << 18
_MOST_PIECES = 16
LAST_WORDS_S = 1.0


class Channel:
    """Speaks the framing of ``multiprocessing.connection``, which the worker's end uses.

    heard: messages that came in whole, each with its size in bytes; whoever handles them takes them off.
    """

    def __init__(self, connection: Connection) -> None:
        os.set_blocking(connection.fileno(), False)
        self._connection = connection
        self._descriptor = connection.fileno()
        self._outbox: deque[memoryview] = deque()
        self._inbox = bytearray()
        self.heard: deque[tuple[Message, int]] = deque()

    def fileno(self) -> int:
        return self._descriptor

    @property
    def is_behind(self) -> bool:
        """Is there something that the pipe did not take yet?"""
        return bool(self._outbox)

    def send(self, message: Any, tail: bytes = b"") -> None:
        """Send a message, now or when the pipe takes it. To one that is dead it goes nowhere; its sentinel tells.

        tail: bytes behind the pickle, in the same frame, which need not be copied into it.
        """
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        size = len(data) + len(tail)
        header = _HEADER.pack(size) if size <= 0x7FFFFFFF else _HEADER.pack(-1) + _LONG_HEADER.pack(size)
        self._outbox += (memoryview(header), memoryview(data), *([memoryview(tail)] if tail else ()))
        self.write()

    def write(self) -> None:
        """Write what the pipe takes."""
        outbox = self._outbox
        try:
            while outbox:
                written = os.writev(self._descriptor, tuple(islice(outbox, _MOST_PIECES)))
                while outbox and written >= len(outbox[0]):
                    written -= len(outbox.popleft())
                if written:
                    outbox[0] = outbox[0][written:]
        except BlockingIOError:
            pass
        except OSError:
            outbox.clear()

    def read(self) -> bool:
        """Take what the pipe holds. False at its end."""
        try:
            data = os.read(self._descriptor, _READ_SIZE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if data:
            self._inbox += data
            self._cut()
        return bool(data)

    def read_to_the_end(self) -> None:
        """Take a dying worker's last words. It may live a moment longer than what told of its end: so does one whose fork
        server was killed. Another process that holds the pipe open, which a task forked, is not waited for.
        """
        until = time.monotonic() + LAST_WORDS_S
        while self._connection.poll(max(0.0, until - time.monotonic())) and self.read():
            continue

    def _cut(self) -> None:
        """Take whole messages off the front of the inbox."""
        start, end = 0, len(self._inbox)
        with memoryview(self._inbox) as inbox:
            while end - start >= _HEADER.size:
                (size,) = _HEADER.unpack_from(inbox, start)
                body = start + _HEADER.size
                if size == -1:
                    if end - body < _LONG_HEADER.size:
                        break
                    (size,) = _LONG_HEADER.unpack_from(inbox, body)
                    body += _LONG_HEADER.size
                if end - body < size:
                    break
                start = body + size
                with inbox[body:start] as frame:
                    self.heard.append((pickle.loads(frame), size))
        del self._inbox[:start]

    def close(self) -> None:
        self._connection.close()
