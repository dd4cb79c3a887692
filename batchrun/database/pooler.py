"""A pooler, such as pgbouncer, between us and PostgreSQL: how it is noticed, and what must then be left alone.

In transaction mode the session behind a connection is another one after each transaction, and the one before serves
somebody else. So nothing may be left in it, and nothing that is found in it says whose it is: a program that names
itself to nobody is shown by the server under the name of whoever used its session last.

    noticed      the process number the connection was greeted with is not the one that answers
    left alone   SET without LOCAL, prepared statements, sessions that merely bear our name
    cleaned      what a task left: in the message of its COMMIT or ROLLBACK, while the session is still ours

A pooler in session mode looks the same from here and is treated the same.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, event

from batchrun.database.drivers import driver_named

_POOLED = "batchrun_pooled"

NOTICE = (
    "PostgreSQL is reached through a pooler, such as pgbouncer: batchrun keeps to what is safe in its transaction mode. "
    "How many connections there are is up to the pooler (default_pool_size, max_client_conn), so nothing was counted here."
)

AFTER_COMMIT = (
    "CLOSE ALL", "RESET SESSION AUTHORIZATION", "RESET ALL", "UNLISTEN *", "SELECT pg_advisory_unlock_all()", "DISCARD TEMP",
    "DISCARD SEQUENCES", "DEALLOCATE ALL",
)  # fmt: skip
"""DISCARD ALL by its parts, since that one refuses to share a message with a COMMIT."""

AFTER_ROLLBACK = ("SELECT pg_advisory_unlock_all()",)
"""All that a ROLLBACK does not undo by itself."""


def watch(engine: Engine) -> None:
    """Look at every new connection of a PostgreSQL engine: does it lead through a pooler? One round trip."""
    if engine.dialect.name != "postgresql":
        return
    driver = driver_named(engine.dialect.driver)

    @event.listens_for(engine, "connect")
    def connected(raw: Any, record: Any) -> None:
        record.info[_POOLED] = driver.settle_pooler(raw)


def is_pooled(connection: Connection) -> bool:
    """Does this connection lead through a pooler?"""
    return bool(connection.info.get(_POOLED))


def is_pooled_record(record: Any) -> bool:
    """The same, while the connection is being made."""
    return bool(record.info.get(_POOLED))
