"""The forecast of a dry run: what it makes of known costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchrun.forecast import Item, Setting, expected, repaired, speed
from batchrun.items import ItemError, Outcome, OutcomeStatus
from batchrun.rehearsal import Costs, Line, Measured, Rehearsal

SETTING = Setting(
    workers=2, threads=1, cores=4, shares_cores=True, one_writer=False, per_item=True, batched=False, reads=False, parent_s=0.0,
    item_bytes=0.0, start_s=0.5,
)  # fmt: skip


def order(items: int, wall_s: float, **changes: object) -> Measured:
    """What a worker measured of an order that computed half of its time."""
    made = Measured(1, items, wall_s, 0.0, wall_s / 2, 0.0, 0.0, 0.0, wall_s, items, items, {-80: items}, (), 0, 0, False)
    return made._replace(**changes)  # type: ignore[arg-type]


def costs(*orders: Measured) -> Costs:
    made = Costs()
    for one in orders:
        made.add(one)
    return made


def test_waiting_scales_with_the_workers_and_computing_with_the_cores() -> None:
    waits, computes = Item(0.1, 0.0, 0.0, 0.1), Item(0.1, 0.1, 0.0, 0.1)
    assert [round(speed(waits, SETTING, workers)) for workers in (1, 2, 4, 8)] == [10, 20, 40, 80]
    assert [round(speed(computes, SETTING, workers)) for workers in (1, 2, 4, 8)] == [10, 20, 40, 40]


def test_the_parent_works_ahead_and_counts_only_where_the_cores_are_busy_or_it_is_the_slowest() -> None:
    computes, ahead = Item(0.1, 0.1, 0.0, 0.1), replace(SETTING, parent_s=0.05, cores=2)
    assert speed(computes, ahead, 1) == pytest.approx(10)
    assert speed(computes, ahead, 2) == pytest.approx(2 / 0.15)
    assert speed(Item(0.001, 0.001, 0.0, 0.0), replace(ahead, cores=64), 8) == pytest.approx(20)


def test_threads_wait_beside_each_other_but_compute_in_turn() -> None:
    threads = replace(SETTING, threads=8, cores=64)
    assert round(speed(Item(0.1, 0.0, 0.0, 0.0), threads, 1)) == 80
    assert speed(Item(0.1, 0.05, 0.0, 0.0), threads, 1) == pytest.approx(20, rel=0.01)


def test_sqlite_has_one_writer_however_many_workers_there_are() -> None:
    setting = replace(SETTING, one_writer=True)
    assert speed(Item(0.1, 0.0, 0.0, 0.1), setting, 8) == pytest.approx(10)
    assert speed(Item(0.1, 0.0, 0.0, 0.05), setting, 8) == pytest.approx(20, rel=0.05)


def test_half_of_the_time_computing_on_one_core_is_at_most_twice_as_fast() -> None:
    found = [repaired(workers, 0.05, 0.05, 1) for workers in (1, 2, 4, 64)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(10)
    assert found[-1] == pytest.approx(20)


def test_the_cost_of_an_order_is_told_from_that_of_its_items() -> None:
    line = Line()
    for items in (1, 2, 5, 10, 20):
        line.add(items, 0.01 + items * 0.001)
    assert line.at(1) == pytest.approx(0.011)
    assert line.at(1000) == pytest.approx(0.00101)


def test_the_forecast_counts_start_commit_and_the_whole_source() -> None:
    orders = [order(10, 0.1, cpu_s=0.0, commits=(0.005,)) for _ in range(5)]
    found = {one.workers: one for one in expected(costs(*orders), SETTING, 1000)}
    assert found[1].duration_s == pytest.approx(0.5 + 1000 * 0.015, rel=0.02)
    assert found[8].duration_s == pytest.approx(0.5 + 1000 * 0.015 / 8, rel=0.02)


def test_what_else_keeps_the_machine_busy_is_taken_to_go_on() -> None:
    quiet = [order(10, 0.1) for _ in range(5)]
    busy = [order(10, 0.2, queued_s=0.1) for _ in range(5)]
    free, held = (expected(costs(*orders), SETTING, 1000)[1] for orders in (quiet, busy))
    assert held.per_s == pytest.approx(free.per_s / 2, rel=0.02)


def test_without_a_length_there_is_a_speed_but_no_duration() -> None:
    found = expected(costs(*[order(10, 0.1) for _ in range(5)]), SETTING, None)
    assert all(one.duration_s is None and one.per_s > 0 for one in found)


def test_nothing_measured_makes_no_forecast() -> None:
    assert expected(Costs(), SETTING, 1000) == []


def test_errors_are_counted_by_class_with_an_example() -> None:
    found = Rehearsal()
    for item in range(60):
        kind = "ValueError" if item < 3 else f"Error{item}"
        found.failed(Outcome(item, OutcomeStatus.FAILED, None, ItemError(kind, f"item {item}"), 1))
    assert found.errors["ValueError"].items == 3
    assert found.errors["ValueError"].example.item == 0
    assert found.errors["(other)"].items == 60 - 3 - 49
