"""What is asked of the ledger: runs, counts, payloads, failures. Reads only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from sqlalchemy import ColumnElement, Engine, Row, Select, case, func, literal_column, select

from batchrun.codec import load, load_items
from batchrun.database.runfolder import is_held, run_folder
from batchrun.database.urls import sqlite_file
from batchrun.errors import UnknownRun
from batchrun.ledger import liveness
from batchrun.ledger.schema import Tables, check_layout, exists, tables
from batchrun.runs import FINISHED, Counts, FailureRecord, RunRecord, RunStatus

TROUBLED = ("failed", "quarantined", "unknown")


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
        chunk, item = self._tables.chunk, self._tables.item
        sums = select(func.coalesce(func.sum(chunk.c.size), 0), func.coalesce(func.sum(chunk.c.pos), 0),
                      func.coalesce(func.sum(chunk.c.skipped), 0)).where(chunk.c.run == run_id)  # fmt: skip
        again = func.coalesce(func.sum(case((item.c.attempts > 1, item.c.attempts - 1), else_=0)), 0)
        states = select(item.c.state, func.count(), again).where(item.c.run == run_id).group_by(item.c.state)
        with self._engine.connect() as connection:
            planned, settled, skipped = connection.execute(sums).one()
            by_state = {row[0]: (row[1], row[2]) for row in connection.execute(states)}
        other = {state: count for state, (count, _) in by_state.items() if state != "done"}
        return Counts(
            planned=int(planned),
            done=int(settled) - int(skipped) - sum(other.values()),
            failed=other.get("failed", 0),
            skipped=int(skipped) + other.get("skipped", 0),
            quarantined=other.get("quarantined", 0),
            unknown=other.get("unknown", 0),
            retries=sum(int(again) for _, again in by_state.values()),
        )

    def troubled(self, run_id: str, limit: int | None = None) -> Iterator[FailureRecord]:
        """Items that are failed, quarantined or unknown, in the order they were cut."""
        item = self._tables.item
        query = select(item).where(item.c.run == run_id, item.c.state.in_(TROUBLED)).order_by(item.c.no, item.c.pos).limit(limit)
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=500).execute(query):
                known = row._mapping
                yield FailureRecord(
                    load_items(known["payload"])[0], known["state"], known["attempts"], known["deaths"], known["class"],
                    known["sqlstate"], known["message"],
                )  # fmt: skip

    # Listings, for people.

    def runs(self, limit: int = 20) -> list[RunRecord]:
        """The newest runs, newest first."""
        run = self._tables.run
        return self._records(select(run).order_by(run.c.started.desc(), run.c.id).limit(limit))

    def record(self, run_id: str) -> RunRecord:
        run = self._tables.run
        return self._records(select(run).where(run.c.id == run_id))[0]

    def _records(self, query: Select[Any]) -> list[RunRecord]:
        with self._engine.connect() as connection:
            rows = connection.execute(self._with_silence(query)).all()
        return [self._record(row) for row in rows]

    def _record(self, row: Row[Any]) -> RunRecord:
        stored = self._of(row)
        owner = liveness.parse(row.owner)
        running = stored.status is RunStatus.RUNNING
        gone = running and not self.is_alive(stored)
        until = row.started + row.elapsed if row.ended is None and not running else (row.ended or row.heartbeat + stored.silent_s)
        return RunRecord(
            id=row.id, job=row.job, name=row.name, status=RunStatus.INTERRUPTED if gone else stored.status,
            counts=self.counts(row.id), guarantee=row.guarantee, params=stored.params, options=stored.options,
            started=_shown(row.started), ended=None if row.ended is None else _shown(row.ended),
            elapsed_s=float(row.elapsed) if row.ended else float(max(0.0, until - row.started)), workers=row.workers,
            owner=owner.shown if owner and running else "", note="its owner is gone; resume it" if gone else row.note,
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

    def runs(self, limit: int = 20) -> list[RunRecord]:
        return []

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
