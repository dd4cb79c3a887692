"""Cutting: how many items make a chunk, and taking them from the source."""

from __future__ import annotations

from typing import Any

from batchrun.database.failures import is_away, message_of
from batchrun.items import Item
from batchrun.ledger.owner import Busy
from batchrun.sources.source import Reader

TARGET_S = 0.2
"""What a chunk should take: long enough that our share vanishes, short enough that a stop or a death costs little."""

TAIL_S = 0.02
"""What a chunk may always take, however near the end is: smaller ones would only cost."""

SURPRISES = 2
"""How many of its worst recent surprises away from the end a run gives out single items."""

MOST_SURPRISED_S = 2.0
"""An accident that held one chunk up for minutes must not make the rest of the run slow."""

FORGOTTEN_S = 10.0
"""Work after which most of a surprise is forgotten."""

MAX_ITEMS = 1000
MAX_ITEMS_WITHOUT_DATABASE = 10_000
MAX_BYTES = 1 << 20
"""Of a chunk's items, and of their results: what crosses in one piece is held in memory on both sides."""

MAX_BYTES_WITHOUT_DATABASE = 1 << 18
"""Where nothing else is paid for by the chunk. A larger buffer gets fresh memory from the system each time: with 1 MiB items of
1 KiB cost 2.4 times the page faults."""

SMOOTHING = 0.3

GROWTH = 1.2
"""With a database, where a chunk is a row that is locked while its items run: one that is too long costs the most. Below
SHORT of what a chunk should take, it doubles there too: twice of what is short is not long, and each chunk costs a commit."""

SHORT = 0.25

FAST_GROWTH = 2.0
FASTEST_GROWTH, FASTEST_BELOW_S = 8.0, TARGET_S / 20
LEAP, LEAP_BELOW_S = 64.0, TARGET_S / 100
"""For a chunk that took less; the leap only without a database, where a list that commits at once cannot be most of the run.
Where items cost a microsecond, doubling takes as long as the run. After either step a chunk still takes less than it should."""

SHORT_QUEUE_S = 0.004
MOST_QUEUED = 4
"""Chunks that wait at a worker where they are so short that it would have gone through one before the parent gets to run."""

THREADS_PER_QUEUED = 4
"""Of a worker with many threads several end their chunks while the parent naps, and each should find another one waiting: with
one for all, eight threads with items of 20 ms reached 0.92 of what waiting allows, and 32 threads 0.87; so 0.94 and 0.92."""


class ChunkSizer:
    """Adapts the size of chunks to what items take, by a moving average."""

    def __init__(
        self, workers: int, *, has_database: bool, batched: bool = False, most: int | None = None, threads: int = 1
    ) -> None:  # fmt: skip
        """workers: orders that run at once, of which ``threads`` in each process. most: items a chunk may have, if fewer than
        usual.
        """
        usual = MAX_ITEMS if has_database else MAX_ITEMS_WITHOUT_DATABASE
        self._most = usual if most is None else min(usual, most)
        self._most_bytes = MAX_BYTES if has_database else MAX_BYTES_WITHOUT_DATABASE
        self._queues_one = has_database or most is not None
        self._least_queued = max(1, threads // THREADS_PER_QUEUED) if most is None else 1
        self._leaps = not has_database
        self._cautious = has_database and not batched
        self._largest = 0
        self._lanes = max(1, workers) * 2
        self._per_item_s: float | None = None
        self._surprise_s = 0.0
        self._bytes_per_item = 0.0
        self._size = 1
        self._cap: int | None = None

    def allow(self, workers: int, cap: int | None) -> None:
        """From now on there are so many workers' threads, and a chunk has at most ``cap`` items, for the sake of a rate."""
        self._lanes, self._cap = max(1, workers) * 2, cap

    def size(self, remaining: int | None) -> int:
        """Items for the next chunk. remaining: items still to come, None if not known; near the end chunks shrink."""
        size = self._size if self._cap is None else min(self._size, self._cap)
        if self._bytes_per_item:
            size = min(size, max(1, int(self._most_bytes / self._bytes_per_item)))
        if remaining is not None:
            size = min(size, self._near_the_end(remaining))
        return size

    @property
    def chunk_s(self) -> float:
        """What a chunk takes just now, in seconds; 0 where nobody knows. Of heavy items it has fewer than time would allow."""
        return self.size(None) * (self._per_item_s or 0.0)

    @property
    def queued(self) -> int:
        """How many chunks should wait at a worker, so that it never idles. One where each is a row of the ledger, or
        where so many items may be on their way and no more; but of many threads two may end within a nap of the parent's.
        """
        if self._queues_one or not self.chunk_s:
            return self._least_queued
        return max(self._least_queued, min(MOST_QUEUED, int(SHORT_QUEUE_S / self.chunk_s)))

    def _near_the_end(self, remaining: int) -> int:
        """So small that all workers end together; one by one where a slow item among quick ones would keep a whole chunk."""
        left_s = remaining * (self._per_item_s or 0.0) * 2 / self._lanes
        if self._surprise_s > TARGET_S and left_s < SURPRISES * self._surprise_s:
            return 1
        return max(1, remaining // self._lanes, self._fitting(TAIL_S))

    def _fitting(self, seconds: float) -> int:
        """Items that take so long; 0 where nobody knows."""
        if self._per_item_s is None:
            return 0
        return int(seconds / self._per_item_s) if self._per_item_s > 0 else self._most

    def learn(self, items: int, busy_s: float) -> None:
        """A chunk of so many items took so long."""
        if items < 1:
            return
        per_item = busy_s / items
        known = self._per_item_s
        faded = self._surprise_s * SMOOTHING ** (busy_s / FORGOTTEN_S)
        surprise_s = busy_s - items * (per_item if known is None else known)
        self._surprise_s = max(faded, min(surprise_s, MOST_SURPRISED_S))
        weight = max(SMOOTHING, 1 - self._largest / items)  # one that is larger than all before it says more than they do
        self._largest = max(self._largest, items)
        self._per_item_s = per_item if known is None else known + weight * (per_item - known)
        fits = self._fitting(TARGET_S)
        if items >= self._size or fits < self._size:
            self._size = max(1, min(fits, self._grown(busy_s), self._most))

    def _grown(self, busy_s: float) -> int:
        """The most that the next step up may be."""
        if self._cautious:
            growth = FAST_GROWTH if busy_s < TARGET_S * SHORT else GROWTH
        else:
            growth = FASTEST_GROWTH if busy_s < FASTEST_BELOW_S else FAST_GROWTH
            growth = LEAP if self._leaps and busy_s < LEAP_BELOW_S else growth
        return max(self._size + 1, int(self._size * growth))

    def weigh(self, items: int, size_bytes: int) -> None:
        """Items of a chunk, or results, weighed so much; huge ones make small chunks."""
        per_item = size_bytes / max(1, items)
        self._bytes_per_item = max(per_item, self._bytes_per_item * 0.9)


class Feed:
    """Takes items from a source's reader up to a limit, a piece for each chunk. Knows when there is no more."""

    def __init__(self, reader: Reader | None, *, limit: int | None, total: int | None, taken: int = 0) -> None:
        self._reader = reader
        self._limit = limit
        self._total = total if limit is None else limit if total is None else min(total, limit)
        self.taken = taken
        self.error: BaseException | None = None
        self.exhausted = reader is None
        self.ends: list[Any] = []
        """Where the source stood behind each piece of the last ``take``."""

    @property
    def total(self) -> int | None:
        """How many items there will be, as far as anybody knows."""
        if self.exhausted:
            return self.taken
        return None if self._total is None else max(self._total, self.taken)

    @property
    def cursor(self) -> Any:
        return self._reader.cursor if self._reader else None

    def take(self, sizer: ChunkSizer, pieces: int) -> list[list[Item]]:
        """Up to so many pieces of the sizer's size. An error of the source ends it and is kept in ``error``.

        Raises Busy while the source's database is away.
        """
        taken: list[list[Item]] = []
        self.ends = []
        while len(taken) < pieces and not self.exhausted:
            try:
                piece = self._piece(sizer)
            except Busy:
                if taken:
                    break  # record these first; the next call meets the same trouble
                raise
            if not piece:
                break
            taken.append(piece)
            self.ends.append(self.cursor)
            self.taken += len(piece)
        return taken

    def _piece(self, sizer: ChunkSizer) -> list[Item]:
        assert self._reader is not None
        wanted = sizer.size(None if self._total is None else max(0, self._total - self.taken))
        if self._limit is not None:
            wanted = min(wanted, self._limit - self.taken)
        try:
            piece = self._reader.take(wanted) if wanted > 0 else []
            self.exhausted = self._reader.exhausted or wanted <= 0
        except Exception as error:  # the user's code: the run stops cleanly and the caller is told
            if is_away(error):
                raise Busy(" ".join(message_of(error).split()), away=True) from None
            self.error = error
            self.exhausted = True
            return []
        return piece

    def close(self) -> None:
        if self._reader:
            self._reader.close()
