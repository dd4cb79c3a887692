"""A server such as healthchecks.io, which notes what it is asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Ping:
    """One request. path: without the query. rid: of the query."""

    path: str
    rid: str
    body: str


@dataclass
class Monitor:
    """answers: codes of the next requests, then 200; 0 = no answer before ``hang_up``."""

    url: str = ""
    pings: list[Ping] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    hang_up: threading.Event = field(default_factory=threading.Event)

    @property
    def paths(self) -> list[str]:
        return [ping.path for ping in self.pings]


@contextmanager
def monitor() -> Iterator[Monitor]:
    """Serve until the block is over."""
    made = Monitor()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = urlsplit(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            made.pings.append(Ping(asked.path, parse_qs(asked.query).get("rid", [""])[0], body))
            code = made.answers.pop(0) if made.answers else 200
            if not code:
                made.hang_up.wait(30)
                return
            self.send_response(code)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}/a-secret-of-the-project"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield made
    finally:
        made.hang_up.set()
        server.shutdown()
        thread.join()
        server.server_close()
