"""The line in which outcomes wait for those before them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import chain

import pytest

from batchrun.items import Outcome, OutcomeStatus, done_outcomes
from batchrun.ordering import HELD_BYTES, WINDOW, Line, chunk_limit


def of(*items: int) -> list[Outcome]:
    return list(done_outcomes(items, items, 1))


def items_in(taken: Iterable[Iterable[Outcome]]) -> list[int]:
    return [outcome.item for outcome in chain.from_iterable(taken)]


def room(line: Line) -> bool:
    return line.has_room


def test_what_is_settled_early_waits_for_what_comes_before_it() -> None:
    line = Line()
    line.plan(0, 0, 3)
    line.plan(1, 0, 2)
    line.settle(1, 0, 2, of(3, 4))
    line.settle(0, 1, 2, of(1, 2))
    assert line.take() == []
    line.settle(0, 0, 1, of(0))
    assert items_in(line.take()) == [0, 1, 2, 3, 4]
    assert line.take() == []


@pytest.mark.parametrize("seed", range(20))
def test_in_whatever_pieces_and_order_items_are_settled_they_come_out_in_theirs(seed: int) -> None:
    dice = random.Random(seed)
    line, pieces, seen = Line(), [], list[int]()
    first = 0
    for no in range(20):
        size = dice.randint(1, 30)
        line.plan(no, 0, size)
        cuts = sorted(dice.sample(range(1, size), dice.randint(0, size - 1))) if size > 1 else []
        for low, high in zip([0, *cuts], [*cuts, size], strict=True):
            pieces.append((no, low, list(range(first + low, first + high))))
        first += size
    dice.shuffle(pieces)
    for no, low, items in pieces:
        line.settle(no, low, len(items), of(*items), 100)
        seen += items_in(line.take())
    assert seen == list(range(first))
    assert line.has_room
    assert (line._behind, line._held_bytes) == (0, 0)


def test_of_a_run_that_was_cut_short_the_rest_comes_in_order_without_what_is_missing() -> None:
    line = Line()
    for no in range(3):
        line.plan(no, 0, 3)
    line.settle(2, 0, 3, of(6, 7, 8))
    line.settle(0, 2, 1, of(2))
    line.settle(0, 0, 1, of(0))
    assert items_in(line.take()) == [0]
    assert items_in(line.take_rest()) == [2, 6, 7, 8]
    assert line.take_rest() == []


def test_what_nobody_planned_is_not_held_back() -> None:
    """An open chunk of an earlier call begins behind what that call settled; an item before it comes back as a retry."""
    line = Line()
    line.plan(4, 5, 3)
    line.settle(4, 2, 1, of(42))
    line.settle(1, 0, 1, of(10))
    assert items_in(line.take()) == [42, 10]


def test_an_outcome_of_any_kind_takes_its_place() -> None:
    line = Line()
    line.plan(0, 0, 2)
    failed = Outcome(1, OutcomeStatus.FAILED)
    line.settle(0, 1, 1, (failed,))
    line.settle(0, 0, 1, of(0))
    assert list(chain.from_iterable(line.take())) == [*of(0), failed]


def test_cutting_pauses_when_the_window_is_full_and_goes_on_when_it_moves() -> None:
    line, cut = Line(), 0
    size = chunk_limit(4)
    while room(line):
        for _ in range(4):
            line.plan(cut, 0, size)
            cut += 1
    assert WINDOW * 3 // 4 < cut * size <= WINDOW
    for no in range(1, cut):
        line.settle(no, 0, size, of(*range(size)))
    assert line.take() == []
    assert not room(line)
    line.settle(0, 0, size, of(*range(size)))
    assert len(items_in(line.take())) == cut * size
    assert room(line)


def test_cutting_pauses_when_what_is_held_weighs_too_much() -> None:
    line = Line()
    line.plan(0, 0, 3)
    line.settle(0, 1, 1, of(1), HELD_BYTES)
    assert room(line)
    line.settle(0, 2, 1, of(2), 1)
    assert not room(line)
    line.settle(0, 0, 1, of(0), 1)
    line.take()
    assert room(line)


@pytest.mark.parametrize("orders", [1, 4, 64, 5000])
def test_the_window_holds_what_all_workers_may_have(orders: int) -> None:
    assert chunk_limit(orders) >= 1
    assert chunk_limit(orders) * min(orders, WINDOW // 4) <= WINDOW // 4
