"""What people ask of a run from elsewhere: to pause, to cancel, another speed.

    somebody's command  --ask-->  batchrun_request, one row a run  --pending-->  the owner, once a second
    the owner obeys     --obeyed, over-->  the run's row changes and the request goes, in one transaction (a pause's stays)

The run's row is written by its owner only. So a request that is gone was obeyed, and one that nobody could obey, because
the owner died, is still there.
"""

from __future__ import annotations

import getpass
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, delete, select, update
from sqlalchemy.exc import DBAPIError

from batchrun.database.failures import Meaning, meaning_of, message_of
from batchrun.database.runfolder import run_folder
from batchrun.database.turnstile import OwnerTurn
from batchrun.database.urls import sqlite_file
from batchrun.errors import DatabaseError
from batchrun.ledger.reading import now_expression
from batchrun.ledger.schema import Tables
from batchrun.runs import FINISHED, RunStatus

PAUSE, CANCEL = "pause", "cancel"

WAIT_S = 15.0
"""How long a request waits for its turn to be written: on SQLite an item that is running holds the file."""

AGAIN_S = 0.02


@dataclass(frozen=True, slots=True)
class Request:
    """wanted: PAUSE, CANCEL or "". tuned: options by name, as JSON keeps them. asked_by: for people."""

    wanted: str = ""
    tuned: Mapping[str, Any] = field(default_factory=dict)
    asked_by: str = ""


def asker() -> str:
    """Who asks, for people: ``ada on host7``."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user id without a name, as in containers
        name = "somebody"
    return f"{name} on {socket.gethostname()}"


# For whoever asks.


def ask(engine: Engine, tables: Tables, run: str, wanted: str = "", tuned: Mapping[str, Any] | None = None) -> None:
    """Write a request, beside what was asked before: the last word on each option counts, and to cancel beats to pause.

    Raises DatabaseError when it could not be written for a while.
    """
    request = tables.request
    with _writing(engine, run) as connection:
        _make_room(connection, tables, run)
        row = connection.execute(select(request).where(request.c.run == run).with_for_update()).one()
        options = {**json.loads(row.tuned), **(tuned or {})}
        wish = row.wanted if not wanted or row.wanted == CANCEL else wanted
        connection.execute(
            update(request)
            .where(request.c.run == run)
            .values(wanted=wish, tuned=json.dumps(options), asked=now_expression(engine.dialect.name), asked_by=asker())
        )


def withdraw(engine: Engine, tables: Tables, run: str) -> None:
    """Nobody is there to obey it any more."""
    with _writing(engine, run) as connection:
        connection.execute(delete(tables.request).where(tables.request.c.run == run))


def _make_room(connection: Connection, tables: Tables, run: str) -> None:
    """See to it that the row is there, also when somebody else asks at this moment."""
    row = {"run": run, "asked": now_expression(connection.dialect.name)}
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        connection.execute(sqlite.insert(tables.request).values(**row).on_conflict_do_nothing())
    else:
        from sqlalchemy.dialects import postgresql

        connection.execute(postgresql.insert(tables.request).values(**row).on_conflict_do_nothing())


@contextmanager
def _writing(engine: Engine, run: str) -> Iterator[Connection]:
    """A transaction beside a run that goes on. On SQLite it takes its turn as the owner does, so no worker can pass it."""
    turn = _turn(engine, run)
    try:
        with _begun(engine, turn) as connection:
            yield connection
    finally:
        if turn:
            turn.leave()
            turn.close()


def _turn(engine: Engine, run: str) -> OwnerTurn | None:
    if engine.dialect.name != "sqlite":
        return None
    folder: Path = run_folder(sqlite_file(engine.url), run)
    try:
        return OwnerTurn(folder)
    except OSError:  # there is no owner, so nobody takes turns
        return None


@contextmanager
def _begun(engine: Engine, turn: OwnerTurn | None) -> Iterator[Connection]:
    until = time.monotonic() + WAIT_S
    with engine.connect() as bare:
        connection = bare.execution_options(batchrun_begin="BEGIN IMMEDIATE")
        while True:
            said = "others are writing"
            try:
                if turn is None or turn.try_enter():
                    connection.begin()
                    break
            except DBAPIError as error:
                if meaning_of(error, is_lost=False, retry_on=()) is not Meaning.RETRY:
                    raise
                said = " ".join(message_of(error).split())
            if time.monotonic() > until:
                raise DatabaseError(f"The request could not be written for {WAIT_S:g} s: {said}. Try again.")
            time.sleep(AGAIN_S)
        yield connection
        connection.commit()


# For the owner.


def pending(connection: Connection, tables: Tables, run: str) -> Request | None:
    """What is asked of the run just now."""
    request = tables.request
    row = connection.execute(select(request.c.wanted, request.c.tuned, request.c.asked_by).where(request.c.run == run)).first()
    return None if row is None else Request(row.wanted, json.loads(row.tuned), row.asked_by)


def tune(connection: Connection, tables: Tables, run: str, epoch: int, asked: Request, workers: int) -> bool:
    """The owner obeyed: from now on these are the run's options, also for a resume. False when it is not the owner any more.

    The request goes, unless it asks for more by now, or for an end.
    """
    row, request = tables.run, tables.request
    mine = (row.c.id == run, row.c.epoch == epoch)
    found = connection.execute(select(row.c.options).where(*mine).with_for_update()).first()
    if found is None:
        return False
    options = json.loads(found.options)
    options |= {**asked.tuned, "given": {**(options.get("given") or {}), **asked.tuned}}
    connection.execute(update(row).where(*mine).values(options=json.dumps(options), workers=workers))
    same = (request.c.run == run, request.c.tuned == json.dumps(dict(asked.tuned)))
    connection.execute(update(request).where(*same).values(tuned="{}"))
    connection.execute(delete(request).where(request.c.run == run, request.c.tuned == "{}", request.c.wanted == ""))
    return True


def taken_over(connection: Connection, tables: Tables, run: str, status: str) -> None:
    """A new owner goes on: what was asked of the old one is over, but for a cancel that nobody obeyed.

    status: the run's before. Whoever goes on with a finished run means it.
    """
    _over(connection, tables, run, () if RunStatus(status) in FINISHED else (CANCEL,))


def ended(connection: Connection, tables: Tables, run: str, status: RunStatus) -> None:
    """The run ended so. A cancel that came too late for a run that can still be resumed stays, for whoever asked, or resumes.

    So does the pause of a run that is paused: by that the next firing of cron knows that a person wants it to rest.
    """
    _over(connection, tables, run, () if status in FINISHED else (CANCEL, PAUSE) if status is RunStatus.PAUSED else (CANCEL,))


def _over(connection: Connection, tables: Tables, run: str, kept: tuple[str, ...]) -> None:
    request = tables.request
    connection.execute(delete(request).where(request.c.run == run, request.c.wanted.not_in(kept)))
