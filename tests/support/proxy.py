"""A TCP proxy before PostgreSQL that cuts a connection at its COMMIT: the reply that never comes.

"before"    the COMMIT does not reach the server      nothing is committed, and the client cannot know it
"after"     the server has committed and answered     the client gets the same error
"abandon"   as "before", but the server is not told: its session lives on and holds its locks, as when a network is cut
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from types import TracebackType
from typing import Self

from sqlalchemy import make_url

_COMMIT = b"COMMIT\x00"
_NAME = b"application_name\x00"
_WORKER = b"batchrun:"


class CuttingProxy:
    """Serves on a port of its own and leads to the database of ``url``; ``url`` of the proxy is the way in.

    where: see above. most: so many cuts, then none. share: of the COMMITs that are cut, by a seeded choice. only: the
    beginning of the application_name of those that are cut; b"" = everybody.
    """

    def __init__(self, url: str, where: str, *, most: int, share: float = 0.4, seed: int = 1, only: bytes = _WORKER) -> None:
        self._target = make_url(url)
        self._where, self._most, self._share, self._only = where, most, share, only
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.cuts = 0
        self.url = self._target.set(host="127.0.0.1", port=self._listener.getsockname()[1]).render_as_string(hide_password=False)

    def __enter__(self) -> Self:
        self._start(self._serve)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._open):
            _shut(one)
        for thread in list(self._threads):
            thread.join(5.0)

    def _start(self, what: object, *arguments: object) -> None:
        thread = threading.Thread(target=what, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection((str(self._target.host), int(self._target.port or 5432)))
            except OSError:
                return
            self._open += [client, server]
            link = _Link(client, server, is_chosen=not self._only)
            self._start(self._upwards, link)
            self._start(self._downwards, link)

    def _upwards(self, link: _Link) -> None:
        """What the client says. A message as short as COMMIT comes in one piece."""
        with contextlib.suppress(OSError):
            while data := link.client.recv(65536):
                if _NAME in data:
                    link.is_chosen = data.partition(_NAME)[2].startswith(self._only)
                if _COMMIT in data and link.is_chosen and self._chosen():
                    if self._where == "abandon":
                        _shut(link.client)
                        return
                    if self._where == "before":
                        break
                    link.mute = True
                link.server.sendall(data)
        link.close()

    def _downwards(self, link: _Link) -> None:
        """What the server answers; after a cut its answer is awaited, for that is when it has committed, and swallowed."""
        with contextlib.suppress(OSError):
            while data := link.server.recv(65536):
                if link.mute:
                    break
                link.client.sendall(data)
        link.close()

    def _chosen(self) -> bool:
        with self._lock:
            if self.cuts >= self._most or self._random.random() > self._share:
                return False
            self.cuts += 1
            return True


class _Link:
    """One client's connection and the one it leads to."""

    def __init__(self, client: socket.socket, server: socket.socket, *, is_chosen: bool) -> None:
        self.client, self.server = client, server
        self.is_chosen = is_chosen
        self.mute = False

    def close(self) -> None:
        _shut(self.client)
        _shut(self.server)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
