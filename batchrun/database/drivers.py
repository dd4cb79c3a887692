"""The three drivers behind one face: what the gate needs of a raw connection, and nothing more.

Each driver runs in its own autocommit mode, so that BEGIN and COMMIT are ours to send.
"""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Sequence
from typing import Any, Protocol

from batchrun.errors import DatabaseError


class Status(enum.Enum):
    """Where the connection's transaction stands, as the client knows it without a round trip."""

    IDLE = 0
    ACTIVE = 1
    INTRANS = 2
    INERROR = 3
    UNKNOWN = 4


_STATUSES = tuple(Status)
_IDLE = Status.IDLE.value


class Driver(Protocol):
    """What a driver can do with its raw connection."""

    name: str

    def prepare(self, raw: Any, *, read_only: bool, wait_s: float, pooled: bool = False, as_it_is: bool = False) -> None:
        """Put a fresh connection into driver autocommit and set what lasts for the session.

        wait_s: how long a SQLite connection waits for another's lock; 0 = not at all. pooled: the session is a
        pooler's, who gives it to others in between, so nothing is set. as_it_is: nothing is set in the database's file.
        """

    def is_prepared(self, raw: Any) -> bool:
        """False once somebody switched driver autocommit off."""

    def is_at_rest(self, raw: Any) -> bool:
        """Usable, prepared, and no transaction open: one question for what is the case after nearly every item."""

    def send(self, raw: Any, statements: Sequence[str]) -> int:
        """Run the statements, in one message where the driver can; return the last one's row count."""

    def status(self, raw: Any) -> Status: ...

    def is_closed(self, raw: Any) -> bool:
        """True when the connection is known to be unusable."""

    def cancel(self, raw: Any) -> None:
        """Ask the server, from another thread, to cancel what is running."""

    def backend_pid(self, raw: Any) -> int | None:
        """The server's process behind a fresh connection; None where there is none."""

    def settle_pooler(self, raw: Any) -> bool:
        """Does a fresh connection lead through a pooler? If so, the driver leaves nothing in its sessions from now on."""


_PID = "SELECT pg_backend_pid()"


def _postgres_set_up(version: int, read_only: bool, pooled: bool) -> list[str]:
    if pooled:
        return []
    statements = ["SET default_transaction_read_only = on"] if read_only else []
    if version >= 140000:  # a killed worker's backend otherwise runs its statement to the end
        statements.append("SET client_connection_check_interval = 500")
    return statements


class Psycopg2:
    """psycopg2: several statements go in one simple-query message."""

    name = "psycopg2"

    def prepare(self, raw: Any, *, read_only: bool, wait_s: float, pooled: bool = False, as_it_is: bool = False) -> None:
        raw.rollback()
        raw.autocommit = True
        if statements := _postgres_set_up(raw.server_version, read_only, pooled):
            self.send(raw, statements)

    def is_prepared(self, raw: Any) -> bool:
        return bool(raw.autocommit)

    def is_at_rest(self, raw: Any) -> bool:
        return not raw.closed and raw.get_transaction_status() == _IDLE and raw.autocommit is True

    def send(self, raw: Any, statements: Sequence[str]) -> int:
        cursor = raw.cursor()
        cursor.execute("; ".join(statements))
        changed: int = cursor.rowcount
        return changed

    def status(self, raw: Any) -> Status:
        return Status.UNKNOWN if raw.closed else _STATUSES[raw.get_transaction_status()]

    def is_closed(self, raw: Any) -> bool:
        return bool(raw.closed)

    def cancel(self, raw: Any) -> None:
        raw.cancel()

    def backend_pid(self, raw: Any) -> int | None:
        return int(raw.info.backend_pid)

    def settle_pooler(self, raw: Any) -> bool:
        mode, raw.autocommit = raw.autocommit, True
        with raw.cursor() as cursor:
            cursor.execute(_PID)
            answered = cursor.fetchone()[0]
        raw.autocommit = mode
        return bool(answered != self.backend_pid(raw))


_ANSWERS = (1, 2)
"""libpq's PGRES_COMMAND_OK and PGRES_TUPLES_OK."""


class Psycopg:
    """psycopg 3: below its cursors, which cost four times as much, several statements go in one simple-query message."""

    name = "psycopg"

    def prepare(self, raw: Any, *, read_only: bool, wait_s: float, pooled: bool = False, as_it_is: bool = False) -> None:
        raw.rollback()
        raw.autocommit = True
        if statements := _postgres_set_up(raw.info.server_version, read_only, pooled):
            self.send(raw, statements)

    def is_prepared(self, raw: Any) -> bool:
        return bool(raw.autocommit)

    def is_at_rest(self, raw: Any) -> bool:
        return raw.pgconn.transaction_status == _IDLE and raw.autocommit is True  # UNKNOWN once it is closed

    def send(self, raw: Any, statements: Sequence[str]) -> int:
        if statements[0] == "ROLLBACK":
            return self._send_by_cursor(raw, statements)  # after which psycopg forgets what it has prepared
        pgconn = raw.pgconn
        answer = pgconn.exec_("; ".join(statements).encode())
        if answer.status not in _ANSWERS:
            raise _psycopg_error(raw, answer)
        changed = answer.command_tuples
        return -1 if changed is None else changed

    def _send_by_cursor(self, raw: Any, statements: Sequence[str]) -> int:
        from psycopg import ClientCursor

        with ClientCursor(raw) as cursor:
            cursor.execute("; ".join(statements))
            while cursor.nextset():
                continue
            return int(cursor.rowcount)

    def status(self, raw: Any) -> Status:
        return Status.UNKNOWN if raw.closed else _STATUSES[raw.pgconn.transaction_status]

    def is_closed(self, raw: Any) -> bool:
        return bool(raw.closed or raw.broken)

    def cancel(self, raw: Any) -> None:
        raw.cancel()

    def backend_pid(self, raw: Any) -> int | None:
        return int(raw.info.backend_pid)

    def settle_pooler(self, raw: Any) -> bool:
        mode, raw.autocommit = raw.autocommit, True
        answered = raw.pgconn.exec_(_PID.encode()).get_value(0, 0)  # below cursors, whose rows the user's engine may shape
        raw.autocommit = mode
        pooled = answered is not None and int(answered) != self.backend_pid(raw)
        if pooled:
            raw.prepare_threshold = None
        return pooled


def _psycopg_error(raw: Any, answer: Any) -> Exception:
    """What psycopg's own cursor would raise. libpq gives no code where the connection broke."""
    from psycopg import OperationalError
    from psycopg.errors import error_from_result

    error = error_from_result(answer, raw.info.encoding)
    if raw.closed and not isinstance(error, OperationalError):
        return OperationalError(str(error))
    return error


class Sqlite:
    """The standard library's sqlite3. Local, so several statements are several calls."""

    name = "pysqlite"

    def prepare(self, raw: Any, *, read_only: bool, wait_s: float, pooled: bool = False, as_it_is: bool = False) -> None:
        raw.isolation_level = None
        cursor = raw.cursor()
        try:
            if not (read_only or as_it_is):
                _write_ahead(cursor)
            cursor.execute(f"PRAGMA busy_timeout = {int(wait_s * 1000)}")
            cursor.execute(f"PRAGMA query_only = {int(read_only)}")
        finally:
            cursor.close()

    def is_prepared(self, raw: Any) -> bool:
        return raw.isolation_level is None

    def is_at_rest(self, raw: Any) -> bool:
        return not self.is_closed(raw) and not raw.in_transaction and raw.isolation_level is None

    def send(self, raw: Any, statements: Sequence[str]) -> int:
        cursor = raw.cursor()
        try:
            for statement in statements:
                cursor.execute(statement)
            return int(cursor.rowcount)
        finally:
            cursor.close()

    def status(self, raw: Any) -> Status:
        if self.is_closed(raw):
            return Status.UNKNOWN
        return Status.INTRANS if raw.in_transaction else Status.IDLE

    def is_closed(self, raw: Any) -> bool:
        try:
            return raw.in_transaction is None
        except sqlite3.ProgrammingError:
            return True

    def cancel(self, raw: Any) -> None:
        raw.interrupt()

    def backend_pid(self, raw: Any) -> int | None:
        return None

    def settle_pooler(self, raw: Any) -> bool:
        return False


def _write_ahead(cursor: Any) -> None:
    """Write-ahead logging lets readers go on beside the one writer. It is a property of the file, set once."""
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        cursor.execute("PRAGMA busy_timeout = 10000")  # this one needs the file for itself, for a moment
        cursor.execute("PRAGMA journal_mode = WAL")


_KNOWN: dict[str, Driver] = {"psycopg2": Psycopg2(), "psycopg": Psycopg(), "pysqlite": Sqlite()}


def driver_named(name: str) -> Driver:
    """The driver of a dialect, by ``dialect.driver``. Raises DatabaseError for one batchrun does not know."""
    if name not in _KNOWN:
        raise DatabaseError(f"The engine uses the driver {name!r}; batchrun works with psycopg2, psycopg and sqlite3.")
    return _KNOWN[name]
