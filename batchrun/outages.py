"""The database is away, full or read-only: one line about it every few seconds, one when it is back, and patience.

a worker says Away ----+
the source's reading --+--> heard(who, why)  ->  Notice, at most every TELL_S; when the last of them is over, one more
the ledger's writing --+
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import DBAPIError

from batchrun.database.failures import Meaning, is_away, meaning_of
from batchrun.errors import DatabaseError
from batchrun.events import Event, Notice
from batchrun.ledger.owner import Busy

TELL_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0

INSIST_S = 60.0
"""How long opening a run waits for what an older owner left (its sessions, its workers' transactions), or for a restart."""

SOURCE, LEDGER = -1, -2
"""Who waits, beside the numbers of workers."""


class Outages:
    """What the parent knows of who waits for the database."""

    def __init__(self, emit: Callable[[Event], None], redact: Callable[[str], str]) -> None:
        self._emit = emit
        self._redact = redact
        self._waiting: set[int] = set()
        self._since = 0.0
        self._told = False
        self._told_at = -TELL_S
        self._pause_s = FIRST_PAUSE_S
        self._next_try = 0.0

    def heard(self, who: int, why: str) -> None:
        """Someone waits, and why; or, with an empty text, waits no longer."""
        if not why:
            self.over(who)
            return
        now = time.monotonic()
        self._since = self._since if self._waiting else now
        self._waiting.add(who)
        if now - self._told_at >= TELL_S:
            self._told, self._told_at = True, now
            self._emit(Notice("WARNING", f"The database is not there for us just now; waiting for it: {self._redact(why)}"))

    def over(self, who: int) -> None:
        """It waits no longer, or is dead."""
        if who in (LEDGER, SOURCE):
            self._pause_s, self._next_try = FIRST_PAUSE_S, 0.0
        if who not in self._waiting:
            return
        self._waiting.discard(who)
        if not self._waiting and self._told:
            self._told = False
            waited = time.monotonic() - self._since
            self._emit(Notice("WARNING", f"The database is back after {waited:.0f} s; the run goes on."))

    def met(self, who: int, busy: Busy) -> None:
        """A statement of the parent's own found it away."""
        self.heard(who, str(busy))
        self._next_try = time.monotonic() + self._pause_s
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)

    def is_waiting(self, who: int) -> bool:
        return who in self._waiting

    def pause_left_s(self) -> float:
        """Seconds until the parent itself may try again; 0 = now."""
        return max(0.0, self._next_try - time.monotonic())

    def check(self) -> None:
        """Raise Busy while the parent's pause is not over."""
        if self._next_try and self.pause_left_s():
            raise Busy("pausing")


def insistently(step: Callable[[], Any], again: Callable[[], Any] | None = None) -> Any:
    """Repeat a step of opening a run while the database is away or the ledger busy: zombies of an older owner end soon.

    Raises DatabaseError when that takes too long, and at once where the server takes no writes.
    """
    until = time.monotonic() + INSIST_S
    while True:
        try:
            return step()
        except (Busy, DBAPIError) as busy:
            _refuse_hopeless(busy)
            if time.monotonic() > until:
                raise DatabaseError(f"The ledger could not be written for {INSIST_S:.0f} s: {busy}") from None
            logging.getLogger("batchrun").debug("the ledger is busy: %s", busy)
            time.sleep(0.2 if isinstance(busy, DBAPIError) or busy.away else 0.02)
            if again:
                insistently(again)


def _refuse_hopeless(busy: Busy | DBAPIError) -> None:
    if isinstance(busy, Busy):
        if busy.read_only:
            raise read_only_server(str(busy)) from None
        return
    meaning = meaning_of(busy, is_lost=False, retry_on=())
    if meaning is Meaning.READ_ONLY:
        raise read_only_server(str(busy.orig)) from None
    if meaning is not Meaning.RETRY and not is_away(busy):
        raise busy


def read_only_server(said: str = "") -> DatabaseError:
    """The error of a run that must be recorded on a server that takes no writes."""
    detail = f": {' '.join(said.split())}" if said else ""
    return DatabaseError(
        f"The database is read-only, so the run cannot be recorded in it{detail}. It is a replica, or "
        "default_transaction_read_only is on: give the primary's URL, or all hosts with target_session_attrs=read-write."
    )
