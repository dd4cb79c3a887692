"""How long each item of an order took, in the worker: noted as it is settled, added up when the order is over.

A span is one item, or several whose times were not taken apart: what is called a million times a second cannot be.
"""

from __future__ import annotations

from heapq import nlargest
from itertools import accumulate
from operator import itemgetter
from time import monotonic

from batchrun.execution.orders import Span, Timing
from batchrun.insight import MOST_SLOW, steps_of


class Stopwatch:
    """Times the items of one order, in the order they are settled. noted: of how many the time is known."""

    def __init__(self) -> None:
        self._last = monotonic()
        self._told = 0
        self.spans: list[Span] = []
        self.noted = 0

    def restart(self) -> None:
        """What was done since the last item is nobody's: a transaction of several that did not hold."""
        self._last = monotonic()

    def note(self, now: float, items: int = 1) -> None:
        """``items`` were settled since the last time."""
        self.spans.append(((now - self._last) / items, items))
        self.noted += items
        self._last = now

    def spread(self, seconds: list[float]) -> None:
        """Items whose tasks took so long each, and that were committed together just now: what is left is shared."""
        now = monotonic()
        rest = max(0.0, now - self._last - sum(seconds)) / max(1, len(seconds))
        self.spans += [(one + rest, 1) for one in seconds]
        self.noted += len(seconds)
        self._last = now

    def take(self) -> list[Span]:
        """The spans since the last time."""
        told, self._told = self._told, len(self.spans)
        return self.spans[told:]

    def timing(self, commit_s: float, waited_s: float) -> Timing:
        """All of it, added up."""
        offsets = accumulate(map(itemgetter(1), self.spans), initial=0)
        slowest = nlargest(MOST_SLOW, zip(map(itemgetter(0), self.spans), offsets, strict=False))
        return Timing(steps_of(self.spans), slowest, commit_s, waited_s)
