"""Insights and runs that nobody measured, for tests of what is made of them."""

from __future__ import annotations

import math
import random
from typing import Any

from batchrun.insight import Insight, Lane
from batchrun.reporting.figures import Overview
from batchrun.runs import Counts, FailureGroup, FailureRecord, RunRecord, RunStatus

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)> \u202eright to left\u202c \x00\x1b[31m שלום"
"""What an item or a message may hold that nobody wants to see carried out."""


def insight(workers: int = 4, elapsed_s: float = 95.0, items_per_s: float = 120.0, *, seed: int = 7) -> Insight:
    """One as a real run leaves it: a slow start, a dip, two deaths, a resume."""
    chance, found = random.Random(seed), Insight()
    found.step_of(elapsed_s)
    steps = len(found.done)
    for step in range(steps):
        part = step / steps
        rate = items_per_s * min(1.0, part * 12) * (0.35 if 0.55 < part < 0.65 else 1.0) * chance.uniform(0.85, 1.1)
        found.done[step] = round(rate * found.step_s)
        found.failed[step] = round(rate * found.step_s * 0.02) if 0.5 < part < 0.7 else int(chance.random() < 0.04)
    for _ in range(4000):
        found.latency.add(math.exp(chance.gauss(-4.6, 0.7)), max(1, round(sum(found.done) / 4000)))
    found.latency.add(4.2, 3)
    found.elapsed_s = elapsed_s
    found.lanes = [_lane(found, number, steps, chance) for number in range(workers)]
    for number, seconds in enumerate((4.2, 3.9, 1.8, 1.2, 0.9)):
        found.slow(f"order {1000 + number}", seconds, number % max(1, workers))
    found.errors = {"ValueError": sum(found.failed)}
    found.note(
        12.0, "WARNING", "Worker 1 (pid 4101) was killed by SIGKILL while running item 501; often the out-of-memory killer."
    )
    found.breaks = [elapsed_s * 0.45]
    return found


def _lane(found: Insight, number: int, steps: int, chance: random.Random) -> Lane:
    died = "killed by SIGKILL" if number == 1 else ""
    ended = found.elapsed_s * (0.4 if died else 1.0)
    lane = Lane(number, 4100 + number, 0.2, ended, 0.6, items=1000 + number, died=died)
    lane.busy = [found.step_s * chance.uniform(0.3, 1.0) * (0.1 if 0.55 < n / steps < 0.65 else 1.0) for n in range(steps)]
    lane.busy = [busy if n * found.step_s < ended else 0.0 for n, busy in enumerate(lane.busy)]
    lane.busy[0] = 0.0
    lane.task_s, lane.commit_s = sum(lane.busy) * 0.7, sum(lane.busy) * 0.2
    return lane


def record(status: RunStatus = RunStatus.FAILED, counts: Counts | None = None, **given: Any) -> RunRecord:
    """A run with something in every field."""
    job, name = given.pop("job", "refresh_totals"), given.pop("name", None)
    counts = counts or Counts(planned=11_400, done=11_215, failed=150, skipped=30, quarantined=2, unknown=3, retries=45)
    known: dict[str, Any] = {
        "params": {"since": "2026-01-01", "factor": "1.1", "token": "***"},
        "options": {"given": {"workers": 4, "max_failures": "5%"}},
        "started": "2026-11-27T03:00:05+00:00",
        "ended": "2026-11-27T03:01:40+00:00",
        "elapsed_s": 95.0,
        "workers": 4,
        "note": "",
        "total": 11_400,
    }
    return RunRecord("4f7k2m9xab", job, name, status, counts, "exactly-once", **{**known, **given})


GROUPS = (
    FailureGroup("psycopg2.errors.UniqueViolation", "23505", 148, 148, 0, 0, 'duplicate key value violates "orders_pkey"'),
    FailureGroup("batchrun.WorkerDied", None, 2, 0, 2, 0, "Its worker was killed by SIGKILL three times."),
    FailureGroup("ValueError", None, 5, 2, 0, 3, HOSTILE),
)
FAILURES = tuple(
    FailureRecord({"id": number, "text": HOSTILE}, "failed", 4, 0, "psycopg2.errors.UniqueViolation", "23505", HOSTILE)
    for number in range(20)
)


def overview(workers: int = 4, **given: Any) -> Overview:
    """A run that failed in part, with all there is to see."""
    return Overview(record(**given), insight(workers), GROUPS)
