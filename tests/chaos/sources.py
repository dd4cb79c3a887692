"""Sources that raise, never end, dawdle, are empty, or are closed under the reader: the run can be resumed, and stays slim."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TextIO

import pytest

from batchrun import Report, iter_parallel, run_parallel
from batchrun.errors import JobError
from tests.chaos.controls import FORK, alone, slow_item
from tests.chaos.memory import Peak, resident_kib
from tests.chaos.scenario import scenario
from tests.chaos.world import RUN, World
from tests.support import oracle
from tests.support.oracle import verdict
from tests.support.waiting import wait_until

AHEAD = 2_000
"""So many items would be far too many to take before anybody needs them."""


def numbers(stop: int | None = None, *, raises_at: int | None = None, pause_s: float = 0.0) -> Iterator[int]:
    """0, 1, 2 ...: without end, or until it raises; always the same source in the ledger's eyes."""
    for number in itertools.count():
        if number == stop:
            return
        if number == raises_at:
            raise OSError("the disk is gone")
        if pause_s:
            time.sleep(pause_s)  # work
        yield number


def from_file(file: TextIO) -> Iterator[int]:
    yield from map(int, file)


def options(**more: Any) -> dict[str, Any]:
    return {"name": RUN, "workers": 2, "start_method": "fork", "progress": False, **more}


def finish(world: World, source: Iterable[int], items: range) -> Report:
    """Carry the run on to its end, and judge it."""
    report = run_parallel(oracle.task, source, world.url, **options())
    assert report.status == "done"
    assert report.planned == len(items)
    world.judge(items)
    return report


def raises(world: World) -> None:
    items = world.accounts(120)
    fails_at = world.chance.randrange(len(items))
    with pytest.raises(JobError, match="the disk is gone"):
        run_parallel(oracle.task, numbers(raises_at=fails_at), world.url, **options())
    assert oracle.applied(world.url) == fails_at
    finish(world, numbers(len(items)), items)


def never_ends(world: World) -> None:
    """The caller closes the iterator after some outcomes; the rest of what was cut waits in the ledger."""
    world.accounts(AHEAD)
    source = numbers()
    stream: Any = iter_parallel(oracle.task, source, world.url, **options())
    for _ in range(world.chance.randrange(1, 200)):
        next(stream)
    stream.close()
    taken = next(source, None)
    assert taken is None, "the source was not closed"
    planned = oracle.books(world.url, RUN, range(AHEAD)).counts.planned
    assert planned < AHEAD - 20
    finish(world, numbers(planned + 20), range(planned + 20))


def dawdles(world: World) -> None:
    items = world.accounts(30)
    finish(world, numbers(len(items), pause_s=0.01), items)


def is_empty(world: World) -> None:
    finish(world, iter(()), world.accounts(0))


def is_closed_midway(world: World) -> None:
    items = world.accounts(AHEAD // 2)
    path = world.folder / "numbers"
    path.write_text("".join(f"{item}\n" for item in items))
    with path.open() as file:
        stream = iter_parallel(oracle.task, from_file(file), world.url, **options())
        next(stream)
        file.close()
        with pytest.raises(JobError, match="closed file"):
            list(stream)
    settled = oracle.applied(world.url)
    assert 0 < settled < len(items), settled
    with path.open() as file:
        finish(world, from_file(file), items)


@scenario("a source fails", dose=1, bound="memory + 50 MB at most; resumable")
def sources(world: World) -> None:
    """Every kind, one after the other, each with a run of its own that is carried to its end."""
    peak = Peak()
    for _ in range(world.strikes):
        for fails in (raises, never_ends, dawdles, is_empty, is_closed_midway):
            fails(world)
            world.struck("failing sources")
    world.within_memory(peak.grown_mb, "growth of a parent over sources")


def naive_endless(news: Connection, url: str) -> None:
    """``pool.map`` makes a list of its items first."""
    with FORK.Pool(2) as pool:
        pool.starmap(slow_item, ((url, number) for number in numbers()))


@sources.control
def _(world: World) -> str:
    items = world.accounts(40)
    with alone(naive_endless, world.url) as (pid, _):
        before = resident_kib(pid)
        wait_until(lambda: resident_kib(pid) - before > 50 * 1024, 20.0)
        lost = len(verdict(world.url, items).lost)
    assert lost == len(items), "the control survived: the scenario proves nothing"
    return f"hangs, takes more than 50 MB, loses {lost}"
