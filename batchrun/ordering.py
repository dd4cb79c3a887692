"""Outcomes in the items' order: what was settled early is held back until all before it is out.

    planned   span, span, span ...     one for each chunk, as it is cut
                ^ the oldest item that is not settled yet holds the line
    settled   released behind it, or held

What is held is bounded: from the oldest item that is not out to the newest that was cut there are at most WINDOW items, and
cutting also pauses while held values weigh more than HELD_BYTES. The item that everybody waits for was cut already, so it
can always run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from batchrun.items import Outcome

WINDOW = 10_000
HELD_BYTES = 64 << 20

Outcomes = Iterable[Outcome]


def chunk_limit(orders: int) -> int:
    """Items that a chunk may have, so that the window holds ``orders`` of them and still a few more."""
    return max(1, WINDOW // 4 // max(1, orders))


@dataclass(slots=True)
class _Span:
    """A chunk's items. next: the position of the first that is not out yet. held: position -> (items, bytes, outcomes)."""

    no: int
    next: int
    end: int
    held: dict[int, tuple[int, int, Outcomes]] = field(default_factory=dict)


class Line:
    """Holds outcomes back until it is their turn. Chunks and positions are those of the run."""

    def __init__(self) -> None:
        self._spans: deque[_Span] = deque()
        self._by_no: dict[int, _Span] = {}
        self._out: list[Outcomes] = []
        self._behind = 0
        self._held_bytes = 0

    @property
    def has_room(self) -> bool:
        """May further items be cut?"""
        return self._behind <= WINDOW - WINDOW // 4 and self._held_bytes <= HELD_BYTES

    def plan(self, no: int, pos: int, items: int) -> None:
        """These items come next, behind all that were planned before."""
        span = self._by_no[no] = _Span(no, pos, pos + items)
        self._spans.append(span)
        self._behind += items

    def settle(self, no: int, pos: int, items: int, outcomes: Outcomes, size_bytes: int = 0) -> None:
        """Items from ``pos`` on have these outcomes. Those of items that nobody planned, which an earlier call left waiting for
        another try, are not held back.
        """
        span = self._by_no.get(no)
        if span is None or pos < span.next:
            self._out.append(outcomes)
            return
        span.held[pos] = (items, size_bytes, outcomes)
        self._held_bytes += size_bytes

    def take(self) -> list[Outcomes]:
        """What may go out now."""
        while self._spans and self._advance(self._spans[0]):
            del self._by_no[self._spans.popleft().no]
        taken, self._out = self._out, []
        return taken

    def _advance(self, span: _Span) -> bool:
        """Let out what is next; True when that was the last of the span."""
        while (found := span.held.pop(span.next, None)) is not None:
            items, size_bytes, outcomes = found
            self._out.append(outcomes)
            span.next += items
            self._behind -= items
            self._held_bytes -= size_bytes
        return span.next >= span.end

    def take_rest(self) -> list[Outcomes]:
        """At the end of a run that was cut short: what is settled behind the gaps, in order."""
        taken = self.take()
        for span in self._spans:
            taken += [outcomes for _, (_, _, outcomes) in sorted(span.held.items(), key=lambda one: one[0])]
        self._spans.clear()
        self._by_no.clear()
        return taken
