"""What a run tells those who watch it: plain data, handed to observers in the parent. Observers change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from batchrun.items import Outcome
from batchrun.runs import Counts, Report


@dataclass(frozen=True, slots=True)
class RunOpened:
    """The run exists and its workers are about to start.

    counts: what is settled already (all zero for a new run). total: how many items there will be, None if
    not known. resumed: it existed before. is_dry: a dry run, which nothing records under that id.
    """

    run: str
    job: str
    counts: Counts
    total: int | None
    workers: int
    guarantee: str
    resumed: bool
    is_dry: bool = False


@dataclass(frozen=True, slots=True)
class Progressed:
    """Something was settled. ``counts`` is the run's live record; read it at once, it goes on changing."""

    counts: Counts
    total: int | None


@dataclass(frozen=True, slots=True)
class ItemTrouble:
    """An item is settled as failed, quarantined or unknown."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class ItemTimed:
    """One attempt of an item is over; told only where somebody asked for the time of each.

    status: an outcome's, or "retry". began: seconds since 1970, by this machine's clock.
    """

    item: Any
    status: str
    began: float
    seconds: float
    worker: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Notice:
    """One line for people: a worker died, the database is away, the run is stopping. level: a logging level name."""

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class TaskOutput:
    """A task or a log handler in a worker wrote this text (one or more whole lines, no trailing newline).

    level: "PRINT", or a logging level's name. logger: the record's. item: its name for a log line, where attempt is above
    0; a record outside of a task has none. worker: its number; None = inline. traceback: of an exception that was logged.
    at: Unix time; 0 = now.
    """

    text: str
    level: str = "PRINT"
    logger: str = ""
    item: str | int | float | bool | None = None
    attempt: int = 0
    worker: int | None = None
    traceback: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over, in whatever state its report says."""

    report: Report


Event = RunOpened | Progressed | ItemTrouble | ItemTimed | Notice | TaskOutput | RunEnded
Observer = Callable[[Event], None]
