"""Results taken one by one as they come, and what happens when the caller stops taking them.

With the option ``stall`` the caller takes a thousand results and then none, until the program's memory grows no more.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.speed import work
from benchmarks.speed.trial import Measured, Trial, stop_clock

TAKEN = 1_000
STALL_S = 30.0
CALM_S = 2.0


def drain(results: Iterable[Any]) -> None:
    """Take every result, as quickly as Python can."""
    deque(results, maxlen=0)


def consume(trial: Trial, results: Iterator[Any]) -> None:
    """Take all results; or, stalled, a few, and wait."""
    stalls = trial.options.get("stall", False)
    drain(islice(results, TAKEN if stalls else None))
    if stalls:
        wait_for_calm()


def wait_for_calm() -> None:
    """Until this process has not grown for a while."""
    late = time.monotonic() + STALL_S
    calm, most = time.monotonic() + CALM_S, peak_mb()
    while time.monotonic() < min(late, calm):
        time.sleep(0.1)
        if peak_mb() > most + 0.1:
            calm, most = time.monotonic() + CALM_S, peak_mb()


def pool(trial: Trial) -> Measured:
    with multiprocessing.Pool(trial.workers, work.initializer(trial)) as workers:
        consume(trial, workers.imap_unordered(work.performed(trial), work.items_of(trial), trial.options["chunk"]))
        return stop_clock(trial)


def batchrun(trial: Trial) -> Measured:
    from batchrun import iter_parallel

    outcomes = iter_parallel(
        work.TASKS[trial.task],
        work.items_of(trial),
        trial.url or None,
        workers=trial.workers,
        initializer=work.arrival(trial),
        progress=False,
    )
    consume(trial, outcomes)
    return stop_clock(trial)


def peak_mb() -> float:
    """The most resident memory this process has had, in MB; 0 where there is no /proc."""
    return _status_mb("VmHWM:")


def resident_mb() -> float:
    return _status_mb("VmRSS:")


def _status_mb(name: str) -> float:
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(name)), 0.0)
