"""Databases for single tests: cloned from a template on PostgreSQL, a file on SQLite."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from sqlalchemy import Engine, NullPool, create_engine, make_url

from tests.postgres import Postgres
from tests.support.waiting import wait_until

OUR_SESSIONS = (
    "SELECT application_name, state, query FROM pg_stat_activity WHERE datname = %s AND application_name LIKE 'batchrun:%%'"
)


END_SESSIONS = "SELECT pg_terminate_backend(pid, %s) FROM pg_stat_activity WHERE datname = %s"

EMPTY = """
DO $$
DECLARE name text;
BEGIN
    ASSERT (SELECT count(*) FROM pg_extension) = 1;
    ASSERT (SELECT datdba = current_user::regrole AND datconnlimit = -1 AND datacl IS NULL
            FROM pg_database WHERE datname = current_database());
    ASSERT NOT EXISTS (SELECT FROM pg_db_role_setting JOIN pg_database ON oid = setdatabase WHERE datname = current_database());
    FOR name IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', name);
    END LOOP;
    CREATE SCHEMA public AUTHORIZATION pg_database_owner;
    GRANT USAGE ON SCHEMA public TO PUBLIC;
END $$
"""
"""As a new database is. Fails where a test has given it an owner, settings or an extension; then the database goes."""


class Clones:
    """Clones of one empty template. Each is emptied for the next test, which takes far less than to drop it and make another.

    Each step has a connection of its own: one that was held would be inherited by children that tests fork.
    """

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self._prefix = f"batchrun_test_{os.getpid()}"
        self._numbers = itertools.count(1)
        self._free: list[str] = []
        self.template = f"{self._prefix}_template"
        self.execute(f"CREATE DATABASE {self.template} TEMPLATE template0 ENCODING 'UTF8'")

    def execute(self, statement: str, *values: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as the administrator, outside a transaction; its rows, if it has any."""
        connection = psycopg2.connect(self.server.url(database), application_name="tests")
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    @contextmanager
    def clone(self) -> Iterator[str]:
        """An empty database's name. At the end nothing in it is left, whoever is still connected."""
        name = self._free.pop() if self._free else self._made()
        try:
            yield name
        finally:
            if self._emptied(name):
                self._free.append(name)
            else:
                self.drop(name)

    def _made(self) -> str:
        name = f"{self._prefix}_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        return name

    def _emptied(self, name: str) -> bool:
        try:
            self.execute(END_SESSIONS, 5_000, name)
            self.execute(EMPTY, database=name)
        except psycopg2.Error:
            return False
        return True

    def drop(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def close(self) -> None:
        for name in (*self._free, self.template):
            self.drop(name)

    def sessions(self, name: str) -> list[tuple[Any, ...]]:
        """The sessions batchrun has in a database: application_name, state, query."""
        return self.execute(OUR_SESSIONS, name)

    def check_sessions(self, name: str, timeout_s: float = 5.0) -> None:
        """Wait until batchrun has no session left in a database; AssertionError lists those that stay."""
        wait_until(
            lambda: not self.sessions(name), timeout_s, what=lambda: f"no session of batchrun is left: {self.sessions(name)}"
        )


def engine_for(url: str) -> Engine:
    """An engine for a test's own statements; it keeps no connection and takes any URL of the fixtures.

    ``postgresql://`` is read as psycopg2: SQLAlchemy 2.1 alone would take it for psycopg 3.
    """
    made = make_url(url)
    if made.drivername == "postgresql":
        made = made.set(drivername="postgresql+psycopg2")
    return create_engine(made, poolclass=NullPool)
