"""Runs as plain data: their states, their options, their counts and their report."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchrun.errors import BatchrunError, ItemsFailed
from batchrun.items import Outcome

if TYPE_CHECKING:
    from batchrun.rehearsal import Rehearsal


class RunStatus(enum.StrEnum):
    """Where a run stands. ``interrupted`` is also what a run shows whose owner is gone."""

    RUNNING = "running"
    PAUSED = "paused"
    INTERRUPTED = "interrupted"
    HALTED = "halted"
    CANCELLED = "cancelled"
    DONE = "done"
    FAILED = "failed"


_R = RunStatus
TRANSITIONS: Mapping[RunStatus, Mapping[RunStatus, str]] = {
    _R.RUNNING: {
        _R.DONE: "every item is done or skipped",
        _R.FAILED: "it ran to its end, but some items failed, were quarantined or are unknown",
        _R.PAUSED: "asked to pause, its window closed, or its longest time is over",
        _R.INTERRUPTED: "a signal, Ctrl-C, a closed iterator or an error in the source",
        _R.HALTED: "more items failed than max_failures allows",
        _R.CANCELLED: "asked to cancel",
    },
    _R.PAUSED: {_R.RUNNING: "resumed", _R.CANCELLED: "asked to cancel"},
    _R.INTERRUPTED: {_R.RUNNING: "resumed", _R.CANCELLED: "asked to cancel"},
    _R.HALTED: {_R.RUNNING: "resumed or retried", _R.CANCELLED: "asked to cancel"},
    _R.CANCELLED: {},
    _R.DONE: {_R.RUNNING: "retried: unknown items were put back"},
    _R.FAILED: {_R.RUNNING: "retried: failed items were put back"},
}
"""The state machine: from, to, and why. ``transition`` is the one way to move."""

FINISHED = frozenset({_R.DONE, _R.FAILED, _R.CANCELLED})
"""Nothing is left to resume."""


def transition(old: RunStatus, new: RunStatus) -> RunStatus:
    """Return ``new``. Raises BatchrunError where the table has no such edge."""
    if new is not old and new not in TRANSITIONS[old]:
        raise BatchrunError(f"A run that is {old} cannot become {new}.")
    return new


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_run_id() -> str:
    """Ten characters of [0-9a-z], 50 random bits, never all digits (so that it cannot be taken for a number)."""
    import secrets  # with its hashes it takes longer than this module, and a command that opens no run needs none

    while (made := "".join(secrets.choice(_ALPHABET) for _ in range(10))).isdigit():
        continue
    return made


@dataclass(slots=True)
class Counts:
    """How many items of a run stand where. planned = the sum of all the others but ``retries``."""

    planned: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    quarantined: int = 0
    unknown: int = 0
    retries: int = 0

    @property
    def settled(self) -> int:
        return self.done + self.failed + self.skipped + self.quarantined + self.unknown

    @property
    def pending(self) -> int:
        return self.planned - self.settled


@dataclass(slots=True)
class Report:
    """What a run came to.

    elapsed: seconds of this call, not of the run's earlier ones. guarantee: "exactly-once" or
    "at-least-once". failures: the first 1,000 outcomes that are neither done nor skipped.
    results: one entry an item, in the items' order, None where not done; None unless asked for.
    note: one sentence for people on how it ended, such as why it halted; may be empty.
    rehearsal: what a dry run found; None of a real run.
    """

    run: str
    name: str | None
    job: str
    status: RunStatus
    counts: Counts
    elapsed: float
    workers: int
    guarantee: str
    failures: Sequence[Outcome] = ()
    results: list[Any] | None = None
    note: str = ""
    rehearsal: Rehearsal | None = None

    @property
    def planned(self) -> int:
        """Items cut so far."""
        return self.counts.planned

    @property
    def done(self) -> int:
        return self.counts.done

    @property
    def failed(self) -> int:
        return self.counts.failed

    @property
    def skipped(self) -> int:
        return self.counts.skipped

    @property
    def quarantined(self) -> int:
        return self.counts.quarantined

    @property
    def unknown(self) -> int:
        return self.counts.unknown

    @property
    def pending(self) -> int:
        return self.counts.pending

    @property
    def retries(self) -> int:
        return self.counts.retries

    @property
    def ok(self) -> bool:
        """True when the run came to its end and every item is done or skipped."""
        return self.status is RunStatus.DONE

    def raise_for_failures(self) -> Report:
        """Return the report itself if it is ``ok``; raises ItemsFailed otherwise, naming the first failure."""
        if self.ok:
            return self
        bad = self.failed + self.quarantined + self.unknown
        first = next(iter(self.failures), None)
        why = f" The first: item {first.item!r}: {first.error.type}: {first.error.message}" if first and first.error else ""
        raise ItemsFailed(f"Run {self.run} is {self.status}: {bad} of {self.planned} items are not done.{why}")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as the ledger knows it, for listings. ``owner`` is for people: host and process id.

    total: of the items, as the source told when the run opened; None = it cannot.
    """

    id: str
    job: str
    name: str | None
    status: RunStatus
    counts: Counts
    guarantee: str
    params: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""
    ended: str | None = None
    elapsed_s: float = 0.0
    workers: int = 0
    owner: str = ""
    note: str = ""
    total: int | None = None

    @property
    def bad(self) -> int:
        """Items that went wrong."""
        return self.counts.failed + self.counts.quarantined + self.counts.unknown

    @property
    def expected(self) -> int | None:
        """How many items there will be: known of a run that came to its end, else what the source told, or the limit."""
        if self.status in (RunStatus.DONE, RunStatus.FAILED):
            return self.counts.planned
        if self.total is None:
            return None
        limit = self.options.get("limit")
        return max(self.counts.planned, min(self.total, limit) if isinstance(limit, int) else self.total)

    @property
    def percent(self) -> float | None:
        """Settled items of all that will be planned; None where nobody can tell how many those are."""
        if self.expected is None:
            return None
        return 100 * self.counts.settled / self.expected if self.expected > 0 else 100.0


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Items of a run that went wrong with one class of error and one SQLSTATE. message: of one of them."""

    error_class: str
    sqlstate: str | None
    items: int
    failed: int
    quarantined: int
    unknown: int
    message: str

    @property
    def name(self) -> str:
        """``psycopg2.errors.UniqueViolation [23505]``."""
        return self.error_class + (f" [{self.sqlstate}]" if self.sqlstate else "")


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """One item of the ledger that is neither done nor skipped; ``item`` as the source gave it."""

    item: Any
    state: str
    attempts: int
    deaths: int
    error_class: str
    sqlstate: str | None
    message: str
