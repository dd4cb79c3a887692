"""How many items make a chunk: the sizer by itself, and in a simulated run in which time costs nothing."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest

from batchrun.chunks import (
    MAX_BYTES,
    MAX_BYTES_WITHOUT_DATABASE,
    MAX_ITEMS,
    MAX_ITEMS_WITHOUT_DATABASE,
    SHORT,
    TARGET_S,
    ChunkSizer,
)

DISPATCH_S = 0.0002
FAST_S, SLOW_S = 0.001, 1.0


@dataclass
class Lane:
    """A simulated worker: what it runs, what waits at it, and when it last ended something."""

    running: list[float] = field(default_factory=list)
    queued: list[list[float]] = field(default_factory=list)
    ended_at: float = 0.0


@dataclass
class Simulated:
    """A run over items that take so many seconds each. The pool's rules: one chunk waits at each worker, and is taken back
    by one that has nothing to do.
    """

    costs: list[float]
    workers: int = 4
    is_total_known: bool = True
    takes_back: bool = True
    sizes: list[int] = field(default_factory=list)

    def run(self, *, has_database: bool = True) -> list[float]:
        """When each worker ended its last chunk."""
        self.sizer = ChunkSizer(self.workers, has_database=has_database)
        self.left = deque(self.costs)
        self.lanes = [Lane() for _ in range(self.workers)]
        self.events: list[tuple[float, int]] = []
        self._fill(0.0)
        while self.events:
            now, number = heapq.heappop(self.events)
            lane = self.lanes[number]
            self.sizer.learn(len(lane.running), sum(lane.running) + DISPATCH_S)
            lane.running, lane.ended_at = [], now
            if lane.queued:
                self._begin(now, number, lane.queued.pop())
            self._fill(now)
        return [lane.ended_at for lane in self.lanes]

    def _begin(self, now: float, number: int, chunk: list[float]) -> None:
        self.lanes[number].running = chunk
        heapq.heappush(self.events, (now + sum(chunk) + DISPATCH_S, number))

    def _fill(self, now: float) -> None:
        for queueing in (False, True):
            for number, lane in enumerate(self.lanes):
                if self.left and (lane.running and not lane.queued if queueing else not lane.running):
                    self._hand(now, number, self._cut())
        for number, lane in enumerate(self.lanes):
            others = [other for other in self.lanes if other.queued]
            if self.takes_back and not lane.running and others:
                self._hand(now, number, others[0].queued.pop())

    def _hand(self, now: float, number: int, chunk: list[float]) -> None:
        lane = self.lanes[number]
        if lane.running:
            lane.queued.append(chunk)
        else:
            self._begin(now, number, chunk)

    def _cut(self) -> list[float]:
        size = self.sizer.size(len(self.left) if self.is_total_known else None)
        chunk = [self.left.popleft() for _ in range(min(size, len(self.left)))]
        self.sizes.append(len(chunk))
        return chunk


def mixed(seed: int, items: int = 20_000) -> list[float]:
    """One item of a hundred takes a thousand times as long as the others."""
    dice = random.Random(seed)
    return [SLOW_S if dice.random() < 0.01 else FAST_S for _ in range(items)]


# ----------------------------------------------------------------------------------------------- all end together


@pytest.mark.parametrize("workers", [2, 8])
@pytest.mark.parametrize("seed", range(12))
def test_a_mixed_load_ends_with_all_workers_busy_to_within_a_second(workers: int, seed: int) -> None:
    ends = Simulated(mixed(seed), workers).run()
    assert max(ends) - min(ends) <= SLOW_S


@pytest.mark.parametrize(("takes_back", "end"), [(True, 10.0), (False, 15.0)])
def test_a_chunk_that_waits_behind_a_slow_item_is_taken_back_by_who_has_nothing_to_do(takes_back: bool, end: float) -> None:
    """Without that it is the last to run, and the other worker idles meanwhile."""
    ends = Simulated([10.0, FAST_S, 5.0], 2, takes_back=takes_back).run()
    assert max(ends) == pytest.approx(end, abs=0.1)


@pytest.mark.parametrize("workers", [2, 8])
def test_an_even_load_ends_within_a_fraction_of_a_chunk(workers: int) -> None:
    simulated = Simulated([0.002] * 20_000, workers)
    ends = simulated.run()
    assert max(ends) - min(ends) <= TARGET_S / 4
    assert max(simulated.sizes) >= 80


def test_a_slow_item_never_holds_up_a_chunk_that_waits_behind_it() -> None:
    """The very first item takes as long as all the others together, and nobody knows how many there are."""
    costs = [20.0, *[0.01] * 2000]
    ends = Simulated(costs, 2, is_total_known=False).run()
    assert min(ends) == pytest.approx(20.0, abs=1.0)
    assert max(ends) == pytest.approx(20.0, abs=1.0)


def test_one_accident_does_not_make_small_chunks_of_the_rest() -> None:
    sizer = ChunkSizer(2, has_database=True)
    for _ in range(60):
        sizer.learn(sizer.size(None), sizer.size(None) * 0.001)
    sizer.learn(200, 600.0)  # somebody held a lock
    for _ in range(60):
        sizer.learn(sizer.size(None), sizer.size(None) * 0.001)
    assert sizer.size(20_000) >= 150


# ------------------------------------------------------------------------------------------------ growth and weight


def grown(sizer: ChunkSizer, per_item_s: float, steps: int) -> list[int]:
    """The sizes of so many chunks, one after the other, of an endless source."""
    sizes = []
    for _ in range(steps):
        sizes.append(sizer.size(None))
        sizer.learn(sizes[-1], sizes[-1] * per_item_s)
    return sizes


def test_where_items_cost_nothing_chunks_of_ten_thousand_come_at_once() -> None:
    sizes = grown(ChunkSizer(2, has_database=False), 0.2e-6, 7)
    assert sizes == [1, 64, 4096, *[MAX_ITEMS_WITHOUT_DATABASE] * 4]


def test_lists_with_a_database_grow_eightfold_and_never_leap() -> None:
    assert grown(ChunkSizer(2, has_database=True, batched=True), 1e-6, 5) == [1, 8, 64, 512, MAX_ITEMS]


def test_with_a_database_a_chunk_doubles_while_it_is_short_and_then_grows_by_a_fifth() -> None:
    sizes = grown(ChunkSizer(2, has_database=True), 1e-3, 60)
    short = [size for size in sizes if size * 1e-3 < TARGET_S * SHORT]
    assert short == [1, 2, 4, 8, 16, 32]
    long = sizes[len(short) :]
    assert long[0] == 64
    assert all(after <= int(before * 1.2) for before, after in itertools.pairwise(long))
    assert long[-1] == 200


def test_with_a_database_a_chunk_never_has_more_than_a_thousand_items() -> None:
    assert max(grown(ChunkSizer(2, has_database=True), 1e-6, 60)) == MAX_ITEMS


def test_a_slow_item_is_its_own_chunk() -> None:
    assert set(grown(ChunkSizer(2, has_database=False), 1.0, 10)) == {1}


def test_chunks_shrink_at_once_when_items_become_slow() -> None:
    sizer = ChunkSizer(2, has_database=False)
    grown(sizer, 1e-6, 10)
    sizer.learn(sizer.size(None), 60.0)
    assert sizer.size(None) <= 200


@pytest.mark.parametrize(
    ("has_database", "size_bytes", "most"),
    [
        (False, 1024, MAX_BYTES_WITHOUT_DATABASE // 1024),
        (True, 2048, MAX_BYTES // 2048),
        (False, 1_000_000, 1),
        (True, 1_000_000, 1),
        (True, 50_000_000, 1),
    ],
)
def test_a_chunk_weighs_no_more_than_it_may_or_is_a_single_item(has_database: bool, size_bytes: int, most: int) -> None:
    sizer = ChunkSizer(2, has_database=has_database)
    sizer.weigh(1, size_bytes)
    assert max(grown(sizer, 0.2e-6, 60)) == most


def test_quick_items_get_no_tiny_chunks_at_the_end() -> None:
    simulated = Simulated([0.2e-6] * 200_000, 2)
    simulated.run(has_database=False)
    assert len(simulated.sizes) < 60


def test_a_first_item_that_imports_something_does_not_hold_up_the_growth() -> None:
    sizer = ChunkSizer(2, has_database=False)
    sizer.learn(1, 0.003)
    sizer.learn(8, 70e-6)
    assert sizer.size(None) == 8 * 64
    sizer.learn(8 * 64, 200e-6)
    assert sizer.size(None) == MAX_ITEMS_WITHOUT_DATABASE


def test_several_short_chunks_wait_at_a_worker_and_one_long_one() -> None:
    sizer = ChunkSizer(2, has_database=False)
    assert sizer.queued == 1  # nobody knows yet
    grown(sizer, 0.08e-6, 8)
    assert sizer.queued == 4
    sizer.learn(10_000, 1.0)
    sizer.learn(10_000, 1.0)
    assert sizer.queued == 1


def test_at_a_worker_with_many_threads_several_chunks_wait() -> None:
    """Several of them end theirs while the parent naps. Not where only so many items may be on their way."""
    assert ChunkSizer(32, has_database=True, threads=16).queued == 4
    assert ChunkSizer(6, has_database=True, threads=3).queued == 1
    assert ChunkSizer(32, has_database=True, threads=16, most=10).queued == 1


@pytest.mark.parametrize("given", [{"has_database": True}, {"has_database": False, "most": 500}])
def test_one_waits_where_each_is_a_row_or_counted(given: dict[str, Any]) -> None:
    sizer = ChunkSizer(2, **given)
    grown(sizer, 0.08e-6, 12)
    assert sizer.queued == 1


def test_what_a_chunk_takes_is_that_of_as_many_items_as_their_weight_allows() -> None:
    """The parent naps for a share of it: for one of a chunk that no worker ever gets, workers would wait."""
    sizer = ChunkSizer(2, has_database=False)
    grown(sizer, 5e-6, 8)
    assert sizer.chunk_s == pytest.approx(MAX_ITEMS_WITHOUT_DATABASE * 5e-6)
    sizer.weigh(100, 100 * 1024)
    assert sizer.chunk_s == pytest.approx(MAX_BYTES_WITHOUT_DATABASE / 1024 * 5e-6)
    assert sizer.queued == 3
