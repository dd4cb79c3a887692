"""The oracle's table: a row for each effect and no unique key, so that what happened twice shows twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

MAKE = "CREATE TABLE effects (item TEXT NOT NULL, attempt INTEGER NOT NULL)"
ADD = text("INSERT INTO effects (item, attempt) VALUES (:item, :attempt)")


def make(url: str) -> None:
    """Create the table."""
    from tests.support.databases import engine_for  # not for a worker, which imports this module too

    with engine_for(url).begin() as connection:
        connection.execute(text(MAKE))


def effect(session: Session, item: Any, attempt: int = 1) -> None:
    """What a task under test does: it leaves a row."""
    session.execute(ADD, {"item": str(item), "attempt": attempt})


def effects(url: str) -> Counter[str]:
    """How often each item took effect."""
    return Counter(item for item, _ in rows(url))


def rows(url: str) -> list[tuple[str, int]]:
    """All effects: (item, attempt)."""
    from tests.support.databases import engine_for

    with engine_for(url).connect() as connection:
        return [(row[0], row[1]) for row in connection.execute(text("SELECT item, attempt FROM effects"))]


def scalar(url: str, statement: str) -> Any:
    """One value, by a statement of the test's own."""
    from tests.support.databases import engine_for

    with engine_for(url).connect() as connection:
        return connection.scalar(text(statement))


def once(items: Iterable[Any]) -> Counter[str]:
    """What ``effects`` gives when each of these items took effect exactly once."""
    return Counter(str(item) for item in items)
