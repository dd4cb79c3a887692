"""Writing to the ledger without owning a run: short transactions of housekeeping, beside runs that go on.

On SQLite a visitor takes the owner's place in the queue of every run that goes on (database/turnstile.py): whoever only
waits for the file's lock may never get it from workers that write one after the other. An owner that stands still may keep
that place for itself, and with it all writers out: the visitor then comes in without.
"""

from __future__ import annotations

import contextlib
import glob
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event

from batchrun.database.engines import SQLITE_WAIT_S, EngineSpec, control_engine
from batchrun.database.turnstile import NAMES, OwnerTurn
from batchrun.database.urls import sqlite_file

TURN_WAIT_S = 5.0
"""SQLite: how long a place is waited for. An owner that lives gives its own up as soon as the item that is writing ends."""

AGAIN_S = 0.005
LOCK_WAIT_S = 30
"""PostgreSQL: how long a statement waits for a lock. Owners hold theirs for milliseconds."""


class Visitor:
    """Makes short transactions. patient: waits for its turn on SQLite; else it comes in at once or not at all."""

    def __init__(self, spec: EngineSpec, *, application_name: str, patient: bool = True) -> None:
        self.engine: Engine = control_engine(spec, application_name=application_name)
        self._patient = self._takes_turns = patient
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
            if is_sqlite and self._takes_turns:
                self._takes_turns = _take_turns(sqlite_file(self.engine.url), stack)
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


def _take_turns(database: Path, stack: ExitStack) -> bool:
    """Always in the same order, so that two visitors seldom wait for each other. False when that took too long."""
    until = time.monotonic() + TURN_WAIT_S
    for folder in sorted(database.parent.glob(f"{glob.escape(database.name)}-batchrun-*")):
        with contextlib.suppress(OSError):  # the run ended at this moment, or is another user's
            if all((folder / name).exists() for name in NAMES):
                turn = OwnerTurn(folder)
                stack.callback(turn.close)
                stack.callback(turn.leave)
                while not turn.try_enter():
                    if time.monotonic() > until:
                        return False
                    time.sleep(AGAIN_S)
    return True
