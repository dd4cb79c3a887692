"""Where a call goes whose items cost nothing: ``python -m benchmarks.dispatch``.

From the moment when all workers have run their initializer, as in ``python -m benchmarks``: until the first item is settled,
until a chunk of full size is handed out, until the last item is settled, until the call returns with its workers ended. And
the CPU time that the parent and the workers took for it. The median of several calls in one process, without a database.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from batchrun import run_parallel
from batchrun.execution.orders import Order, Settled
from batchrun.execution.pool import Died, Heard, LocalPool
from benchmarks.pages import columns
from benchmarks.speed.trial import arrivals, arrive

WORKERS = 2
HEADS = ("first item", "full chunk", "last item", "returned", "parent's CPU", "a worker's CPU")


def nothing(item: int) -> None:
    """Dispatch is what is left."""


def same(item: bytes) -> bytes:
    """1 KiB there, 1 KiB back."""
    return item


@dataclass
class Watch:
    """What one call's pool does, and when. cpu_s: of the parent and of its workers."""

    first: float = 0.0
    last: float = 0.0
    full: float = 0.0
    largest: int = 0
    cpu_s: list[float] = field(default_factory=list)

    def submitted(self, order: Order) -> None:
        if len(order.items) > self.largest:
            self.largest, self.full = len(order.items), time.monotonic()

    def heard(self, happened: Heard | Died) -> None:
        if isinstance(happened, Heard) and isinstance(happened.message, Settled):
            self.last = time.monotonic()
            self.first = self.first or self.last


def cpu_s(pid: int | str) -> float:
    """CPU seconds of a process so far, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def watch(pool: type[LocalPool], watching: Callable[[], Watch]) -> None:
    """Have every pool tell the watch what it does."""
    submit, wait, close = pool.submit, pool.wait, pool.close

    def submitting(self: LocalPool, order: Order) -> bool:
        watching().submitted(order)
        return submit(self, order)

    def waiting(self: LocalPool, timeout_s: float) -> Iterator[Heard | Died]:
        for happened in wait(self, timeout_s):
            watching().heard(happened)
            yield happened

    def closing(self: LocalPool) -> None:
        if pids := self.pids():
            watching().cpu_s = [cpu_s("self"), statistics.mean(map(cpu_s, pids))]
        close(self)

    pool.submit, pool.wait, pool.close = submitting, waiting, closing  # type: ignore[method-assign]


def one_call(task: Callable[[Any], Any], items: Any, current: list[Watch]) -> list[float]:
    """Milliseconds, as in HEADS."""
    current[0] = seen = Watch()
    with tempfile.TemporaryDirectory() as folder:
        before = cpu_s("self")
        arriving = partial(arrive, folder, WORKERS, 0, 0)
        run_parallel(task, items, workers=WORKERS, results=task is same, initializer=arriving, progress=False)
        returned, began = time.monotonic(), arrivals(folder)[-1]
    moments = [moment - began for moment in (seen.first, seen.full, seen.last, returned)]
    return [seconds * 1000 for seconds in (*moments, seen.cpu_s[0] - before, seen.cpu_s[1])]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dispatch", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--calls", type=int, default=9, help="default: %(default)s")
    given = parser.parse_args()
    if sys.platform != "linux":
        parser.error("CPU time is read from /proc")
    current = [Watch()]
    watch(LocalPool, lambda: current[0])
    rows: list[list[str]] = []
    for title, task, items in (
        ("200,000 no-ops", nothing, range(200_000)),
        ("1,000,000 no-ops", nothing, range(1_000_000)),
        ("40,000 x 1 KiB each way", same, [f"{item:08d}".encode() * 128 for item in range(40_000)]),
    ):
        calls = [one_call(task, items, current) for _ in range(given.calls)]
        rows.append([title, *(f"{statistics.median(found):.1f}" for found in zip(*calls, strict=True))])
    print(columns([["ms", *HEADS], *rows]), end="")


if __name__ == "__main__":
    main()
