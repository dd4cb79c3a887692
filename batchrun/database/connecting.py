"""Connecting, waiting where the server is merely full, and saying in one clear line why it did not work."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from batchrun.database.failures import is_refusal, message_of, sqlstate_of
from batchrun.database.urls import sqlite_file
from batchrun.errors import DatabaseError

FULL_WAIT_S = 60.0
"""How long the parent waits for a free connection: others' short sessions end within seconds, a wrong number never."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0

# libpq reports a refused connection without any code, so the text has to do, as in failures.py.
_FULL = ("too many clients already", "remaining connection slots are reserved", "too many connections for role",
         "too many connections for database", "no more connections allowed")  # fmt: skip


def check_reachable(engine: Engine, *, tell: Callable[[str], None] | None = None, numbers: Callable[[], str] = str) -> None:
    """Connect once. Raises DatabaseError with what, where and what to do; no password in it.

    tell: somebody to tell that the server has no connection left; it is then waited for, up to a minute. Without
    one that is an error like any other. numbers: what else is known about the server's connections, for the error.
    """
    until, pause, told = time.monotonic() + FULL_WAIT_S, FIRST_PAUSE_S, False
    while True:
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            return
        except SQLAlchemyError as error:
            if tell is None or not is_full(error):
                raise unreachable(engine, error) from None
            if time.monotonic() > until:
                raise _still_full(engine, error, numbers()) from None
            if not told:
                tell(
                    f"PostgreSQL ({_place(engine)}) has no free connection for role {engine.url.username}; waiting for one, "
                    f"up to {FULL_WAIT_S:g} s: {_said(error)}"
                )
                told = True
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, LONGEST_PAUSE_S)


def is_full(error: BaseException) -> bool:
    """True when connecting failed because a limit on connections was reached."""
    return sqlstate_of(error) == "53300" or any(full in str(error) for full in _FULL)


def takes_writes(engine: Engine) -> bool:
    """False on a standby, and where transactions are read-only by default."""
    if engine.dialect.name != "postgresql":
        return True
    with engine.connect() as connection:
        return str(connection.scalar(text("SELECT current_setting('transaction_read_only')"))) != "on"


def unreachable(engine: Engine, error: BaseException) -> DatabaseError:
    """The DatabaseError for a connection that failed."""
    said = _said(error)
    if engine.dialect.name == "sqlite":
        return DatabaseError(
            f"The SQLite database {sqlite_file(engine.url)} cannot be opened: {said}. "
            "Check that the folder exists and may be written."
        )
    refused = isinstance(error, DBAPIError) and is_refusal(error)
    remedy = (
        "Check user, password and database name." if refused else "Check that the server runs and that host and port are right."
    )
    if is_full(error):
        remedy = "Every connection is taken: try again later, or raise the limit."
    elif "unsupported startup parameter" in said:
        remedy = "A pooler such as pgbouncer takes no options= in the URL: set them for the role (ALTER ROLE ... SET ...)."
    return DatabaseError(f"The database cannot be reached ({_place(engine)}, user {engine.url.username}): {said}. {remedy}")


def _still_full(engine: Engine, error: BaseException, numbers: str) -> DatabaseError:
    known = f"\n{numbers}\n" if numbers else " "
    return DatabaseError(
        f"PostgreSQL ({_place(engine)}) had no free connection for role {engine.url.username} for {FULL_WAIT_S:g} s: "
        f"{_said(error)}.{known}See in pg_stat_activity who holds them, raise the limit, or "
        "put a pooler such as pgbouncer in between."
    )


def _place(engine: Engine) -> str:
    return f"{hosts_text(engine.url)}, database {engine.url.database}"


def hosts_text(url: URL) -> str:
    """Where the URL leads, for people; it may name several hosts."""
    several, ports = _parts(url.query.get("host")), _parts(url.query.get("port"))
    if not several:
        return f"{url.host or 'the local socket'}:{url.port or 5432}"
    ports = [*ports, *(ports[-1:] or ["5432"]) * len(several)]
    return ", ".join(one if ":" in one else f"{one}:{port}" for one, port in zip(several, ports, strict=False))


def _parts(given: str | tuple[str, ...] | None) -> list[str]:
    every = (given,) if isinstance(given, str) else given or ()
    return [part for one in every for part in one.split(",")]


def _said(error: BaseException) -> str:
    return " ".join(message_of(error).split())
