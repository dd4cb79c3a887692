"""Deleting old runs: in transactions of a few thousand rows, beside runs that go on, safe to be killed anywhere.

    sweep    rows whose run is gone, which a prune that was killed left behind
    a run    its row first, with its request and its insight         from here on nobody finds the run any more
             then its payloads, items and chunks, a batch at a time  a kill here leaves rows for the next sweep

The row goes first so that a run that is half deleted does not look like a whole one. It goes only while it still is as old
and as finished as it was when it was chosen: a retry that is quicker keeps it, one that is slower is told that it is gone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, not_, or_, select

from batchrun.database.runfolder import AliveLock, run_folder
from batchrun.database.urls import sqlite_file
from batchrun.ledger import liveness
from batchrun.ledger.reading import now_expression
from batchrun.ledger.schema import Tables
from batchrun.ledger.visiting import Visitor
from batchrun.runs import FINISHED, RunStatus

BATCH = 5000
"""Rows in a transaction: about 20 ms, so that a writer of SQLite hardly notices and PostgreSQL's locks are short."""

_FINISHED = tuple(status.value for status in FINISHED)
_RESUMABLE = tuple(status.value for status in RunStatus if status not in FINISHED)


@dataclass(frozen=True, slots=True)
class OldRun:
    """A run that is old enough. ended: seconds since 1970; of one that never ended, when it was last heard of."""

    id: str
    job: str
    name: str | None
    status: str
    ended: float
    epoch: int
    chunks: int


@dataclass(slots=True)
class Pruned:
    """What was deleted. rows: of all tables. leftovers: those of them that an earlier prune had left behind.

    is_all: False where the time was over before everything was deleted. named: runs kept for their names' sake.
    """

    runs: list[OldRun] = field(default_factory=list)
    rows: int = 0
    leftovers: int = 0
    is_all: bool = True
    named: int = 0


class Pruner:
    """Deletes runs that ended longer ago than ``older_than_s`` seconds, by the server's clock.

    named: also those with a name, whose next call would then begin anew. unfinished: also those that could be resumed, but
    never one whose owner is alive. limit_s: stop after so many seconds; what is left is for the next time.
    """

    def __init__(
        self,
        visitor: Visitor,
        tables: Tables,
        older_than_s: float,
        *,
        named: bool = False,
        unfinished: bool = False,
        limit_s: float | None = None,
    ) -> None:
        self._visitor, self._tables = visitor, tables
        self._engine = visitor.engine
        self._named, self._unfinished = named, unfinished
        self._until = None if limit_s is None else time.monotonic() + limit_s
        now = now_expression(self._engine.dialect.name)
        self._before = now - older_than_s
        self._silent_before = now - max(older_than_s, liveness.LEASE_S)

    # What is to go.

    def chosen(self) -> list[OldRun]:
        """The runs that are old enough, the oldest first."""
        run = self._tables.run
        ended = func.coalesce(run.c.ended, run.c.heartbeat)
        columns = (
            run.c.id,
            run.c.job,
            run.c.name,
            run.c.status,
            ended.label("ended"),
            run.c.epoch,
            run.c.next_no.label("chunks"),
        )
        query = select(*columns).where(self._is_old()).order_by(ended, run.c.id)
        if not self._named:
            query = query.where(run.c.name.is_(None))
        with self._engine.connect() as connection:
            return [OldRun(*row) for row in connection.execute(query)]

    def kept_for_their_names(self) -> int:
        """How many runs would be old enough, but have a name."""
        if self._named:
            return 0
        run = self._tables.run
        with self._engine.connect() as connection:
            return connection.scalar(select(func.count()).where(self._is_old(), run.c.name.is_not(None))) or 0

    def _is_old(self) -> ColumnElement[bool]:
        """The same condition chooses a run and deletes its row."""
        run = self._tables.run
        is_finished = and_(run.c.status.in_(_FINISHED), func.coalesce(run.c.ended, run.c.heartbeat) < self._before)
        if not self._unfinished:
            return is_finished
        is_left = and_(
            run.c.status.in_(_RESUMABLE), run.c.heartbeat < self._silent_before,
            func.coalesce(run.c.ended, run.c.heartbeat) < self._before,
        )  # fmt: skip
        return or_(is_finished, is_left)

    # Deleting it.

    def prune(self) -> Pruned:
        """Delete what is left over, then the runs that are chosen."""
        found = Pruned(named=self.kept_for_their_names())
        for run in self.leftovers():
            self._remove_folder(run)
            found.leftovers += self._rows_of(run, found)
        for old in self.chosen():
            if self._is_over():
                found.is_all = False
                break
            if self._delete(old, found):
                found.runs.append(old)
        return found

    def leftovers(self) -> list[str]:
        """Runs of which there are rows, but no row of their own."""
        tables, run = self._tables, self._tables.run
        found: dict[str, None] = {}
        with self._engine.connect() as connection:
            for table in (tables.chunk, tables.payload, tables.item, tables.request, tables.insight):
                found.update(dict.fromkeys(_without_run(connection, table, run)))
        return list(found)

    def _delete(self, old: OldRun, found: Pruned) -> bool:
        """False when the run is not to go after all."""
        with self._nobody_resumes(old) as is_free:
            if not is_free:
                return False
            run = self._tables.run
            with self._visitor.writing() as connection:
                mine = (run.c.id == old.id, run.c.epoch == old.epoch, self._is_old())
                gone = connection.execute(delete(run).where(*mine)).rowcount
                if gone != 1:
                    return False
                found.rows += gone + self._single_rows(connection, old.id)
            self._rows_of(old.id, found)
        return True

    @contextmanager
    def _nobody_resumes(self, old: OldRun) -> Iterator[bool]:
        """SQLite: a run that can be resumed is held as its owner would, while it goes; so its folder of locks goes too."""
        if self._engine.dialect.name != "sqlite" or old.status in _FINISHED:
            yield True
            return
        lock = AliveLock(run_folder(sqlite_file(self._engine.url), old.id))
        if is_free := lock.take():
            yield True
        else:
            yield False
        lock.release(remove=is_free)

    def _remove_folder(self, run: str) -> None:
        """SQLite: a prune that was killed leaves its folder of locks as well."""
        folder = run_folder(sqlite_file(self._engine.url), run) if self._engine.dialect.name == "sqlite" else None
        if folder is not None and folder.is_dir():
            lock = AliveLock(folder)
            lock.release(remove=lock.take())

    def _single_rows(self, connection: Connection, run: str) -> int:
        tables = self._tables
        return sum(connection.execute(delete(one).where(one.c.run == run)).rowcount for one in (tables.request, tables.insight))

    def _rows_of(self, run: str, found: Pruned) -> int:
        """Delete what hangs on a run. Returns how many rows; the rest, when the time is over, is for the next sweep."""
        before = found.rows
        with self._visitor.writing() as connection:
            found.rows += self._single_rows(connection, run)
        for table in (self._tables.payload, self._tables.item, self._tables.chunk):
            after: int | None = -1
            while after is not None:
                if self._is_over():
                    found.is_all = False
                    return found.rows - before
                after = self._batch(table, run, after, found)
        return found.rows - before

    def _batch(self, table: Table, run: str, after: int, found: Pruned) -> int | None:
        """Delete some rows behind chunk ``after``. Returns the last of their chunks, None where nothing is left.

        From where the last batch ended, since looking for the first one that is left would pass all that were deleted.
        """
        rest = (table.c.run == run, table.c.no > after)
        with self._visitor.writing() as connection:
            last: int | None = connection.scalar(select(table.c.no).where(*rest).order_by(table.c.no).offset(BATCH - 1).limit(1))
            upto = () if last is None else (table.c.no <= last,)
            found.rows += connection.execute(delete(table).where(*rest, *upto)).rowcount
        return last

    def _is_over(self) -> bool:
        return self._until is not None and time.monotonic() > self._until


def _without_run(connection: Connection, table: Table, run: Table) -> list[str]:
    """Ids in ``table`` that have no run. One step in its index for each run, not one for each of a million chunks."""
    found = select(func.min(table.c.run).label("run")).cte("found", recursive=True)
    later: Any = select(func.min(table.c.run)).where(table.c.run > found.c.run).correlate(found).scalar_subquery()
    found = found.union_all(select(later).where(found.c.run.is_not(None)))
    known = select(run.c.id).where(run.c.id == found.c.run).exists()
    return list(connection.execute(select(found.c.run).where(found.c.run.is_not(None), not_(known))).scalars())
