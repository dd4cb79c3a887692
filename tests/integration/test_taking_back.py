"""A chunk that waits behind a slow item is taken back for a worker that has nothing to do, and its items run once.

The slow items end only when all others have: where nothing were taken back, these runs would wait for ever.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from batchrun import Context, iter_parallel, run_parallel
from batchrun.execution.pool import LocalPool
from tests.support import oracle
from tests.support.crashes import die, once
from tests.support.oracle import assert_exactly_once
from tests.support.waiting import wait_until

ITEMS = range(60)
PATIENCE_S = 60.0


class Slow:
    """Notes each item; one below ``slow`` ends when all the others have been noted. mortal: its worker dies then, once."""

    def __init__(self, folder: Path, slow: int, *, mortal: bool = False) -> None:
        self.folder, self.slow, self.mortal = folder, slow, mortal

    def __call__(self, item: int) -> int:
        if item < self.slow:
            wait_until(lambda: len(self.ran()) >= len(ITEMS) - self.slow, PATIENCE_S, what=lambda: f"{sorted(self.ran())}")
            if self.mortal and once(self.folder, f"died-{item}"):
                die()
        with (self.folder / "ran").open("a") as file:
            file.write(f"{item}\n")
        return item

    def ran(self) -> Counter[int]:
        """Which items ran, how often, but for the slow ones."""
        path = self.folder / "ran"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(int(line) for line in lines if int(line) >= self.slow)


class SlowWrite(Slow):
    """The same with an effect that the oracle judges."""

    def __call__(self, session: Session, item: int, ctx: Context) -> None:  # type: ignore[override]
        oracle.work(session, item, ctx.attempt)
        super().__call__(item)


@pytest.mark.parametrize(("slow", "threads"), [(1, 1), (3, 2)])
def test_what_waits_behind_slow_items_is_run_by_the_others(tmp_path: Path, slow: int, threads: int) -> None:
    task = Slow(tmp_path, slow)
    report = run_parallel(task, ITEMS, workers=2, threads=threads, results=True)
    assert report.results == list(ITEMS)
    assert task.ran() == Counter(range(slow, len(ITEMS)))


@pytest.mark.parametrize(("slow", "threads"), [(1, 1), (3, 2)])
def test_in_a_durable_run_as_well(pg_url: str, tmp_path: Path, slow: int, threads: int) -> None:
    oracle.create(pg_url, ITEMS)
    report = run_parallel(SlowWrite(tmp_path, slow), ITEMS, pg_url, workers=2, threads=threads, name="back")
    assert report.done == len(ITEMS)
    assert_exactly_once(pg_url, "back", ITEMS)


@pytest.mark.parametrize("durable", [False, True])
def test_a_worker_that_dies_after_its_chunk_was_taken_back_costs_the_item_it_ran(
    pg_url: str, tmp_path: Path, durable: bool
) -> None:
    if durable:
        oracle.create(pg_url, ITEMS)
        report = run_parallel(SlowWrite(tmp_path, 1, mortal=True), ITEMS, pg_url, workers=2, name="back")
        assert_exactly_once(pg_url, "back", ITEMS)
    else:
        task = Slow(tmp_path, 1, mortal=True)
        report = run_parallel(task, ITEMS, workers=2)
        assert task.ran() == Counter(range(1, len(ITEMS)))
    assert (report.done, report.failed, report.quarantined) == (len(ITEMS), 0, 0)


def test_orders_that_are_taken_back_all_the_time_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the parent may hand something out it first takes back what it can, from whichever worker it can."""
    taken: list[list[int]] = []
    submit = LocalPool.submit

    def restless(pool: LocalPool, order: object) -> bool:
        for worker in list(pool._workers.values()):
            if len(worker.orders) > 1 and (number := worker.offers.take_back()) is not None:
                back = worker.orders.pop(number)
                worker.clocks.pop(number, None)
                pool._start_clocks(worker)
                taken.append(list(back.items))
                assert submit(pool, back)
        return submit(pool, order)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalPool, "submit", restless)
    log = tmp_path / "ran"

    def task(item: int) -> int:
        with log.open("a") as file:
            file.write(f"{item}\n")
        time.sleep(0.002)  # work: so much that something waits at a worker when the other gets more
        if item % 40 == 0 and once(tmp_path, item):
            os._exit(1)
        return item

    values = [outcome.value for outcome in iter_parallel(task, range(400), workers=2, max_items_per_worker=None)]
    assert sorted(values) == list(range(400))
    assert taken
    ran = Counter(int(line) for line in log.read_text().splitlines())
    again = {item for item, times in ran.items() if times > 1}
    assert {item for item in range(400) if item % 40 == 0} <= again
    assert set(ran) == set(range(400))
