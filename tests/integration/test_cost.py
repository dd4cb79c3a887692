"""What an item costs, in what can be counted: round trips, and calls of functions. Seconds are for the benchmarks.

A worker's side runs an order of a few items, and one of more; the difference is the items'. Of calls, batchrun's own are
compared with the table below, which is exact and the same on every machine; all of them together, SQLAlchemy's included,
with a plain Session's in the same process, since those change with its version.

To renew the table on purpose: ``python -m pytest tests/integration/test_cost.py`` names the number that changed; write the
new one into OWN_CALLS, and into the commit's message why it is worth it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

import batchrun
from batchrun.database.gate import Gate
from batchrun.execution import strategies
from tests.support import worker_side
from tests.support.databases import Clones
from tests.support.messages import CountingProxy
from tests.support.worker_side import Plain, Task, WorkerSide, by_driver, in_bulk, reading, writing

FEW, MORE = 4, 12
ITEMS = range(1, MORE + 1)
OURS = str(Path(batchrun.__file__).parent)


@dataclass(frozen=True)
class Mode:
    """One way to run a task. peer: what it is compared with, and how many of its calls it may cost at most."""

    task: Task
    options: dict[str, Any]
    peer: str
    most_of_peer: float


MODES = {
    "item": Mode(writing, {}, "write", 0.98),
    "item, with a time limit": Mode(writing, {"timeout": 60.0}, "write", 0.99),
    "anonymous": Mode(writing, {"named": False}, "write", 0.98),
    "chunk": Mode(writing, {"transaction": "chunk"}, "write", 0.93),
    "batched": Mode(in_bulk, {"batched": True}, "write", 0.05),
    "read": Mode(reading, {}, "read", 1.05),
    "anonymous read": Mode(reading, {"named": False}, "read", 1.05),
    "read_only": Mode(reading, {"read_only": True}, "read", 0.96),
    "anonymous read_only": Mode(reading, {"read_only": True, "named": False}, "read", 0.96),
    "driver": Mode(by_driver, {}, "driver", 0.85),
}
PEERS = {"write": (writing, True), "read": (reading, False), "driver": (by_driver, True)}

OWN_CALLS = {
    "item": 25,
    "item, with a time limit": 31,
    "anonymous": 24,
    "chunk": 12,
    "batched": 2,
    "read": 24,
    "anonymous read": 23,
    "read_only": 19,
    "anonymous read_only": 19,
    "driver": 23,
}
"""Calls of batchrun's own functions per item."""

ROUND_TRIPS = {
    "item": 3,
    "item, with a time limit": 3,
    "anonymous": 3,
    "chunk": 2,
    "batched": 0,
    "read": 2,
    "anonymous read": 2,
    "read_only": 1,
    "anonymous read_only": 1,
    "driver": 3,
}
"""SELECT, UPDATE, and a COMMIT that brings the next item's BEGIN and mark along."""


class Calls:
    """Counts calls in this thread: all of them, and those of batchrun's own functions."""

    def __init__(self) -> None:
        self.every = self.own = 0

    def __call__(self, frame: FrameType, what: str, argument: object) -> None:
        if what == "call":
            self.every += 1
            self.own += frame.f_code.co_filename.startswith(OURS)
        elif what == "c_call":
            self.every += 1


class Cost(NamedTuple):
    """Of one item."""

    round_trips: float
    own: float
    every: float


def run(side: WorkerSide | Plain, amount: int, proxy: CountingProxy) -> Cost:
    """One order's."""
    order: Any = side.order(ITEMS[:amount])
    calls, before = Calls(), proxy.waits
    sys.setprofile(calls)
    try:
        side.run(order)
    finally:
        sys.setprofile(None)
    return Cost(proxy.waits - before, calls.own, calls.every)


def cost_of(side: WorkerSide | Plain, proxy: CountingProxy) -> Cost:
    """The first two orders connect, and fill SQLAlchemy's caches and the driver's."""
    with side:
        _, _, few, more = (run(side, amount, proxy) for amount in (MORE, FEW, FEW, MORE))
    return Cost(*((large - small) / (MORE - FEW) for large, small in zip(more, few, strict=True)))


class Costs(NamedTuple):
    """By mode, and of a plain Session by what is done with it."""

    ours: dict[str, Cost]
    plain: dict[str, Cost]


@pytest.fixture
def costs(request: pytest.FixtureRequest, clones: Clones) -> Iterator[Costs]:
    """Nothing here may depend on the time: no report is sent because some is over, and no garbage is collected."""
    with clones.clone() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategies, "FLUSH_S", float("inf"))
        patch.setattr(strategies, "RECORDED_FLUSH_S", float("inf"))
        patch.setattr(strategies, "BEGAN_S", float("inf"))
        url = clones.server.url(name).replace("postgresql:", f"postgresql+{request.param}:", 1)
        worker_side.create(url, ITEMS)
        gc.disable()
        try:
            with CountingProxy(url) as proxy:
                yield Costs(
                    {mode: cost_of(WorkerSide(proxy.url, how.task, **how.options), proxy) for mode, how in MODES.items()},
                    {peer: cost_of(Plain(proxy.url, task, commits=commits), proxy) for peer, (task, commits) in PEERS.items()},
                )
        finally:
            gc.enable()


@pytest.mark.parametrize("costs", ["psycopg2", "psycopg"], indirect=True)
def test_no_item_costs_more_than_it_did(costs: Costs) -> None:
    """One test, since what is measured is dear, and tests of one module run in several processes."""
    check_round_trips(costs)
    check_own_calls(costs)
    for mode in MODES:
        check_share(costs, mode)


def check_round_trips(costs: Costs) -> None:
    """No more than with a plain Session."""
    found = {mode: cost.round_trips for mode, cost in costs.ours.items()}
    assert found == ROUND_TRIPS, "The round trips of an item have changed, see the head of this file."
    assert [mode for mode, how in MODES.items() if found[mode] > costs.plain[how.peer].round_trips] == []


def check_own_calls(costs: Costs) -> None:
    """Exactly as many as they were."""
    found = {mode: cost.own for mode, cost in costs.ours.items()}
    changed = [f"  {mode}: from {OWN_CALLS[mode]} to {found[mode]:g}" for mode in MODES if found[mode] != OWN_CALLS[mode]]
    assert not changed, (
        "Calls of batchrun's own functions per item have changed. Take out what made them more; if it is worth that, or if "
        "they are fewer, write the new numbers into OWN_CALLS:\n" + "\n".join(changed)
    )


def check_share(costs: Costs, mode: str) -> None:
    """In all no more than a share of a plain Session's calls."""
    found, plain, share = costs.ours[mode].every, costs.plain[MODES[mode].peer].every, MODES[mode].most_of_peer
    assert found <= share * plain, (
        f"{mode}: an item takes {found:g} calls, batchrun's, SQLAlchemy's and the driver's; with a plain Session {plain:g}, of "
        f"which it may be {share:g} times as many, {share * plain:g}. If batchrun's own are as they were, look for what "
        "SQLAlchemy is made to do more; if it must be, renew most_of_peer in MODES."
    )


def test_control_one_more_call_and_one_more_round_trip_are_noticed(clones: Clones, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Gate.check

    def dearer(gate: Gate) -> None:
        plain(gate)
        gate.driver.send(gate.raw, ("SELECT 1",))

    monkeypatch.setattr(strategies, "FLUSH_S", float("inf"))
    monkeypatch.setattr(strategies, "RECORDED_FLUSH_S", float("inf"))
    with clones.clone() as name:
        url = clones.server.url(name)
        worker_side.create(url, ITEMS)
        monkeypatch.setattr(Gate, "check", dearer)
        with CountingProxy(url) as proxy:
            found = cost_of(WorkerSide(proxy.url, writing), proxy)
    assert (found.round_trips, found.own) == (ROUND_TRIPS["item"] + 1, OWN_CALLS["item"] + 1)
