"""The benchmarks' own PostgreSQL: durable as in production, with nothing that wakes up in the middle of a measurement."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg2
from sqlalchemy import create_engine

from benchmarks.speed.work import Base
from tests.postgres import Server

SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "8GB",  # no checkpoint by size, and
    "checkpoint_timeout": "1h",  # none by time: each measurement begins after one
    "autovacuum": "off",  # each measurement begins after a VACUUM
    "max_connections": "200",
}
ROWS = 100_000


def started() -> Server:
    """A server with the settings above; the caller closes it."""
    return Server(**SETTINGS).start()


def url_of(server: Server) -> str:
    """With the driver named: SQLAlchemy 2.1 takes another one for ``postgresql://``."""
    return server.url().replace("postgresql:", "postgresql+psycopg2:")


@contextlib.contextmanager
def connected(server: Server) -> Iterator[Any]:
    """A cursor outside any transaction."""
    connection = psycopg2.connect(server.url(), connect_timeout=10)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def create_data(server: Server, rows: int = ROWS) -> None:
    """The table of the benchmarks, with ``rows`` accounts of about 150 bytes on half full pages."""
    engine = create_engine(url_of(server))
    Base.metadata.create_all(engine)
    engine.dispose()
    with connected(server) as cursor:
        cursor.execute("ALTER TABLE accounts SET (fillfactor = 50)")
        cursor.execute(
            "INSERT INTO accounts SELECT id, 'owner ' || id, 0, repeat('x', 100) FROM generate_series(1, %s) id", (rows,)
        )


def settle(server: Server) -> int:
    """Leave nothing to do from the measurement before. Returns the sum of all balances."""
    with connected(server) as cursor:
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("CHECKPOINT")
        cursor.execute("SELECT sum(balance) FROM accounts")
        return int(cursor.fetchone()[0])
