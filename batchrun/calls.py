"""What a caller can say about a run, and what is refused before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchrun.database.engines import EngineSpec
from batchrun.errors import ConfigError
from batchrun.events import Observer
from batchrun.execution.packing import check_crossing
from batchrun.jobs import Job
from batchrun.ledger.troubles import Wanted
from batchrun.masking import Redactor
from batchrun.options import RunOptions
from batchrun.parameters import secrets_in
from batchrun.plans import StopRequest
from batchrun.sources.sampling import Sample
from batchrun.tasks import task_shape
from batchrun.throttling import Throttle


@dataclass(slots=True)
class Call:
    """Everything a caller can say about a run.

    items: an iterable or source given directly; None = the job's own items function. run: the id of a run to go on
    with. retried: put failed items back first; only: those with these errors. fresh: always open a new run, refused
    while another of the same job and parameters is running. dry_run: nothing is recorded, and every item is rolled back.
    sample: run a sample of the items.
    """

    job: Job
    options: RunOptions
    folder: Path
    items: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    database: EngineSpec | None = None
    ledger: EngineSpec | None = None
    schema: str | None = None
    name: str | None = None
    run: str | None = None
    fresh: bool = False
    retried: bool = False
    only: Wanted | None = None
    continue_unfinished: bool = False
    accept_changes: bool = False
    dry_run: bool = False
    sample: Sample | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    wants_results: bool = False
    wants_outcomes: bool = False
    wants_spans: bool = False
    ordered: bool = False
    captures_output: bool = False
    observers: Sequence[Observer] = ()
    stop: StopRequest = field(default_factory=StopRequest)
    throttle: Throttle = field(default_factory=Throttle)
    redact: Redactor = field(default_factory=Redactor)

    def learn_secrets(self) -> None:
        """Secret parameters and the passwords of URLs: what no text that leaves may hold."""
        self.redact.add(*secrets_in(self.params), *(one for spec in (self.database, self.ledger) if spec for one in spec.secrets))

    @property
    def durable(self) -> bool:
        return self.name is not None or self.run is not None or self.fresh

    @property
    def has_session(self) -> bool:
        return self.database is not None and self.options.transaction != "none"

    @property
    def guarantee(self) -> str:
        """Exactly once needs the mark in the transaction of the work: one database, a session that writes."""
        same = self.ledger is None or (self.database is not None and self.ledger.identity == self.database.identity)
        exact = (self.durable or self.dry_run) and self.has_session and not self.options.read_only and same
        return "exactly-once" if exact else "at-least-once"  # of a dry run: what the run itself would give


def check(call: Call) -> None:
    """Refuse what cannot work, before anything is touched."""
    task_shape(call.job.task, has_session=call.has_session)
    check_crossing(call.job.task)
    if call.job.initializer is not None:
        check_crossing(call.job.initializer, what="The initializer")
    for spec in (call.database, call.ledger):
        if spec is not None and spec.factory is not None:
            check_crossing(spec.factory, what="The database factory")
    for option in ("batched", "read_only"):
        if call.database is None and getattr(call.options, option):
            raise ConfigError(f"{option}: needs a session, so give a database as well")
    if call.name is not None and call.wants_results:
        raise ConfigError("results=True cannot be combined with name=: a run that continues has no results of its earlier parts.")
    if call.durable and call.database is None and call.ledger is None:
        raise ConfigError("A named run is recorded in a database: give database= (or ledger= for a task without one).")
    if call.items is None and call.job.items is None:
        raise ConfigError(f"There are no items: pass items=, or give job {call.job.name} an items function.")
