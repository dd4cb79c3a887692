"""A dry run's databases: everything happens as ever, and where a COMMIT would stand, the checks of COMMIT and a ROLLBACK.

worker   its gate sends ``instead_of_commit``
parent   the items function may have written: ``undo_commits`` makes each COMMIT of the source's engine a ROLLBACK
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from batchrun.database.drivers import Driver

UNDONE = (
    "What the items function wrote was rolled back, as this is a dry run: tasks do not see it. If they need it, such as tables "
    "it makes, do that for real first."
)


def instead_of_commit(driver: Driver) -> tuple[str, ...]:
    """What ends a transaction of a dry run, in one message as COMMIT is.

    Deferred constraints are checked as COMMIT would check them. SQLite cannot be asked for that without a COMMIT.
    """
    return ("ROLLBACK", "PRAGMA shrink_memory") if driver.name == "pysqlite" else ("SET CONSTRAINTS ALL IMMEDIATE", "ROLLBACK")


def undo_commits(engine: Engine, on_undone: Callable[[], None]) -> None:
    """Make each COMMIT of an engine a ROLLBACK. on_undone: called when something that was written is undone by it.

    On SQLite a transaction begins in earnest: sqlite3 itself begins none for CREATE TABLE, which would stand at once.
    """
    dialect: Any = engine.dialect
    before: dict[int, tuple[int, int]] = {}
    rollback = dialect.do_rollback

    def do_commit(connection: Any) -> None:
        raw = connection.dbapi_connection
        if _has_written(raw, before.pop(id(raw), None)):
            on_undone()
        rollback(connection)

    dialect.do_commit = do_commit
    if dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def connected(raw: Any, record: Any) -> None:
        raw.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")
        raw: Any = connection.connection.dbapi_connection
        before[id(raw)] = _changes(raw)


def _changes(raw: Any) -> tuple[int, int]:
    return raw.total_changes, raw.execute("PRAGMA schema_version").fetchone()[0]


def _has_written(raw: Any, before: tuple[int, int] | None) -> bool:
    if hasattr(raw, "total_changes"):
        return before is not None and _changes(raw) != before
    with contextlib.closing(raw.cursor()) as cursor:
        try:
            cursor.execute("SELECT txid_current_if_assigned()")
            return cursor.fetchone()[0] is not None
        except Exception:  # the transaction has failed, so there is nothing to undo
            return False


@contextlib.contextmanager
def leaves_no_file(file: Path | None) -> Iterator[None]:
    """SQLite makes the file of a database that does not exist, empty, when somebody connects: take it away again."""
    existed = file is None or file.exists()
    try:
        yield
    finally:
        if file is not None and not existed:
            with contextlib.suppress(OSError):
                if file.stat().st_size == 0:
                    file.unlink()
