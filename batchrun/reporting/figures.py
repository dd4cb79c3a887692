"""What the numbers of an insight come to: shares of time, percentiles, the present rate. Plain data in, plain data out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from batchrun.insight import Insight, Lane
from batchrun.runs import FailureGroup, RunRecord, RunStatus

WINDOW_S = 30.0
"""The present rate is that of so many seconds, as the progress bar's is."""

PERCENTILES = (50, 95, 99)
PARTS = ("start-up", "waiting", "task", "commit")
"""What a worker's time is made of, in the order it is shown."""

MEANINGS = {
    "start-up": "until the worker was ready: its process, its imports, its engine, its initializer",
    "waiting": "for items, for its turn to write, for the database to come back",
    "task": "in the job's task",
    "commit": "in marks and commits",
}


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of one worker, or of all, by what they were spent on."""

    seconds: dict[str, float]

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def shares(self) -> dict[str, float]:
        """Percent of the whole; they add up to 100, or all are 0 where nothing was spent."""
        whole = self.total_s
        return {part: 100 * spent / whole if whole > 0 else 0.0 for part, spent in self.seconds.items()}


def spent_by(lanes: Iterable[Lane]) -> Spent:
    """What the workers' time went into, all of them together."""
    seconds = dict.fromkeys(PARTS, 0.0)
    for lane in lanes:
        for part, spent in zip(PARTS, (lane.start_up_s, lane.waiting_s, lane.task_s, lane.commit_s), strict=True):
            seconds[part] += max(0.0, spent)
    return Spent(seconds)


def percentiles(insight: Insight) -> dict[int, float]:
    """Seconds by percentile; empty where no item was measured."""
    found = {percent: insight.latency.percentile(percent) for percent in PERCENTILES}
    return {percent: seconds for percent, seconds in found.items() if seconds is not None}


def rate_of(record: RunRecord, insight: Insight | None) -> float | None:
    """Items a second: of a running run those of the last half minute, else of all its time. None: nobody can tell yet."""
    overall = record.counts.settled / record.elapsed_s if record.elapsed_s > 0 and record.counts.settled else None
    if record.status is not RunStatus.RUNNING or insight is None or insight.step_s <= 0:
        return overall
    whole = int(insight.elapsed_s / insight.step_s)  # the step that is under way would count as a slow one
    steps = range(max(0, whole - max(1, round(WINDOW_S / insight.step_s))), whole)
    settled = sum(line[step] for line in (insight.done, insight.failed) for step in steps if step < len(line))
    return settled / (len(steps) * insight.step_s) if settled else overall


def left_s(record: RunRecord, rate: float | None) -> float | None:
    """Seconds until a running run is through; None where nobody can tell."""
    if record.status is not RunStatus.RUNNING or record.expected is None or not rate:
        return None
    return max(0, record.expected - record.counts.settled) / rate


@dataclass(frozen=True, slots=True)
class Overview:
    """A run with all that is known of it. insight: None = not measured. groups: what went wrong. rate: items a second, as
    somebody who watched knows it better; None = as the insight has it.
    """

    record: RunRecord
    insight: Insight | None = None
    groups: Sequence[FailureGroup] = ()
    rate: float | None = None

    @property
    def present_rate(self) -> float | None:
        return self.rate if self.rate is not None else rate_of(self.record, self.insight)


def insight_json(insight: Insight) -> dict[str, Any]:
    """Where the time went, for ``show --json``."""
    return {
        "elapsed_s": round(insight.elapsed_s, 3),
        "share": _rounded(spent_by(insight.lanes).shares),
        "latency_s": {f"p{percent}": seconds for percent, seconds in percentiles(insight).items()},
        "workers": [_lane_json(lane) for lane in insight.lanes],
    }


def _lane_json(lane: Lane) -> dict[str, Any]:
    return {
        "worker": lane.number,
        "pid": lane.pid,
        "items": lane.items,
        "share": _rounded(spent_by([lane]).shares),
        "died": lane.died,
    }


def _rounded(shares: dict[str, float]) -> dict[str, float]:
    return {part.replace("-", "_"): round(share, 1) for part, share in shares.items()}
