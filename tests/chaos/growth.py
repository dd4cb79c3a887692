"""Long runs and many runs: neither memory nor descriptors grow."""

from __future__ import annotations

import gc
import os
import threading
from multiprocessing.connection import Connection
from typing import Any

from sqlalchemy.orm import Session

from batchrun import iter_parallel, run_parallel
from tests.chaos.controls import FORK, alone
from tests.chaos.memory import descriptors, resident_kib
from tests.chaos.scenario import scenario
from tests.chaos.world import RUN, World
from tests.support import oracle
from tests.support.oracle import verdict

ALLOWED_KIB = 1.0
"""An item, in the parent and in each worker."""


def held_kib() -> float:
    """What this process has in memory, garbage left out."""
    gc.collect()
    return resident_kib()


def measured(session: Session, item: int, ctx: Any) -> tuple[int, float]:
    """The oracle's task; says who ran it, and how much memory that one has."""
    oracle.work(session, item, ctx.attempt)
    return os.getpid(), resident_kib() if item % 20 == 0 else 0.0


@scenario("many items in one run", dose=20_000, soak=200_000, bound="under 1 KiB an item")
def long_run(world: World) -> None:
    """Measured from a quarter on: caches have filled by then."""
    items = world.accounts(world.strikes)
    settings: dict[str, Any] = {"workers": 2, "start_method": "fork"}
    run_parallel(oracle.task, range(20), world.url, **settings)  # the first run of a process imports and caches
    world.accounts(len(items))
    before, early = descriptors(), 0.0
    workers: dict[int, list[float]] = {}
    for count, outcome in enumerate(iter_parallel(measured, items, world.url, name=RUN, **settings)):
        if count == len(items) // 4:
            early = held_kib()
        pid, kib = outcome.value
        if count >= len(items) // 4 and kib:
            workers.setdefault(pid, []).append(kib)
    measured_items = len(items) * 3 / 4
    grown = {"parent": held_kib() - early} | {f"worker {pid}": seen[-1] - seen[0] for pid, seen in workers.items()}
    assert descriptors() == before
    world.judge(items)
    for who, kib in grown.items():
        assert kib < ALLOWED_KIB * measured_items, f"the {who} grew by {kib:.0f} KiB over {measured_items:.0f} items"
        world.within_memory(kib / 1024, "growth over many items")


def naive_long_run(news: Connection, count: int) -> None:
    """A future an item, kept until the end with its result of 2,000 letters, as one writes it."""
    with FORK.Pool(2) as pool:
        before = resident_kib()
        futures = [pool.apply_async(str.ljust, (str(item), 2_000)) for item in range(count)]
        for future in futures:
            future.get()
        news.send((resident_kib() - before) / count)


@long_run.control
def _(world: World) -> str:
    with alone(naive_long_run, 4_000) as (_, news):
        kib = news.recv()
    assert kib > ALLOWED_KIB, f"{kib:.2f} KiB an item: the control survived, the scenario proves nothing"
    return f"keeps {kib:.1f} KiB an item"


EACH = 20
WAYS: list[dict[str, Any]] = [{"workers": 0}] * 7 + [{"workers": 2, "start_method": "fork"}] * 2 + [{"workers": 1}]


@scenario("many runs in one process", dose=200, soak=2_000, bound="no descriptor more, under 1 KiB an item")
def many_runs(world: World) -> None:
    """Inline, forked and by the default start method; measured from the second round on."""
    runs = world.strikes + len(WAYS)
    items = world.accounts(runs * EACH)
    had: tuple[int, int] = (0, 0)
    early = 0.0
    for number in range(runs):
        if number % (len(WAYS) // 2) == 0:
            gc.collect()  # as often before the measurement begins, so that what garbage took is there to be used again
        if number == len(WAYS):
            had, early = (descriptors(), threading.active_count()), held_kib()
        some = items[number * EACH : (number + 1) * EACH]
        report = run_parallel(oracle.task, some, world.url, name=f"{RUN} {number}", progress=False, **WAYS[number % len(WAYS)])
        assert (report.done, report.ok) == (EACH, True)
    grown = held_kib() - early
    assert (descriptors(), threading.active_count()) == had, "descriptors or threads are left"
    assert verdict(world.url, items).is_exact
    world.judge_leftovers()
    world.struck("runs", runs)
    world.figures["items"] += len(items)
    assert grown < ALLOWED_KIB * EACH * world.strikes, f"the process grew by {grown:.0f} KiB over {world.strikes} runs"
    world.within_memory(grown / 1024, "growth over many runs")


def naive_runs(news: Connection, count: int) -> None:
    """Each run starts a process of its own and keeps it in a list, to look at its exit code later."""
    kept = []
    before = descriptors()
    for _ in range(count):
        process = FORK.Process(target=os.getpid)
        process.start()
        process.join()
        kept.append(process)
    news.send(descriptors() - before)


@many_runs.control
def _(world: World) -> str:
    with alone(naive_runs, 40) as (_, news):
        left = news.recv()
    assert left > 0, "the control survived: the scenario proves nothing"
    return f"leaves {left} descriptors after 40 runs"
