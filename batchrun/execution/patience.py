"""Waiting for the database: how long between two tries, and what is said meanwhile.

wait(why)  ->  tells the parent, at once and then every few seconds; pauses, longer each time; raises Stopping
begun()    ->  a transaction was opened: what could not be reached is back
done()     ->  a transaction was committed: there is room again, too
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from batchrun.execution.voice import Voice

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""The longest is what a server's return may go unnoticed; a connection a second for each worker is no burden to it."""

TELL_S = 5.0


class Stopping(BaseException):
    """The run is to end while a worker waits for the database. A BaseException, because no task may catch it."""


class Patience:
    """One connection's. pause: waits so many seconds; True = the run is stopping."""

    def __init__(self, pause: Callable[[float], bool], voice: Voice) -> None:
        self._pause = pause
        self._voice = voice
        self._next_s = FIRST_PAUSE_S
        self._told: float | None = None
        self._tries = 0
        self._until_done = False
        self._waits = False  # the item's time stands still
        self.is_calm = True

    def wait(self, why: str, *, until_done: bool = False) -> None:
        """Pause before another try.

        until_done: only a COMMIT shows that it is over, as where there was no room; otherwise a transaction that opens.
        """
        if not self._waits:
            self._voice.waiting()
        self._waits, self.is_calm = True, False
        self._until_done = self._until_done or until_done
        self._tries += 1
        now = time.monotonic()
        if self._tries > 1 and (self._told is None or now - self._told >= TELL_S):  # what one try mends is no news
            self._told = now
            self._voice.away(why)
        if self._pause(self._next_s * random.uniform(0.5, 1.0)):
            raise Stopping
        self._next_s = min(self._next_s * 2, LONGEST_PAUSE_S)

    def begun(self) -> None:
        """The item's own time runs again."""
        if self._waits:
            self._waits = False
            self._voice.began()
        if not self._until_done:
            self.done()

    def done(self) -> None:
        """Whatever was waited for is there."""
        if self._told is not None:
            self._voice.away("")
        if self._waits:
            self._voice.began()
        self._told, self._tries, self._next_s = None, 0, FIRST_PAUSE_S
        self._waits = self._until_done = False
        self.is_calm = True
