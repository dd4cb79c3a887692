"""How a run is kept account of: durably, in the ledger, or not at all. The runner speaks to both in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from batchrun.codec import UNSTORABLE, Unstorable, dump_items, key_text, load_items
from batchrun.execution.orders import Order
from batchrun.items import Item, ItemError
from batchrun.ledger import requests
from batchrun.ledger.marks import Spot
from batchrun.ledger.owner import Owner, asking
from batchrun.ledger.reading import Reading
from batchrun.ledger.records import Billed, Fate
from batchrun.ledger.requests import Request
from batchrun.runs import Counts, RunStatus

DEATHS_TO_QUARANTINE = 3
KEY_LENGTH = 40


class Known(NamedTuple):
    """The order's first ``settled`` items are settled. fates: offset -> what became of those that are not simply done."""

    settled: int
    fates: dict[int, Fate]


class Book(Protocol):
    """What the runner asks. Everything may raise Busy, and is then asked again."""

    run: str
    durable: bool

    def cut(self, no: int, pieces: Sequence[list[Item]], frontiers: Sequence[Any]) -> None:
        """Record chunks before they are sent. frontiers: where the source stands behind each."""

    def seal(self) -> None:
        """The source is exhausted."""

    def release(self, worker: int) -> None:
        """A worker died: end what it left on the server."""

    def known(self, order: Order) -> Known:
        """What is certain of the order's items, whatever was reported of them."""

    def bill(self, order: Order, error: ItemError) -> Billed:
        """Count a death against the order's current item; ``pos`` is relative to the chunk."""

    def cut_off(self, order: Order, offset: int, state: str) -> None:
        """transaction="none": this item was under way when its worker died."""

    def overran(self, order: Order, error: ItemError, after_s: float | None) -> bool:
        """The order's current item was killed for overrunning. False when it had settled after all."""

    def end_chunks(self, numbers: Sequence[int]) -> None:
        """These chunks are through."""

    def beat(self, insight: str = "") -> None:
        """The owner lives. insight: where the time went so far; "" = as it was."""

    def request(self) -> Request | None:
        """What is asked of the run from elsewhere."""

    def tune(self, asked: Request, workers: int) -> None:
        """The options that were asked for hold from now on."""

    def note(self, text: str) -> None:
        """What there is to say of the run while it goes on."""

    def finish(self, status: RunStatus, note: str, elapsed_s: float, insight: str = "") -> None:
        """Write how the run ended."""

    def counts(self, seen: Counts) -> Counts:
        """Where the items stand; ``seen`` is what the runner counted."""


class AnonymousBook:
    """No tables, no memory beyond this call: at-least-once."""

    durable = False

    def __init__(self, run: str) -> None:
        self.run = run

    def cut(self, no: int, pieces: Sequence[list[Item]], frontiers: Sequence[Any]) -> None:
        pass

    def seal(self) -> None:
        pass

    def release(self, worker: int) -> None:
        pass

    def known(self, order: Order) -> Known:
        return Known(order.reached, {})

    def bill(self, order: Order, error: ItemError) -> Billed:
        deaths = (order.deaths if order.reached == 0 else 0) + 1  # those are its first item's
        return Billed(order.pos + order.reached, deaths, quarantined=deaths >= DEATHS_TO_QUARANTINE)

    def cut_off(self, order: Order, offset: int, state: str) -> None:
        pass

    def overran(self, order: Order, error: ItemError, after_s: float | None) -> bool:
        return True

    def end_chunks(self, numbers: Sequence[int]) -> None:
        pass

    def beat(self, insight: str = "") -> None:
        pass

    def request(self) -> Request | None:
        return None

    def tune(self, asked: Request, workers: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def finish(self, status: RunStatus, note: str, elapsed_s: float, insight: str = "") -> None:
        pass

    def counts(self, seen: Counts) -> Counts:
        return seen


class DurableBook:
    """The ledger."""

    durable = True

    def __init__(self, owner: Owner, reading: Reading) -> None:
        self.run = owner.run
        self.owner = owner
        self._reading = reading

    def cut(self, no: int, pieces: Sequence[list[Item]], frontiers: Sequence[Any]) -> None:
        ends = [(key_text(piece[0])[:KEY_LENGTH], key_text(piece[-1])[:KEY_LENGTH]) for piece in pieces]
        texts = [dump_items(piece) for piece in pieces]
        for piece, text in zip(pieces, texts, strict=True):
            if UNSTORABLE in text:  # an item the ledger cannot hold fails now, and not only after a resume
                piece[:] = [own if type(own) is Unstorable else item for own, item in zip(load_items(text), piece, strict=True)]
        self.owner.cut(no, texts, [len(piece) for piece in pieces], ends, frontiers)

    def seal(self) -> None:
        self.owner.seal()

    def release(self, worker: int) -> None:
        self.owner.end_sessions_of(worker)

    def known(self, order: Order) -> Known:
        settled, fates = self.owner.known_retry(_spot(order, 0)) if order.retry else self.owner.known(order.no, order.pos)
        return Known(settled - order.pos, {pos - order.pos: fate for pos, fate in fates.items()})

    def bill(self, order: Order, error: ItemError) -> Billed:
        if order.retry:
            return self.owner.bill_retry(_spot(order, 0), error, DEATHS_TO_QUARANTINE)

        def payload(pos: int) -> str:
            return dump_items([order.items[pos - order.pos]])

        return self.owner.bill(order.no, payload, error, DEATHS_TO_QUARANTINE)

    def cut_off(self, order: Order, offset: int, state: str) -> None:
        self.owner.cut_off(_spot(order, offset), state)

    def overran(self, order: Order, error: ItemError, after_s: float | None) -> bool:
        offset = order.reached
        return self.owner.fail_current(_spot(order, offset), dump_items([order.items[offset]]), error, after_s)

    def end_chunks(self, numbers: Sequence[int]) -> None:
        self.owner.end_chunks(numbers)

    def beat(self, insight: str = "") -> None:
        self.owner.beat(insight)

    def request(self) -> Request | None:
        with asking(), self.owner.engine.connect() as connection:
            return requests.pending(connection, self.owner.tables, self.run)

    def tune(self, asked: Request, workers: int) -> None:
        self.owner.tune(asked, workers)

    def note(self, text: str) -> None:
        self.owner.note(text)

    def finish(self, status: RunStatus, note: str, elapsed_s: float, insight: str = "") -> None:
        self.owner.finish(status, note, elapsed_s, insight)

    def counts(self, seen: Counts) -> Counts:
        with asking():
            return self._reading.counts(self.run)


def _spot(order: Order, offset: int) -> Spot:
    return Spot(order.no, order.pos + offset, order.attempt, order.retry, order.base)
