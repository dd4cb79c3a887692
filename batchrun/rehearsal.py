"""What a dry run measured and found out: plain data. Workers send ``Measured``, the parent adds it up, reports show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from batchrun.insight import Latency
from batchrun.items import Outcome

MOST_CLASSES = 50
FORECAST_WORKERS = (1, 2, 4, 8)


class Measured(NamedTuple):
    """What one order took, as its worker measured it; all times are seconds.

    items: that were settled. wall_s: from its first to its last moment, without ``waited_s``. waited_s: for its turn to write
    or for a database that was away. cpu_s: of the worker's own thread. queued_s: ready to compute, but without a core.
    server_s, server_queued_s: the same of the server's process for it; None = not visible from here. locked_s: with a
    transaction open. transactions: that were rolled back at their end. took: items by step of ``insight.Latency``.
    commits: what a COMMIT would have taken beyond the ROLLBACK, where that was tried. wal_bytes, wal_items: what the
    worker's session wrote since it was last looked at, and the items of it; 0 = it was not looked at. is_first: the thread's
    first order, which also connected.
    """

    order: int
    items: int
    wall_s: float
    waited_s: float
    cpu_s: float
    queued_s: float
    server_s: float | None
    server_queued_s: float
    locked_s: float
    statements: int
    transactions: int
    took: dict[int, int]
    commits: tuple[float, ...]
    wal_bytes: int
    wal_items: int
    is_first: bool


@dataclass(slots=True)
class Line:
    """Least squares over orders: what an order costs by itself, and what each of its items adds."""

    orders: int = 0
    items: float = 0.0
    squares: float = 0.0
    sum: float = 0.0
    products: float = 0.0

    def add(self, items: int, value: float) -> None:
        """An order of so many items came to ``value``."""
        self.orders += 1
        self.items += items
        self.squares += items * items
        self.sum += value
        self.products += items * value

    def at(self, size: float) -> float:
        """An item's share in an order of ``size`` items."""
        if not self.items:
            return 0.0
        mean = self.sum / self.items
        spread = self.orders * self.squares - self.items * self.items
        if self.orders < 3 or spread <= 0:
            return mean
        each = (self.orders * self.products - self.items * self.sum) / spread
        each = min(max(0.0, each), mean)  # neither part is below zero
        return each + (self.sum - each * self.items) / self.orders / max(size, 1.0)


@dataclass(slots=True)
class Costs:
    """The orders added up. first: of each thread's first order, which connects and imports, too."""

    orders: int = 0
    items: int = 0
    wall: Line = field(default_factory=Line)
    cpu: Line = field(default_factory=Line)
    queued: Line = field(default_factory=Line)
    waited: Line = field(default_factory=Line)
    server: Line = field(default_factory=Line)
    locked: Line = field(default_factory=Line)
    is_server_seen: bool = False
    first_s: list[tuple[int, float]] = field(default_factory=list)
    statements: int = 0
    transactions: int = 0
    latency: Latency = field(default_factory=Latency)
    commits: list[float] = field(default_factory=list)
    wal_bytes: int = 0
    wal_items: int = 0

    def add(self, one: Measured) -> None:
        """Add what a worker measured."""
        self.orders += 1
        self.items += one.items
        self.statements += one.statements
        self.transactions += one.transactions
        self.latency.merge(Latency(one.took))
        self.commits += one.commits
        self.wal_bytes += one.wal_bytes
        self.wal_items += one.wal_items
        if one.is_first:
            self.first_s.append((one.items, one.wall_s))
            return
        self._add_lines(one)

    def _add_lines(self, one: Measured) -> None:
        queued = one.queued_s + one.server_queued_s
        self.wall.add(one.items, max(0.0, one.wall_s - queued))
        self.cpu.add(one.items, one.cpu_s)
        self.queued.add(one.items, queued)
        self.waited.add(one.items, one.waited_s)
        self.locked.add(one.items, one.locked_s)
        if one.server_s is not None:
            self.is_server_seen = True
            self.server.add(one.items, one.server_s)

    @property
    def commit_s(self) -> float | None:
        """What a COMMIT takes beyond a ROLLBACK; None where none was tried. On average, since slow ones add up, but the
        slowest tenth may be an accident."""
        kept = sorted(self.commits)[: max(1, len(self.commits) * 9 // 10)]
        return sum(kept) / len(kept) if kept else None


@dataclass(frozen=True, slots=True)
class Expected:
    """How long the whole source would take with so many workers. per_s: items a second. duration_s: None = nobody knows how
    many items there are."""

    workers: int
    per_s: float
    duration_s: float | None


@dataclass(slots=True)
class ErrorClass:
    """Items that failed alike: how many, and one of them."""

    items: int
    example: Outcome


@dataclass(slots=True)
class Rehearsal:
    """What a dry run came to, beside its counts.

    sample, seed: how the items were chosen; None = the first ones. whole: items of the whole source, None if not known.
    errors: by class. partial: items that committed past their session, so that something did change. wal_bytes: per item;
    wal_by: how that was measured, or why not. commit_s: None = not measured. cores: of this machine. bound_by: what more
    workers would not make faster, for people. expected: for each number of workers.
    """

    sample: str | None = None
    seed: int | None = None
    whole: int | None = None
    errors: dict[str, ErrorClass] = field(default_factory=dict)
    partial: int = 0
    latency: Latency = field(default_factory=Latency)
    statements: float | None = None
    wal_bytes: float | None = None
    wal_by: str = ""
    cpu_s: float | None = None
    server_s: float | None = None
    waiting_s: float | None = None
    commit_s: float | None = None
    cores: int = 1
    bound_by: str = ""
    expected: Sequence[Expected] = ()
    notes: Sequence[str] = ()

    def failed(self, outcome: Outcome) -> None:
        """Count an item that failed by the class of its error, those beyond fifty classes together."""
        name = outcome.error.type if outcome.error else str(outcome.status)
        self.partial += name.rpartition(".")[2] == "PartialCommit"
        if name not in self.errors and len(self.errors) >= MOST_CLASSES:
            name = "(other)"
        if name in self.errors:
            self.errors[name].items += 1
        else:
            self.errors[name] = ErrorClass(1, outcome)
