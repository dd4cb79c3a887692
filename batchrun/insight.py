"""Where a run's time went: plain data, gathered by the parent and kept in the ledger, one text a run.

It is bounded whatever the run's size: a timeline of at most 240 steps, a histogram, a lane a worker, five slow items.
All times are seconds of work: while nobody runs a run, its clock stands still. ``breaks`` says where that was.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from math import log2
from typing import Any

SCHEMA = 1
MOST_STEPS = 240
"""Of the timeline; when they are full, each two become one."""

PER_OCTAVE = 8
"""Steps of the histogram while the duration doubles: a percentile is then right within 5 %."""

SHORTEST_S = 1e-9
MOST_LANES = 256
MOST_SLOW = 5
MOST_NOTES = 100
MOST_CLASSES = 100


@dataclass(slots=True)
class Latency:
    """How long items took, mark and commit included: a histogram with steps that grow by 9 %.

    counts: items by step; a step's number is the rounded-down logarithm of the duration, times ``PER_OCTAVE``.
    """

    counts: dict[int, int] = field(default_factory=dict)

    def add(self, seconds: float, items: int = 1) -> None:
        """So many items took so long each."""
        for step, more in steps_of([(seconds, items)]).items():
            self.counts[step] = self.counts.get(step, 0) + more

    def merge(self, other: Latency) -> None:
        """Add what another has seen."""
        for step, items in other.counts.items():
            self.counts[step] = self.counts.get(step, 0) + items

    @property
    def items(self) -> int:
        return sum(self.counts.values())

    def percentile(self, percent: float) -> float | None:
        """Seconds that ``percent`` of the items stay below; None without items."""
        wanted, seen = self.items * percent / 100, 0
        for step in sorted(self.counts):
            seen += self.counts[step]
            if seen >= wanted:
                return middle_of(step)
        return None

    def steps(self) -> Iterator[tuple[float, float, int]]:
        """From, to (seconds) and items of each step that has any, the shortest first."""
        for step in sorted(self.counts):
            yield 2 ** (step / PER_OCTAVE), 2 ** ((step + 1) / PER_OCTAVE), self.counts[step]


def steps_of(spans: Iterable[tuple[float, int]]) -> dict[int, int]:
    """The histogram of items that took so many seconds each. Without a call of our own per item: it is done for each."""
    steps: defaultdict[float, int] = defaultdict(int)
    for seconds, items in spans:
        steps[log2(max(SHORTEST_S, seconds)) * PER_OCTAVE // 1] += items
    return {int(step): items for step, items in steps.items()}


def middle_of(step: int) -> float:
    """The duration in the middle of a step of the histogram, in seconds."""
    return float(2 ** ((step + 0.5) / PER_OCTAVE))


@dataclass(slots=True)
class Lane:
    """One worker. start_up_s: until it was ready. task_s, commit_s: in tasks, and in marks and commits. waiting_s: the rest.

    busy: seconds in orders, for each step of the timeline. The lane's time is from ``began_s`` to ``ended_s``.
    """

    number: int
    pid: int = 0
    began_s: float = 0.0
    ended_s: float = 0.0
    start_up_s: float = 0.0
    task_s: float = 0.0
    commit_s: float = 0.0
    items: int = 0
    died: str = ""
    busy: list[float] = field(default_factory=list)

    @property
    def waiting_s(self) -> float:
        """For orders, for its turn to write, for the database."""
        return max(0.0, self.ended_s - self.began_s - self.start_up_s - self.task_s - self.commit_s)


@dataclass(slots=True)
class Slow:
    """One of the slowest items: as text, how long it took, and where."""

    item: str
    seconds: float
    worker: int


@dataclass(slots=True)
class Note:
    """Something that happened on the way: a death, an outage, a change of speed. level: of logging."""

    at_s: float
    level: str
    text: str


@dataclass(slots=True)
class Insight:
    """Where a run's time went.

    elapsed_s: seconds of work so far. step_s: how long a step of the timeline is. done, failed: items settled in each
    step; failed are those quarantined and unknown as well. breaks: where a resume went on.
    """

    elapsed_s: float = 0.0
    step_s: float = 0.5
    done: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    latency: Latency = field(default_factory=Latency)
    lanes: list[Lane] = field(default_factory=list)
    slowest: list[Slow] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    breaks: list[float] = field(default_factory=list)

    def step_of(self, at_s: float) -> int:
        """The step of the timeline that a moment is in; makes room for it."""
        while at_s >= self.step_s * MOST_STEPS:
            self._halve()
        step = int(max(0.0, at_s) / self.step_s)
        for line in (self.done, self.failed):
            line.extend([0] * (step + 1 - len(line)))
        return step

    def _halve(self) -> None:
        self.step_s *= 2
        lines: list[list[Any]] = [self.done, self.failed, *(lane.busy for lane in self.lanes)]
        for line in lines:
            line[:] = _paired(line)  # in place: a caller may hold the line already

    def slow(self, item: str, seconds: float, worker: int) -> None:
        """Keep an item that may be among the slowest."""
        self.slowest.append(Slow(item, seconds, worker))
        self.slowest.sort(key=lambda one: -one.seconds)
        del self.slowest[MOST_SLOW:]

    def failed_with(self, error_class: str) -> None:
        """Count an error by its class; those beyond a hundred classes together."""
        known = error_class in self.errors or len(self.errors) < MOST_CLASSES
        name = error_class if known else "(other)"
        self.errors[name] = self.errors.get(name, 0) + 1

    def note(self, at_s: float, level: str, text: str) -> None:
        """Keep what happened, up to a hundred."""
        if len(self.notes) < MOST_NOTES:
            self.notes.append(Note(at_s, level, text[:500]))

    def to_json(self) -> str:
        """As the ledger keeps it."""
        found = asdict(self)
        found["latency"] = sorted(self.latency.counts.items())
        for lane in found["lanes"]:
            lane["busy"] = [round(seconds, 3) for seconds in lane["busy"]]
        return json.dumps({"schema": SCHEMA, **found}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Insight:
        """Read what ``to_json`` wrote; what a later layout has more is left out."""
        found: dict[str, Any] = json.loads(text)
        made = cls(**{name: found[name] for name in ("elapsed_s", "step_s", "done", "failed", "errors", "breaks")})
        made.latency = Latency({int(step): int(items) for step, items in found["latency"]})
        made.lanes = [Lane(**one) for one in found["lanes"]]
        made.slowest = [Slow(**one) for one in found["slowest"]]
        made.notes = [Note(**one) for one in found["notes"]]
        return made


def _paired(line: list[Any]) -> list[Any]:
    return [sum(line[step : step + 2]) for step in range(0, len(line), 2)]
