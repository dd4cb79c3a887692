"""Writing to the ledger without owning a run: short transactions of housekeeping, beside runs that go on.

On SQLite a visitor stands in the queue of every run that goes on, as one of its workers would (database/turnstile.py):
whoever only waits for the file's lock may never get it from workers that write one after the other.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event

from batchrun.database.engines import SQLITE_WAIT_S, EngineSpec, control_engine
from batchrun.database.turnstile import NAMES, Turnstile
from batchrun.database.urls import sqlite_file

LOCK_WAIT_S = 30
"""PostgreSQL: how long a statement waits for a lock. Owners hold theirs for milliseconds."""


class Visitor:
    """Makes short transactions. patient: waits for its turn on SQLite; else it comes in at once or not at all."""

    def __init__(self, spec: EngineSpec, *, application_name: str, patient: bool = True) -> None:
        self.engine: Engine = control_engine(spec, application_name=application_name)
        self._patient = patient
        if patient and self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _wait_for_locks)

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction; it is committed unless something is raised."""
        with ExitStack() as stack:
            is_sqlite = self.engine.dialect.name == "sqlite"
            if is_sqlite and self._patient:
                _take_turns(sqlite_file(self.engine.url), stack)
            bare = stack.enter_context(self.engine.connect())
            connection = bare.execution_options(batchrun_begin="BEGIN IMMEDIATE")
            stack.enter_context(connection.begin())
            if not is_sqlite:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_WAIT_S if self._patient else 1}s'")
            yield connection


def _wait_for_locks(raw: Any, record: Any) -> None:
    cursor = raw.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(SQLITE_WAIT_S * 1000)}")
    cursor.close()


def _take_turns(database: Path, stack: ExitStack) -> None:
    """Always in the same order, so that two visitors never wait for each other."""
    for folder in sorted(database.parent.glob(f"{glob.escape(database.name)}-batchrun-*")):
        with contextlib.suppress(OSError):  # the run ended at this moment, or is another user's
            if all((folder / name).exists() for name in NAMES):
                turnstile = Turnstile(folder)
                stack.callback(turnstile.close)
                stack.callback(turnstile.leave)
                turnstile.enter()
