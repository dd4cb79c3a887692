"""What a worker writes down beside the mark that rides with an item: failures, retries, skips, spans only read.

Each is one transaction of its own, repeated until the ledger is known to hold it: a lost COMMIT is answered by taking
the same compare-and-swap again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from batchrun.codec import dump_items
from batchrun.database.failures import Meaning, meaning_of
from batchrun.database.gate import MarkMissed
from batchrun.execution.link import Link, Refused, Stopping
from batchrun.items import Item, ItemError, OutcomeStatus
from batchrun.ledger.marks import Corrupt, Fenced, Marks, Spot

RUN_ENDING = (Stopping, Fenced, Corrupt, Refused)
"""Raised through everything: the worker, not the item, is at its end."""

PAUSE_S = 0.05


class Result(NamedTuple):
    """What an attempt came to. state: an OutcomeStatus value, or "retry" with ``after`` seconds to wait."""

    state: str
    error: ItemError | None = None
    after: float = 0.0
    value: object = None


class Row(NamedTuple):
    """An item that gets a row of its own."""

    spot: Spot
    item: Item
    result: Result


class Recorder:
    """Writes to the ledger over one link. read_only: the link's session refuses writes unless told otherwise."""

    def __init__(self, marks: Marks, link: Link, pause: Callable[[float], bool], *, read_only: bool) -> None:
        self._marks = marks
        self._link = link
        self._pause = pause
        self._read_only = read_only

    def settle(self, row: Row, *, partly: bool = False, was_running: bool = False) -> Result:
        """Record an item that is not done. Returns what the ledger holds in the end."""
        spot, result = row.spot, row.result
        while True:
            if was_running:
                mark, rows = self._marks.of_running(spot), [row]
            elif result.state == OutcomeStatus.SKIPPED:
                mark, rows = self._marks.skipping(spot), []
            else:
                mark, rows = self._marks.passing(spot, partly=partly), [row]
            if self._landed(mark, rows, was_running=was_running):
                return result
            found = self.look(spot)
            if found not in ("again", "running"):
                return result if found == result.state else Result(found)
            was_running = found == "running"

    def settle_within(self, row: Row, low: int, high: int) -> bool:
        """A chunk's mark from ``low`` to ``high`` was committed too early, by the item of ``row``: settled is what came
        before it. False when that mark is not there, so that nothing before it was committed.
        """
        landed = self._landed(self._marks.within(row.spot, row.spot.pos + 1, (high,)), [row])
        return landed or self.look(row.spot._replace(pos=low)) != "again"

    def settle_list(self, rows: Sequence[Row]) -> None:
        """A list's mark was committed too early, or its work without one: all of its items are recorded by ``rows``."""
        first, end = rows[0].spot, rows[-1].spot.pos + 1
        if not self._landed(self._marks.within(first, end, (first.pos, end)), rows):
            self.look(first)

    def mark_span(self, spot: Spot, count: int, rows: Sequence[Row]) -> None:
        """Mark ``count`` items that were only read, with a row for each that went wrong."""
        mark = self._marks.of_retry(spot) if spot.retry else self._marks.of_items(spot.no, spot.pos, count)
        while not self._landed(mark, rows):
            if self.look(spot) != "again":
                return

    def begin_outside(self, spot: Spot, item: Item) -> str:
        """transaction="none": write that the item is under way. Returns "" or the state it had already come to."""
        rows = [] if spot.retry else [Row(spot, item, Result("running"))]
        mark = self._marks.running(spot) if spot.retry else self._marks.passing(spot)
        while not self._landed(mark, rows):
            found = self.look(spot)
            if found != "again":
                return "" if found == "running" else found
        return ""

    def end_outside(self, spot: Spot) -> None:
        """transaction="none": write that the item is done. No row changed means that this had landed already."""
        self._landed(self._marks.ending(spot), [])

    def look(self, spot: Spot) -> str:
        """Why did a mark change no row? "again", or the state the item is in. Raises Fenced and Corrupt."""
        while True:
            try:
                self._link.ensure()
                return self._marks.look(self._link.connection, spot)
            except BaseException as error:
                self._recover(error)
            finally:
                if not self._link.is_lost():
                    self._link.settle_down()

    def _landed(self, mark: str, rows: Sequence[Row], *, was_running: bool = False) -> bool:
        """Run one transaction until its COMMIT is answered. False when its mark changed no row."""
        while True:
            try:
                self._write(mark, rows, was_running)
                return True
            except MarkMissed:
                return False
            except BaseException as error:
                self._recover(error)

    def _write(self, mark: str, rows: Sequence[Row], was_running: bool) -> None:
        link = self._link
        gate = link.ensure()
        gate.arm(link.opening(lift_read_only=self._read_only), mark)
        try:
            gate.open()
            gate.final = True
            with link.connection.begin():
                for row in rows:
                    result = row.result
                    after = result.after if result.state == "retry" else None
                    payload = dump_items([row.item])
                    self._marks.write_item(
                        link.connection, row.spot, payload, result.state, result.error, after, was_running=was_running
                    )
            link.patience.done()
        finally:
            if not link.is_lost():
                gate.disarm()
                if self._read_only:
                    link.refuse_writes()
                link.settle_down()

    def _recover(self, error: BaseException) -> None:
        """Make ready for another try, or raise what no other try will mend."""
        if isinstance(error, RUN_ENDING):
            raise error
        lost = self._link.is_lost()
        if lost:
            self._link.drop()
        meaning = meaning_of(error, is_lost=lost, retry_on=())
        if meaning in (Meaning.LOST, Meaning.FULL, Meaning.READ_ONLY):
            self._link.hold(error, meaning)
            return
        if meaning not in (Meaning.RETRY, Meaning.CONFLICT):
            raise error
        if self._pause(PAUSE_S):
            raise Stopping from error
