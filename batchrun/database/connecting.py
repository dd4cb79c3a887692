"""Connecting, and saying in one clear line why it did not work."""

from __future__ import annotations

from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from batchrun.database.failures import is_refusal, message_of
from batchrun.database.urls import sqlite_file
from batchrun.errors import DatabaseError


def check_reachable(engine: Engine) -> None:
    """Connect once. Raises DatabaseError with what, where and what to do; no password in it."""
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        raise unreachable(engine, error) from None


def takes_writes(engine: Engine) -> bool:
    """False on a standby, and where transactions are read-only by default."""
    if engine.dialect.name != "postgresql":
        return True
    with engine.connect() as connection:
        return str(connection.scalar(text("SELECT current_setting('transaction_read_only')"))) != "on"


def unreachable(engine: Engine, error: BaseException) -> DatabaseError:
    """The DatabaseError for a connection that failed."""
    said = " ".join(message_of(error).split())
    if engine.dialect.name == "sqlite":
        return DatabaseError(
            f"The SQLite database {sqlite_file(engine.url)} cannot be opened: {said}. "
            "Check that the folder exists and may be written."
        )
    url = engine.url
    place = f"{_hosts(url)}, database {url.database}, user {url.username}"
    refused = isinstance(error, DBAPIError) and is_refusal(error)
    remedy = (
        "Check user, password and database name." if refused else "Check that the server runs and that host and port are right."
    )
    return DatabaseError(f"The database cannot be reached ({place}): {said}. {remedy}")


def _hosts(url: URL) -> str:
    """Where the URL leads, for people; it may name several hosts."""
    several, ports = _parts(url.query.get("host")), _parts(url.query.get("port"))
    if not several:
        return f"{url.host or 'the local socket'}:{url.port or 5432}"
    ports = [*ports, *(ports[-1:] or ["5432"]) * len(several)]
    return ", ".join(one if ":" in one else f"{one}:{port}" for one, port in zip(several, ports, strict=False))


def _parts(given: str | tuple[str, ...] | None) -> list[str]:
    every = (given,) if isinstance(given, str) else given or ()
    return [part for one in every for part in one.split(",")]
