"""How many workers a run gets: what was asked for, the cores, the items there are, and the connections that are free."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from batchrun.calls import Call
from batchrun.database import pooler
from batchrun.database.budget import Limit, limits_of, merged, tightest
from batchrun.errors import ConfigError
from batchrun.events import Notice

LOOKS, BETWEEN_LOOKS_S = 5, 0.2
"""A server lets go of a closed connection a moment later, so one look that finds too few is not enough."""


@dataclass(frozen=True, slots=True)
class Held:
    """An engine of the parent's. threads: connections that each thread of a worker will open to the same database."""

    engine: Engine
    threads: int


def cores() -> int:
    """The cores this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def seat(call: Call, run: str, held: Sequence[Held], total: int | None, tell: Callable[[Notice], None]) -> int:
    """Return the number of workers; 0 = inline. Raises ConfigError when a number that was asked for does not fit.

    "auto" and None take the cores, or as many as fit, and say so when those are fewer. total: how many items there
    will be, None if not known.
    """
    asked = call.options.workers
    wanted = asked if isinstance(asked, int) else cores()
    workers = wanted if total is None or wanted == 0 else max(1, min(wanted, total))
    threads = call.options.threads if workers else 1
    limit, pooled = _look(run, held, max(1, workers), threads)
    if pooled:
        tell(Notice("INFO", pooler.NOTICE))
    if limit is None:
        return workers
    fitting = int(limit.fitting(threads))
    if fitting < 1 or isinstance(asked, int):
        raise ConfigError(_refusal(limit, max(1, workers), threads, fitting))
    tell(Notice("WARNING", _shrunk(limit, workers, threads, fitting)))
    return fitting


def more_seats(call: Call, run: str, held: Sequence[Held], wanted: int, now: int) -> tuple[int, str]:
    """How many workers a run that is going on may have, of those that are asked for, and why there are fewer.

    now: how many it has, whose connections are open already.
    """
    threads = call.options.threads
    if wanted <= now:
        return wanted, ""
    answers = [limits_of(one.engine, run, threads=one.threads) for one in held if one.engine.dialect.name == "postgresql"]
    limit = tightest(merged(found for answer in answers for found in answer or ()), threads)
    if limit is None or limit.fitting(threads) >= wanted:
        return wanted, ""
    fitting = max(now, int(limit.fitting(threads)))
    return fitting, _shrunk(limit, wanted, threads, fitting)


def _look(run: str, held: Sequence[Held], workers: int, threads: int) -> tuple[Limit | None, bool]:
    """The limit that is in the way, if one is; and whether there is a pooler, which has its own."""
    looks = 0
    while True:
        answers = [limits_of(one.engine, run, threads=one.threads) for one in held if one.engine.dialect.name == "postgresql"]
        limit = tightest(merged(found for answer in answers for found in answer or ()), threads)
        looks += 1
        if limit is None or limit.fitting(threads) >= workers:
            return None, None in answers
        if looks == LOOKS:
            return limit, None in answers
        time.sleep(BETWEEN_LOOKS_S)


def _refusal(limit: Limit, workers: int, threads: int, fitting: int) -> str:
    fewer = ", or fewer threads" if threads > 1 else ""
    if fitting:
        smaller = f'Take -j {fitting} (workers={fitting}){fewer}, or workers="auto", which takes what fits; or raise'
    else:
        smaller = f"Not even one worker fits: wait until others have closed theirs{fewer}; or raise"
    return (
        "PostgreSQL has too few free connections for this run, so no worker was started:\n"
        f"{limit.sum(workers, threads)}\n{smaller} {limit.remedy}, or put a pooler such as pgbouncer in between."
    )


def _shrunk(limit: Limit, workers: int, threads: int, fitting: int) -> str:
    return (
        f"{fitting} instead of {workers} workers, because PostgreSQL has no more free connections:\n{limit.sum(workers, threads)}"
    )
