"""From an older layout of the ledger to this one: every step in one transaction, so that a kill leaves the old one.

A step only adds. So an owner of the older layout that is writing goes on writing, and whoever resumes its run afterwards
finds all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from batchrun.database.failures import message_of, sqlstate_of
from batchrun.errors import ConfigError, DatabaseError
from batchrun.ledger.schema import CREATION_LOCK, LAYOUT, Tables, exists
from batchrun.ledger.visiting import Visitor

Step = Callable[[Tables, Any], list[str]]


def _from_1(known: Tables, dialect: Any) -> list[str]:
    """Requests from elsewhere, insight, schedules."""
    made = [str(CreateTable(table, if_not_exists=True).compile(dialect=dialect)).strip() for table in known.added]
    return [*made, _moved(known, dialect, 1)]


STEPS: Mapping[int, Step] = {1: _from_1}
"""From a layout to the next one."""


def _moved(known: Tables, dialect: Any, layout: int) -> str:
    meta = known.meta
    made = update(meta).where(meta.c.layout == layout).values(layout=layout + 1)
    return str(made.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))


def layout_of(connection: Connection, known: Tables) -> int:
    """The layout of a ledger that is there. Raises ConfigError where it is newer than this batchrun, or nowhere said."""
    found = connection.execute(select(known.meta.c.layout).order_by(known.meta.c.layout)).scalars().first()
    if found is None:
        raise ConfigError(
            f"The table {known.meta.fullname} is empty, so nobody knows this ledger's layout; nothing was changed. "
            f"If it was made by hand, write the number that belongs to its statements into it."
        )
    if found > LAYOUT:
        raise ConfigError(
            f"The ledger in this database has layout {found}, this batchrun knows layout {LAYOUT}; nothing was changed. "
            "Install a batchrun that knows it."
        )
    return int(found)


def statements(known: Tables, dialect: Any, found: int) -> list[str]:
    """What leads from layout ``found`` to this one, in one transaction."""
    return [one for layout in range(found, LAYOUT) for one in STEPS[layout](known, dialect)]


def script(engine: Engine, known: Tables, found: int) -> str:
    """The same for a person to run, with the rights that the role of ``engine`` then needs."""
    if found >= LAYOUT:
        return ""
    lines = [f"{one};" for one in statements(known, engine.dialect, found)]
    if engine.dialect.name == "postgresql" and engine.url.username:
        quoted = engine.dialect.identifier_preparer
        names = ", ".join(quoted.format_table(table) for table in known.added)
        lines.insert(-1, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {names} TO {quoted.quote(engine.url.username)};")
    return "\n\n".join(["BEGIN;", *lines, "COMMIT;"]) + "\n"


def found_layout(engine: Engine, known: Tables) -> int | None:
    """The layout that is there; None where there is no ledger."""
    if not exists(engine, known):
        return None
    with engine.connect() as connection:
        return layout_of(connection, known)


def upgrade(visitor: Visitor, known: Tables) -> int | None:
    """Bring the ledger to this layout. Returns the one it had; None where there is no ledger.

    Two at once: one does it, the other waits and finds it done. Raises ConfigError for a newer layout, DatabaseError with
    the statements where this role may not do it.
    """
    engine = visitor.engine
    found = found_layout(engine, known)
    if found is None or found == LAYOUT:
        return found
    try:
        with visitor.writing() as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({CREATION_LOCK})")
            for one in statements(known, engine.dialect, layout_of(connection, known)):
                connection.exec_driver_sql(one)
    except DBAPIError as error:
        if (sqlstate_of(error) or "") not in ("42501", "25006"):
            raise
        raise DatabaseError(
            f"The ledger was not upgraded, and nothing was changed: {message_of(error)}. "
            f"Have somebody who may do so run this, once:\n\n{script(engine, known, found)}"
        ) from None
    return found
