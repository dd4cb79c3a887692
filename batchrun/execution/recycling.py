"""When a worker has done enough, or has grown too much, and is replaced by a new one.

A worker that is full gets no further order, ends what it has, and leaves by itself: nothing is handed back, nobody is
billed, and the others go on meanwhile.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SETTLED_ORDERS = 3
"""A worker's baseline is the most it had after any of its first three orders. Chunks begin with one item, so by then it has
imported what it imports late, holds its connection and has filled its caches, and has not had time to leak much."""


@dataclass(frozen=True, slots=True)
class Limits:
    """items: of one worker; None = no limit. growth: bytes over its baseline; None = no limit."""

    items: int | None = None
    growth: int | None = None


@dataclass(slots=True)
class Life:
    """What one worker has had so far: items assigned to it, orders ended, its memory now and at its baseline in bytes."""

    limits: Limits
    assigned: int = 0
    ended: int = 0
    memory: int = 0
    baseline: int = 0

    def fits(self, items: int) -> bool:
        """May so many items be assigned to it? Any number to one that had none: a chunk cannot be cut again."""
        most = self.limits.items
        return most is None or self.assigned == 0 or self.assigned + items <= most

    def is_full(self) -> bool:
        """Has it been assigned all the items it may have?"""
        return self.limits.items is not None and self.assigned >= self.limits.items

    def grew_too_much(self, memory: int) -> bool:
        """It ended an order, with so much memory."""
        if self.limits.growth is None or memory == 0:
            return False
        self.ended += 1
        self.memory = memory
        if self.ended <= SETTLED_ORDERS:
            self.baseline = max(self.baseline, memory)
            return False
        return memory - self.baseline > self.limits.growth

    def growth_text(self) -> str:
        """For the notice."""
        assert self.limits.growth is not None
        return (
            f"grew from {_mb(self.baseline)} to {_mb(self.memory)} within {self.assigned:,} items, more than max_worker_growth "
            f"({_mb(self.limits.growth)}) allows; it is replaced. Later replacements are not told."
        )


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"


def memory_reader(limits: Limits) -> Callable[[], int]:
    """In the worker: a function that returns this process's resident memory in bytes; 0 where nobody asks.

    Elsewhere than on Linux it is the peak: cheap, and growth shows in it all the same.
    """
    if limits.growth is None:
        return lambda: 0
    statm = Path("/proc/self/statm")
    if statm.exists():
        page = os.sysconf("SC_PAGE_SIZE")
        return lambda: int(statm.read_text().split()[1]) * page
    unit = 1 if sys.platform == "darwin" else 1024
    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
