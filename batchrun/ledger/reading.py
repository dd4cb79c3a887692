"""What is asked of the ledger: runs, counts, payloads, failures. Reads only."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from sqlalchemy import ColumnElement, Engine, Row, Select, case, func, literal, literal_column, select, union_all

from batchrun.codec import load, load_items
from batchrun.database.runfolder import is_held, run_folder
from batchrun.database.urls import sqlite_file
from batchrun.errors import UnknownRun
from batchrun.insight import Insight
from batchrun.ledger import liveness, troubles
from batchrun.ledger.insights import read_insight
from batchrun.ledger.schema import Tables, check_layout, exists, tables
from batchrun.ledger.troubles import Wanted
from batchrun.runs import FINISHED, Counts, FailureGroup, FailureRecord, RunRecord, RunStatus


def now_expression(dialect_name: str) -> ColumnElement[float]:
    """The server's clock, in seconds since 1970, so that owners on different hosts agree."""
    text = "(julianday('now') - 2440587.5) * 86400.0" if dialect_name == "sqlite" else "extract(epoch FROM clock_timestamp())"
    return literal_column(text)


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run's row as the owner needs it. ``silent_s``: seconds since its last heartbeat."""

    id: str
    job: str
    name: str | None
    status: RunStatus
    epoch: int
    owner: str
    silent_s: float
    next_no: int
    cursor: Any
    bound: Any
    sealed: bool
    fingerprint: dict[str, str]
    params: dict[str, Any]
    options: dict[str, Any]
    guarantee: str
    total: int | None

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED


@dataclass(frozen=True, slots=True)
class DueItem:
    """An item that waits to be tried again. ``due_in_s`` may be negative."""

    no: int
    pos: int
    item: Any
    attempts: int
    base: int
    deaths: int
    due_in_s: float


class Reading:
    """Answers questions about the runs of one ledger."""

    def __init__(self, engine: Engine, tables: Tables) -> None:
        self._engine = engine
        self._tables = tables

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()

    def is_alive(self, stored: StoredRun) -> bool:
        """True when the run is running and its owner is neither known to be gone nor silent for longer than its lease.

        On SQLite the kernel knows: the owner holds a lock for as long as it lives.
        """
        if stored.status is not RunStatus.RUNNING:
            return False
        if self._engine.dialect.name == "sqlite":
            return is_held(run_folder(sqlite_file(self._engine.url), stored.id))
        owner = liveness.parse(stored.owner)
        if owner is not None and liveness.is_provably_gone(owner):
            return False
        return stored.silent_s < liveness.LEASE_S

    @property
    def parts(self) -> tuple[Engine, Tables]:
        """The engine and the tables it reads, for a verification."""
        return self._engine, self._tables

    # One run, for its owner.

    def stored(self, run_id: str) -> StoredRun | None:
        run = self._tables.run
        return self._stored(select(run).where(run.c.id == run_id))

    def stored_by_name(self, name: str) -> StoredRun | None:
        run = self._tables.run
        return self._stored(select(run).where(run.c.name == name))

    def stored_of_job(self, job: str) -> list[StoredRun]:
        """The job's runs that are not finished, newest first."""
        run = self._tables.run
        query = (
            select(run).where(run.c.job == job, run.c.status.not_in([s.value for s in FINISHED])).order_by(run.c.started.desc())
        )
        with self._engine.connect() as connection:
            return [self._of(row) for row in connection.execute(self._with_silence(query))]

    def is_asked_to_pause(self, run_id: str) -> bool:
        """Does somebody's request to pause it stand? A run that paused by itself has none."""
        request = self._tables.request
        with self._engine.connect() as connection:
            wanted = connection.execute(select(request.c.wanted).where(request.c.run == run_id)).scalar()
        return bool(wanted == "pause")

    def _stored(self, query: Select[Any]) -> StoredRun | None:
        with self._engine.connect() as connection:
            row = connection.execute(self._with_silence(query)).first()
        return None if row is None else self._of(row)

    def _with_silence(self, query: Select[Any]) -> Select[Any]:
        return query.add_columns((now_expression(self._engine.dialect.name) - self._tables.run.c.heartbeat).label("silent_s"))

    def _of(self, row: Row[Any]) -> StoredRun:
        return StoredRun(
            id=row.id, job=row.job, name=row.name, status=RunStatus(row.status), epoch=row.epoch, owner=row.owner,
            silent_s=float(row.silent_s), next_no=row.next_no, cursor=load(row.cursor) if row.cursor else None,
            bound=load(row.bound) if row.bound else None, sealed=row.sealed, fingerprint=json.loads(row.fingerprint),
            params=json.loads(row.params), options=json.loads(row.options), guarantee=row.guarantee, total=row.total,
        )  # fmt: skip

    def payload(self, run_id: str, no: int) -> list[Any]:
        """The items of an open chunk."""
        payload = self._tables.payload
        with self._engine.connect() as connection:
            text = connection.execute(select(payload.c["items"]).where(payload.c.run == run_id, payload.c.no == no)).scalar_one()
        return load_items(text)

    def due(self, run_id: str, limit: int, known: Sequence[tuple[int, int]] = ()) -> list[DueItem]:
        """Items in 'retry', the soonest first, at most ``limit`` beyond those already ``known``."""
        item = self._tables.item
        wait = func.coalesce(item.c.due, 0) - now_expression(self._engine.dialect.name)
        query = (
            select(item.c.no, item.c.pos, item.c.payload, item.c.attempts, item.c.base, item.c.deaths, wait.label("wait"))
            .where(item.c.run == run_id, item.c.state == "retry")
            .order_by(item.c.due, item.c.no, item.c.pos)
            .limit(limit + len(known))
        )
        skip = set(known)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [
            DueItem(row.no, row.pos, load_items(row.payload)[0], row.attempts, row.base, row.deaths, float(row.wait))
            for row in rows
            if (row.no, row.pos) not in skip
        ]

    def counts(self, run_id: str) -> Counts:
        """Where the run's items stand; they add up by construction."""
        return self.counts_of([run_id])[run_id]

    def counts_of(self, run_ids: Sequence[str]) -> dict[str, Counts]:
        """The same for several runs, in one statement."""
        found = {run_id: Counts() for run_id in run_ids}
        if found:
            with self._engine.connect() as connection:
                for row in connection.execute(self._sums(run_ids)):
                    _add(found[row.run], row.state, *map(int, row[2:]))
        return found

    def _sums(self, run_ids: Sequence[str]) -> Any:
        """Of each run a row with its chunks' sums, its state empty, and a row for each state of its exceptional items."""
        chunk, item = self._tables.chunk, self._tables.item
        again = case((item.c.attempts > 1, item.c.attempts - 1), else_=0)
        return union_all(
            select(
                chunk.c.run, literal("").label("state"), func.sum(chunk.c.size), func.sum(chunk.c.pos), func.sum(chunk.c.skipped)
            )
            .where(chunk.c.run.in_(run_ids))
            .group_by(chunk.c.run),
            select(item.c.run, item.c.state, func.count(), func.sum(again), literal(0))
            .where(item.c.run.in_(run_ids))
            .group_by(item.c.run, item.c.state),
        )

    # What went wrong, and where the time went.

    def troubled(
        self, run_id: str, limit: int | None = None, *, wanted: Wanted | None = None, by_class: bool = False
    ) -> Iterator[FailureRecord]:
        """Items that are failed, quarantined or unknown; see ``troubles.troubled``."""
        return troubles.troubled(self.parts, run_id, wanted, limit=limit, by_class=by_class)

    def trouble_groups(self, run_id: str) -> list[FailureGroup]:
        """The classes of their errors, the most frequent first."""
        return troubles.groups(self.parts, run_id)

    def insight(self, run_id: str) -> Insight | None:
        """Where the run's time went; None where nobody wrote it down."""
        return read_insight(self._engine, self._tables, run_id)

    # Listings, for people.

    def runs(self, limit: int = 20, *, job: str | None = None, statuses: Collection[RunStatus] = ()) -> list[RunRecord]:
        """The newest runs, newest first. statuses: as they are shown, so that a run whose owner is gone is interrupted."""
        run = self._tables.run
        query = select(run).order_by(run.c.started.desc(), run.c.id)
        if job is not None:
            query = query.where(run.c.job == job)
        if statuses:
            kept = {*statuses, *([RunStatus.RUNNING] if RunStatus.INTERRUPTED in statuses else [])}
            query = query.where(run.c.status.in_([one.value for one in kept]))
        return self._records(query if statuses else query.limit(limit), limit, statuses)

    def record(self, run_id: str) -> RunRecord:
        """Raises UnknownRun where it was deleted since it was found."""
        run = self._tables.run
        found = self._records(select(run).where(run.c.id == run_id))
        if not found:
            raise UnknownRun(f"Run {run_id} is not in the ledger any more: it was deleted a moment ago.")
        return found[0]

    def newest_of_job(self, job: str) -> RunRecord | None:
        """The job's newest run; None where there is none."""
        run = self._tables.run
        found = self._records(select(run).where(run.c.job == job).order_by(run.c.started.desc(), run.c.id).limit(1))
        return found[0] if found else None

    def _records(self, query: Select[Any], limit: int = 1, statuses: Collection[RunStatus] = ()) -> list[RunRecord]:
        found: list[RunRecord] = []
        with self._engine.connect() as connection:
            for row in connection.execute(self._with_silence(query)):
                record = self._record(row)
                if not statuses or record.status in statuses:
                    found.append(record)
                if len(found) == limit:
                    break
        counts = self.counts_of([record.id for record in found])
        return [replace(record, counts=counts[record.id]) for record in found]

    def _record(self, row: Row[Any]) -> RunRecord:
        stored = self._of(row)
        owner = liveness.parse(row.owner)
        running = stored.status is RunStatus.RUNNING
        gone = running and not self.is_alive(stored)
        until = row.started + row.elapsed if row.ended is None and not running else (row.ended or row.heartbeat + stored.silent_s)
        return RunRecord(
            id=row.id, job=row.job, name=row.name, status=RunStatus.INTERRUPTED if gone else stored.status,
            counts=Counts(), guarantee=row.guarantee, params=stored.params, options=stored.options,
            started=_shown(row.started), ended=None if row.ended is None else _shown(row.ended),
            elapsed_s=float(row.elapsed) if row.ended else float(max(0.0, until - row.started)), workers=row.workers,
            owner=owner.shown if owner and running else "", note="its owner is gone; resume it" if gone else row.note,
            total=stored.total,
        )  # fmt: skip

    def find(self, text: str | None) -> str:
        """The id of the run people mean: ``last``, an id, a run's name, a job's newest, a unique prefix of an id."""
        run = self._tables.run
        newest = select(run.c.id).order_by(run.c.started.desc(), run.c.id)
        tried = [run.c.id == text, run.c.name == text, run.c.job == text]
        with self._engine.connect() as connection:
            for where in [] if text in (None, "last") else tried:
                if found := connection.execute(newest.where(where).limit(1)).scalar():
                    return str(found)
            if text in (None, "last"):
                if found := connection.execute(newest.limit(1)).scalar():
                    return str(found)
                raise UnknownRun("There is no run yet; `batchrun run JOB` makes one.")
            matches = list(connection.execute(newest.where(run.c.id.startswith(text, autoescape=True)).limit(6)).scalars())
        if len(matches) == 1:
            return str(matches[0])
        if matches:
            raise UnknownRun(f"Several runs begin with {text!r}: {', '.join(matches)}. Give one letter more.")
        raise UnknownRun(f"There is no run, name or job {text!r} in the ledger; `batchrun runs` lists what is there.")

    def newest_unfinished(self) -> str | None:
        """What a bare ``resume`` takes."""
        run = self._tables.run
        query = select(run.c.id).where(run.c.status.not_in([s.value for s in FINISHED])).order_by(run.c.started.desc()).limit(1)
        with self._engine.connect() as connection:
            return connection.execute(query).scalar()


class _NoLedger(Reading):
    """A database without a ledger: there are no runs."""

    def runs(self, limit: int = 20, *, job: str | None = None, statuses: Collection[RunStatus] = ()) -> list[RunRecord]:
        return []

    def newest_of_job(self, job: str) -> RunRecord | None:
        return None

    def find(self, text: str | None) -> str:
        raise UnknownRun("There is no run yet; `batchrun run JOB` makes one.")

    def newest_unfinished(self) -> str | None:
        return None


def open_reading(engine: Engine, schema: str | None) -> Reading:
    """Look into the ledger, creating nothing. Raises ConfigError for a ledger of a newer layout."""
    known = tables(schema)
    if not exists(engine, known):
        return _NoLedger(engine, known)
    check_layout(engine, known)
    return Reading(engine, known)


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def _add(counts: Counts, state: str, one: int, two: int, three: int) -> None:
    """Add a row of ``_sums``: of a run's chunks their sizes, positions and skips; of a state its items and further attempts."""
    if not state:
        counts.planned, counts.done, counts.skipped = one, counts.done + two - three, counts.skipped + three
        return
    counts.retries += two
    if state == "done":
        return
    counts.done -= one
    if state in (*troubles.TROUBLED, "skipped"):
        setattr(counts, state, getattr(counts, state) + one)
