"""What a worker's thread tells the parent about itself, between its reports on items."""

from __future__ import annotations

from collections.abc import Callable

from batchrun.execution.orders import Away, Began, Message, Said, Waiting


class Voice:
    """One thread's. order: the order it is at.

    Waits are told because they are nobody's fault: no time limit runs meanwhile, and a worker that is killed while it
    waits for its turn to write has begun no item that could be billed for it.
    """

    def __init__(self, send: Callable[[Message], None], note: Callable[[int], None] = lambda order: None) -> None:
        self._send = send
        self._note = note
        self.order = 0

    def takes(self, order: int) -> None:
        """The thread is at this order now; noted where the parent can see it though the thread does not answer."""
        self.order = order
        self._note(order)

    def notice(self, text: str) -> None:
        """A line for people."""
        self._send(Said("WARNING", text))

    def away(self, why: str) -> None:
        """The database is waited for; the parent makes one line of what all its workers say. Empty: it is back."""
        self._send(Away(why))

    def waiting(self) -> None:
        """From now on it is not the item that takes the time."""
        self._send(Waiting(self.order))

    def began(self, offset: int = 0) -> None:
        """From now on it is."""
        self._send(Began(self.order, offset))
