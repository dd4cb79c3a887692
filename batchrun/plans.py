"""A run before it begins: what it consists of, where its orders will run, and how it is asked to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from batchrun.books import Book
from batchrun.chunks import Feed
from batchrun.events import Observer
from batchrun.execution.orders import Order
from batchrun.execution.pool import QUEUED, Died, Heard, Worker
from batchrun.gathering import Gathering
from batchrun.healthwatch import HealthWatch
from batchrun.items import Outcome
from batchrun.options import RunOptions
from batchrun.ordering import chunk_limit
from batchrun.rehearsal import Measured, Rehearsal
from batchrun.runs import Counts, RunStatus
from batchrun.throttling import Throttle


class Executor(Protocol):
    """Where orders run: inline, or in processes of this machine. queued: orders that may wait at a worker."""

    queued: int

    @property
    def alive(self) -> int: ...
    def age_s(self, worker: int) -> float: ...
    def start(self) -> None: ...
    def room(self) -> int: ...
    def submit(self, order: Order) -> bool: ...
    def recall(self) -> Order | None: ...
    def resend(self, worker: int, order: Order) -> None: ...
    def wait(self, timeout_s: float) -> Iterator[Heard | Died]: ...
    def overdue(self, limit_s: float) -> list[tuple[Worker, Order]]: ...
    def locate(self, worker: Worker, order: Order) -> str | None: ...
    def kill(self, worker: Worker) -> None: ...
    def resize(self, workers: int, active: int) -> list[Order]: ...
    def stop(self) -> None: ...
    def leave(self) -> bool: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class StopRequest:
    """Asks a run to end: the first request lets running items finish, the second ends at once.

    reason: a word for the note, such as "SIGTERM". status: what the run becomes. Safe to call from a signal handler.
    """

    level: int = 0
    reason: str = ""
    status: RunStatus = RunStatus.INTERRUPTED
    _by_itself: bool = False

    def request(self, reason: str) -> None:
        """Somebody wants it to end: a signal, Ctrl-C, a closed iterator."""
        if self._by_itself:
            self._by_itself = False  # the first to ask a run that is ending anyway is not impatient yet
            return
        self.level += 1
        self.reason = self.reason or reason

    def end_as(self, status: RunStatus, reason: str) -> None:
        """It ends as paused or cancelled, once its running items are through. To cancel one that is ending counts as well."""
        if self.level and status is not RunStatus.CANCELLED:
            return
        self._by_itself = self._by_itself or self.level == 0
        self.level = max(1, self.level)
        self.status, self.reason = status, reason


class Rehearsing(Protocol):
    """What a dry run measures is told here."""

    def add(self, measured: Measured) -> None: ...
    def result(self, workers: int, most: int | None) -> Rehearsal: ...


@dataclass(slots=True)
class RunPlan:
    """What a run consists of, put together by the API."""

    job: str
    name: str | None
    options: RunOptions
    workers: int
    guarantee: str
    book: Book
    feed: Feed
    executor: Executor
    counts: Counts = field(default_factory=Counts)
    next_no: int = 0
    open_orders: list[Order] = field(default_factory=list)
    retries: list[tuple[float, Order]] = field(default_factory=list)
    failures: list[Outcome] = field(default_factory=list)  # of earlier calls, for the report
    more_retries: Callable[[set[tuple[int, int]]], list[tuple[float, Order]]] | None = None
    wants_results: bool = False
    wants_outcomes: bool = False
    ordered: bool = False  # outcomes come in the items' order
    has_database: bool = True
    counts_anew: bool = False  # max_failures leaves earlier failures out: a halted run that is resumed is meant to go on
    stop: StopRequest = field(default_factory=StopRequest)
    observers: tuple[Observer, ...] = ()
    gathering: Gathering | None = None  # where the time goes; None = nobody wants to know
    redact: Callable[[str], str] = str  # takes secrets out of notices and the note
    throttle: Throttle = field(default_factory=Throttle)
    health: HealthWatch | None = None
    fitting: Callable[[int, int], tuple[int, str]] = lambda wanted, now: (wanted, "")  # how many workers fit, and why fewer
    rehearsing: Rehearsing | None = None  # of a dry run

    @property
    def chunk_limit(self) -> int | None:
        """Items a chunk may have at most, beside what the sizer knows itself."""
        most = self.options.max_items_per_worker
        if not self.ordered:
            return most
        window = chunk_limit(max(1, self.workers) * (self.options.threads + QUEUED))
        return window if most is None else min(most, window)


PREPARE: ContextVar[Callable[[RunPlan], None] | None] = ContextVar("batchrun_prepare", default=None)
"""What is done to a plan before its run begins; ``batchrun.testing`` interrupts runs by it."""
