"""What a worker's thread tells the parent about itself, between its reports on items."""

from __future__ import annotations

from collections.abc import Callable

from batchrun.execution.orders import Began, Message, Said, Waiting


class Voice:
    """One thread's. order: the order it is at. timed: there is a time limit, so the parent's clock must know of waits."""

    def __init__(self, send: Callable[[Message], None], *, timed: bool) -> None:
        self._send = send
        self._timed = timed
        self.order = 0

    def notice(self, text: str) -> None:
        """A line for people."""
        self._send(Said("WARNING", text))

    def waiting(self) -> None:
        """From now on it is not the item that takes the time."""
        if self._timed:
            self._send(Waiting(self.order))

    def began(self, offset: int = 0) -> None:
        """From now on it is."""
        if self._timed:
            self._send(Began(self.order, offset))
