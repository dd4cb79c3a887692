"""A network of our own before the server: it delays what passes, and counts round trips.

    client -> bytes -> due in half a round trip -> server          and the same way back

In a process of its own: ``python -m benchmarks.speed.relay HOST PORT ROUND_TRIP_MS`` prints its port, answers each line on
stdin with the round trips so far, and ends with the end of stdin. A round trip begins when a client says something after
the server has spoken, or for the first time. ``select`` and not ``epoll``: it alone waits for less than a millisecond.
"""

from __future__ import annotations

import contextlib
import heapq
import select
import socket
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import make_url

ROOT = Path(__file__).parents[2]
PIECE = 1 << 16


class Loop:
    """The relay itself: one thread, all connections."""

    def __init__(self, host: str, port: int, round_trip_ms: float) -> None:
        self._target = (host, port)
        self._delay_s = round_trip_ms / 2000
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._others: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._speaking: set[socket.socket] = set()  # clients whose message nobody has answered yet
        self._due: list[tuple[float, int, socket.socket, bytes]] = []
        self._order = count()
        self.round_trips = 0

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def run(self) -> None:
        """Serve until stdin ends."""
        print(self.port, flush=True)
        while True:
            ready, _, _ = select.select([sys.stdin, self._listener, *self._others], [], [], self._patience())
            for one in ready:
                if one is self._listener:
                    self._accept()
                elif isinstance(one, socket.socket):
                    self._take(one)
                elif not sys.stdin.readline():
                    return
                else:
                    print(self.round_trips, flush=True)
            self._deliver()

    def _patience(self) -> float | None:
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(self._target)
        for one, other in ((client, server), (server, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._others[one] = other
        self._clients.add(client)

    def _take(self, one: socket.socket) -> None:
        """Read a piece and note when it is to arrive; an empty one is the end of the connection, which travels as well."""
        if one not in self._others:
            return
        try:
            data = one.recv(PIECE)
        except OSError:
            data = b""
        if one in self._clients:
            self.round_trips += bool(data) and one not in self._speaking
            self._speaking.add(one)
        else:
            self._speaking.discard(self._others[one])
        arrival = time.monotonic() + self._delay_s
        heapq.heappush(self._due, (arrival, next(self._order), self._others[one], data))
        if not data:
            del self._others[one]

    def _deliver(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, receiver, data = heapq.heappop(self._due)
            with contextlib.suppress(OSError):
                if data:
                    receiver.sendall(data)
                else:
                    receiver.shutdown(socket.SHUT_WR)


class Relay:
    """The relay's process, for a with statement. url: the way to the database of the given URL through it."""

    def __init__(self, url: str, round_trip_ms: float = 0.0) -> None:
        target = make_url(url)
        command = [sys.executable, "-m", "benchmarks.speed.relay", str(target.host), str(target.port), str(round_trip_ms)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.url = target.set(host="127.0.0.1", port=int(self._out.readline())).render_as_string(hide_password=False)

    def round_trips(self) -> int:
        """How many there were so far."""
        self._in.write("\n")
        self._in.flush()
        return int(self._out.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._in.close()
        self._process.wait(10.0)
        self._out.close()


if __name__ == "__main__":
    Loop(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])).run()
