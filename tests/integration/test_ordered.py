"""``iter_parallel(..., ordered=True)``: in the items' order, whatever happens, with a bounded number held back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from batchrun import Context, Retry, iter_parallel
from batchrun.ordering import WINDOW
from tests.support import oracle
from tests.support.crashes import die, once
from tests.support.oracle import assert_exactly_once
from tests.support.waiting import wait_until


def restless(folder: Path, item: int, attempt: int) -> None:
    """What an item does beside its work: now and then it waits to be tried again, dies with its worker, or fails."""
    dice = random.Random(item)
    if dice.random() < 0.02 and attempt == 1:
        raise Retry(after=dice.random() / 5)
    if dice.random() < 0.01 and once(folder, item):
        die()
    if item % 97 == 5:
        raise ValueError(item)


@pytest.mark.parametrize("workers", [0, 2])
def test_outcomes_come_in_the_items_order_whatever_happens_to_items(tmp_path: Path, workers: int) -> None:
    def task(item: int, ctx: Context) -> int:
        if workers:
            restless(tmp_path, item, ctx.attempt)
        elif item % 7 == 0 and ctx.attempt == 1:
            raise Retry(after=0.01)
        return -item

    outcomes = list(iter_parallel(task, range(600), workers=workers, ordered=True))
    assert [outcome.item for outcome in outcomes] == list(range(600))
    assert all(outcome.value == -outcome.item for outcome in outcomes if outcome.status == "done")
    failed = [outcome.item for outcome in outcomes if outcome.status == "failed"]
    assert failed == ([item for item in range(600) if item % 97 == 5] if workers else [])


def test_plain_values_of_quick_items_come_in_order() -> None:
    values = [outcome.value for outcome in iter_parallel(lambda item: item, range(100_000), workers=2, ordered=True)]
    assert values == list(range(100_000))


def test_control_without_it_a_slow_item_comes_after_others(tmp_path: Path) -> None:
    def task(item: int) -> int:
        if item == 0:
            wait_until((tmp_path / "last").exists, 60)
        if item == 99:
            (tmp_path / "last").touch()
        return item

    assert [outcome.item for outcome in iter_parallel(task, range(100), workers=2)] != list(range(100))


@pytest.mark.parametrize("workers", [2, 3])
def test_behind_a_slow_item_a_bounded_number_is_taken_and_no_more(tmp_path: Path, workers: int) -> None:
    """Item 0 ends when three quarters of the window have run; so cutting goes on that far, and never beyond the window."""
    ran = tmp_path / "ran"
    ran.touch()
    taken = seen = worst = 0

    def numbers() -> Iterator[int]:
        nonlocal taken, worst
        for number in range(3 * WINDOW):
            taken += 1
            worst = max(worst, taken - seen)
            yield number

    def task(item: int) -> int:
        if item == 0:
            wait_until(lambda: ran.stat().st_size >= WINDOW * 3 // 4, 120, what=lambda: str(ran.stat().st_size))
        with ran.open("a") as file:
            file.write("x")
        return item

    for outcome in iter_parallel(task, numbers(), workers=workers, ordered=True):
        assert outcome.value == seen
        seen += 1
    assert seen == 3 * WINDOW
    assert WINDOW * 3 // 4 <= worst <= WINDOW


def test_of_a_run_that_halts_everything_settled_comes_once_and_in_order(tmp_path: Path) -> None:
    def task(item: int) -> int:
        if item == 3:
            wait_until(lambda: len(list(tmp_path.iterdir())) >= 20, 60)
            raise ValueError(item)
        (tmp_path / str(item)).touch()
        return item

    outcomes = [outcome.item for outcome in iter_parallel(task, range(10_000), workers=2, ordered=True, max_failures=0)]
    assert outcomes == sorted(set(outcomes))
    assert set(outcomes) >= {int(path.name) for path in tmp_path.iterdir()}
    assert 3 in outcomes
    assert len(outcomes) < 10_000


def test_a_named_run_gives_what_each_call_settled_in_order(database_url: str, tmp_path: Path) -> None:
    items = range(80)
    oracle.create(database_url, items)

    def task(session: Session, item: int, ctx: Context) -> None:
        restless(tmp_path, item, ctx.attempt)
        oracle.work(session, item, ctx.attempt)

    stream = iter_parallel(task, items, database_url, workers=2, name="ordered", ordered=True)
    first = [next(stream).item for _ in range(20)]
    stream.close()  # type: ignore[attr-defined]
    assert first == list(range(20))
    rest = [one.item for one in iter_parallel(task, items, database_url, workers=2, name="ordered", ordered=True)]
    fresh = [item for item in rest if item >= 60]
    assert fresh == sorted(fresh)
    assert len(set(rest)) == len(rest)
    assert_exactly_once(database_url, "ordered", items)
