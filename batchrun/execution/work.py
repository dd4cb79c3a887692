"""What a worker needs to know, as one plain object that crosses once, when the worker starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchrun.database.engines import EngineSpec
from batchrun.ledger.marks import MarksSpec
from batchrun.options import RunOptions
from batchrun.tasks import Task, TaskShape

_DRIVERS = {
    "sqlite+pysqlite": ("sqlalchemy.dialects.sqlite", "sqlite3"),
    "postgresql+psycopg2": ("sqlalchemy.dialects.postgresql", "psycopg2.extras"),
    "postgresql+psycopg": ("sqlalchemy.dialects.postgresql", "psycopg"),
}
"""By the name that a normalised URL has. What a factory makes is not known: it may be any of them."""


@dataclass(slots=True)
class Work:
    """The task and everything it runs with.

    task_params: keyword arguments of the task. params: all parameters, for ``ctx``. engine: None = no database.
    marks: None = an anonymous run. books: the ledger's engine where it is in another database than the work.
    run_folder, turnstile_for: SQLite's lock files, and the identity of the database whose writers take turns.
    wants_values: somebody reads what tasks return. wants_spans: somebody wants to know how long each item took.
    writes: the server took writes when the run was opened, and the run may write; one that takes none later is away.
    secrets: texts that no recorded error may hold.
    """

    run: str
    job: str
    task: Task
    shape: TaskShape
    options: RunOptions
    engine: EngineSpec | None = None
    marks: MarksSpec | None = None
    books: EngineSpec | None = None
    run_folder: Path | None = None
    turnstile_for: str = ""
    task_params: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    initializer: Callable[..., Any] | None = None
    wants_values: bool = False
    wants_spans: bool = False
    writes: bool = True
    secrets: tuple[str, ...] = ()

    @property
    def rehearses(self) -> bool:
        """A dry run."""
        return self.engine is not None and self.engine.rehearses

    @property
    def keeps_tally(self) -> bool:
        """Nobody waits for what an item came to, and nobody writes it down: how far a worker is must be known when it dies."""
        return self.has_session and self.marks is None and not (self.is_urgent or self.rehearses)

    @property
    def is_urgent(self) -> bool:
        """Somebody waits for what an item came to, or counts the time since the last report."""
        return self.wants_values or self.options.timeout is not None

    @property
    def has_session(self) -> bool:
        return self.engine is not None and self.options.transaction != "none"

    def plain_call(self) -> Callable[[Any], Any]:
        """The task's call where nothing but the item goes in."""
        return self.shape.bind_item(self.task, self.task_params)

    @property
    def may_use_sqlite(self) -> bool:
        """What a factory makes is not known here."""
        return any(spec is not None and (spec.is_sqlite or spec.url is None) for spec in (self.engine, self.books))

    @property
    def drivers(self) -> list[str]:
        return drivers_of([self.engine, self.books])

    def application_name(self, worker: int) -> str:
        """What the server shows for a worker's session; takeover and billing find leftovers by it."""
        epoch = self.marks.epoch if self.marks else 1
        return f"batchrun:{self.run[:8]}:{epoch}:{worker}:{self.job}"


def drivers_of(specs: Iterable[EngineSpec | None]) -> list[str]:
    """The modules of the drivers of some databases."""
    names = {name for spec in specs if spec is not None for name in (_DRIVERS if spec.url is None else [spec.url.drivername])}
    return [module for name in sorted(names) for module in _DRIVERS.get(name, ())]
