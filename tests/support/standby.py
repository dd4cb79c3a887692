"""A streaming standby of a server of ours, to be promoted when its primary is gone."""

from __future__ import annotations

import contextlib

import psycopg2

from tests.postgres import USER, Server
from tests.support.waiting import wait_until


class Standby(Server):
    """Made by pg_basebackup; takes connections, but no writes, until it is promoted."""

    def __init__(self, primary: Server) -> None:
        self._primary = primary
        super().__init__(hot_standby="on")

    def _initdb(self) -> None:
        source = ["-h", "127.0.0.1", "-p", str(self._primary.port), "-U", USER]
        run = self._run(
            [str(self._bin / "pg_basebackup"), *source, "-D", str(self._data), "-R", "-X", "stream", "-c", "fast", "--no-sync"],
            text=True,
            capture_output=True,
        )
        assert run.returncode == 0, run.stderr

    def promote(self) -> None:
        """Make it the primary; returns when it takes writes."""
        with contextlib.closing(psycopg2.connect(self.url())) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_promote(wait => true)")


def streams(primary: Server) -> bool:
    """Has the primary a synchronous standby by now?"""
    with contextlib.closing(psycopg2.connect(primary.url())) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")
        row = cursor.fetchone()
    return row is not None and row[0] == 1


def make_synchronous(primary: Server) -> None:
    """From now on a COMMIT is answered when the standby has it."""
    with contextlib.closing(psycopg2.connect(primary.url())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            cursor.execute("SELECT pg_reload_conf()")
    wait_until(lambda: streams(primary), 20)
