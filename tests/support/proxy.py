"""A TCP proxy before PostgreSQL that cuts connections: the reply that never comes.

"before"    the COMMIT does not reach the server         nothing is committed, and the client cannot know it
"after"     the server has committed and answered        the client gets the same error
"abandon"   as "before", but the server is not told: its session lives on and holds its locks, as when a network is cut
"query"     a statement inside a transaction is answered, and the answer does not arrive
"connect"   the server has said who it is, and the client does not hear it
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from sqlalchemy import make_url

_BEGIN = b"BEGIN"
_COMMIT = b"COMMIT"
_NAME = b"application_name\x00"
_WORKER = b"batchrun:"
_IN_QUERY = 2
"""A transaction that is to be cut in a query is cut in its first or second after BEGIN."""

_OF_CONNECTIONS = 2
"""Every second connection is cut while it is made; each cut anywhere causes another one."""


class CuttingProxy:
    """Serves on a port of its own and leads to the database of ``url``; ``url`` of the proxy is the way in.

    where: one of the places above, or several. most: so many cuts at each, then none. share: of the transactions that
    are cut at each, by a seeded choice. only: the beginning of the application_name of those that are
    cut; b"" = everybody. cuts, cuts_at: how many there were, in all and by place.
    """

    def __init__(
        self, url: str, where: str | Sequence[str], *, most: int, share: float = 0.4, seed: object = 1, only: bytes = _WORKER
    ) -> None:
        self._target = make_url(url)
        self._where = [where] if isinstance(where, str) else list(where)
        self._most, self._share, self._only = most, share, only
        self._random = random.Random(str(seed))
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.cuts_at: Counter[str] = Counter()
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

    @property
    def cuts(self) -> int:
        return self.cuts_at.total()

    @property
    def is_spent(self) -> bool:
        """Have all cuts been done?"""
        return all(self.cuts_at[place] >= self._most for place in self._where)

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
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open += [client, server]
            link = _Link(client, server, is_chosen=not self._only)
            self._start(self._upwards, link)
            self._start(self._downwards, link)

    def _upwards(self, link: _Link) -> None:
        """What the client says. Messages as short as these come in one piece."""
        with contextlib.suppress(OSError):
            while data := link.client.recv(65536):
                place = self._place(link, data)
                if place == "abandon":
                    _shut(link.client)
                    return
                if place == "before":
                    break
                link.mute = bool(place)
                link.server.sendall(data)
        link.close()

    def _place(self, link: _Link, data: bytes) -> str:
        """Where the connection is cut with this message; "" = not here."""
        if _NAME in data:
            link.is_chosen = data.partition(_NAME)[2].startswith(self._only)
            self._connections += link.is_chosen
            is_next = link.is_chosen and "connect" in self._where and self._connections % _OF_CONNECTIONS == 0
            return self._counted("connect") if is_next else ""
        if not link.is_chosen:
            return ""
        said = data[5:]
        if said.startswith(_BEGIN):
            self._decide(link)
            return ""
        if said.startswith(_COMMIT):
            fate, link.fate = link.fate, ""
            if _BEGIN in said:  # the next transaction, in the same message
                self._decide(link)
            return self._counted(fate) if fate in ("before", "after", "abandon") else ""
        link.queries_left -= 1
        return self._counted("query") if link.fate == "query" and link.queries_left == 0 else ""

    def _decide(self, link: _Link) -> None:
        """What will become of the transaction that begins."""
        link.fate = self._drawn([place for place in self._where if place != "connect"])
        link.queries_left = self._random.randint(1, _IN_QUERY)

    def _downwards(self, link: _Link) -> None:
        """What the server answers; after a cut its answer is awaited, for that is when it has committed, and swallowed."""
        with contextlib.suppress(OSError):
            while data := link.server.recv(65536):
                if link.mute:
                    break
                link.client.sendall(data)
        link.close()

    def _drawn(self, places: Sequence[str]) -> str:
        """One of the places, by chance and while there are cuts left for it; "" = none."""
        with self._lock:
            drawn = self._random.random()
            for number, place in enumerate(places, 1):
                if drawn < number * self._share:
                    return place if self.cuts_at[place] < self._most else ""
            return ""

    def _counted(self, place: str) -> str:
        """Count a cut, unless another connection had the last one meanwhile."""
        with self._lock:
            if self.cuts_at[place] >= self._most:
                return ""
            self.cuts_at[place] += 1
            return place


class _Link:
    """One client's connection and the one it leads to. fate: where its transaction will be cut."""

    def __init__(self, client: socket.socket, server: socket.socket, *, is_chosen: bool) -> None:
        self.client, self.server = client, server
        self.is_chosen = is_chosen
        self.mute = False
        self.fate = ""
        self.queries_left = 0

    def close(self) -> None:
        _shut(self.client)
        _shut(self.server)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
