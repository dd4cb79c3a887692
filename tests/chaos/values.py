"""What tasks return and raise, but cannot cross to the parent: one item each, and the parent stays slim."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from batchrun import run_parallel
from tests.chaos.controls import NaivePool, slow_item
from tests.chaos.endings import quiet
from tests.chaos.memory import Peak
from tests.chaos.scenario import scenario
from tests.chaos.world import RUN, World, carried_out
from tests.support import oracle
from tests.support.awkward import Exits, RaisesWhenShown, TwoArguments, recursive

RETURNED: dict[str, Callable[[], Any]] = {
    "a lock inside": lambda: {"deep": [threading.Lock()]},
    "recursive": recursive,
    "200 MB": lambda: b"x" * 200_000_000,
    "ends its reader": Exits,
}
RAISED: dict[str, Callable[[], Exception]] = {
    "two arguments": lambda: TwoArguments("a", "b"),
    "a lock in its arguments": lambda: ValueError(threading.Lock()),
    "holds itself": lambda: _with_itself(ValueError("again")),
    "200 MB of text": lambda: ValueError("x" * 200_000_000),
    "ends its reader, in an exception": lambda: ValueError(Exits()),
    "cannot be shown": RaisesWhenShown,
    "bytes that are no text": lambda: ValueError(b"\xff\xfe\x00"),
    "a surrogate": lambda: ValueError("\udcff"),
}


def _with_itself(error: ValueError) -> ValueError:
    error.args = (error, error)
    return error


@dataclass(frozen=True)
class Awkward:
    """The oracle's task; guilty items return or raise what cannot cross."""

    guilty: dict[int, str]

    def __call__(self, session: Session, item: int, ctx: Any) -> Any:
        oracle.work(session, item, ctx.attempt)
        kind = self.guilty.get(item, "")
        if kind in RAISED:
            raise RAISED[kind]()
        return RETURNED[kind]() if kind else item


@scenario("a task returns or raises what cannot cross", dose=1, bound="memory + 50 MB at most")
def values(world: World) -> None:
    """Every kind, so often: once where the values are asked for, and once where they are not."""
    kinds = [*RETURNED, *RAISED] * world.strikes
    items = world.accounts(len(kinds) * 3)
    task = Awkward(dict(zip(world.chance.sample(items, len(kinds)), kinds, strict=True)))
    raises = {item for item, kind in task.guilty.items() if kind in RAISED}
    deadly = {item for item, kind in task.guilty.items() if kind == "ends its reader"}
    peak = Peak()
    run = carried_out(world, task, items, start_method="fork", initializer=quiet)
    grown = peak.grown_mb
    ledger = world.judge(items, failed=len(kinds), quarantined=deadly)
    assert ledger.of("failed") == set(task.guilty) - deadly
    assert {one.item: one.value for one in run.outcomes if one.status == "done"} == {
        item: item for item in items if item not in task.guilty
    }
    world.accounts(len(items))
    peak = Peak()
    report = run_parallel(task, items, world.url, name=RUN, workers=2, start_method="fork", progress=False)
    grown = max(grown, peak.grown_mb)
    ledger = world.judge(items, failed=len(raises))
    assert ledger.of("failed") == raises == {one.item for one in report.failures}
    world.struck("values and exceptions", 2 * len(kinds))
    world.within_memory(grown, "growth of a parent over values")


def raises_two_arguments(url: str, item: int) -> int:
    """The naive item; one raises what the pool's thread cannot read."""
    if item == 7:
        raise TwoArguments("a", "b")
    return slow_item(url, item)


@values.control
def _(world: World) -> str:
    with NaivePool(world, raises_two_arguments) as pool:
        return pool.outcome()
