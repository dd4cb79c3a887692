"""A TCP proxy before PostgreSQL that counts how often clients wait for an answer.

A client waits once for a Query message, and once for a Sync, whatever it sent before it. (Protocol 3, "Message Formats")
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

from sqlalchemy import make_url

_WAITS = frozenset(b"QS")


class CountingProxy:
    """Serves on a port of its own and leads to the database of ``url``; ``url`` of the proxy is the way in.

    waits: round trips so far, of all its clients. A client that has its answer has been counted.
    """

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.waits = 0
        port = self._listener.getsockname()[1]
        self.url = self._target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

    def __enter__(self) -> Self:
        self._start(self._serve)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for one in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in list(self._threads):
            thread.join(5.0)

    def _start(self, what: object, *arguments: object) -> None:
        thread = threading.Thread(target=what, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((str(self._target.host), int(self._target.port or 5432)))
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open += [client, server]
                self._start(self._upwards, client, server)
                self._start(self._downwards, client, server)

    def _upwards(self, client: socket.socket, server: socket.socket) -> None:
        """What the client says. Its first messages have no type: a request for encryption, if any, and the start-up."""
        rest, has_started = b"", False
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                rest += data
                while message := _first(rest, has_type=has_started):
                    rest = rest[len(message) :]
                    self.waits += has_started and message[0] in _WAITS
                    has_started = has_started or message[4:8] == b"\x00\x03\x00\x00"
                server.sendall(data)
        _shut(server)

    def _downwards(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
        _shut(client)


def _first(data: bytes, *, has_type: bool) -> bytes:
    """The first whole message; empty where there is none yet."""
    head = 1 if has_type else 0
    if len(data) < head + 4:
        return b""
    size = head + int(struct.unpack_from("!I", data, head)[0])
    return data[:size] if len(data) >= size else b""


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
