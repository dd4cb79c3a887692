"""Items that went wrong, by the class of their error: counted, chosen, and read one by one without holding them all.

    words of people ("UniqueViolation", "23505") -> classes and SQLSTATEs that are there -> a condition of SQL

The classes are read first and matched here: LIKE takes letters of both cases for the same on SQLite and not on PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Table, and_, case, false, func, or_, select

from batchrun.codec import load_items
from batchrun.errors import ConfigError
from batchrun.ledger.schema import Tables
from batchrun.runs import FailureGroup, FailureRecord

TROUBLED = ("failed", "quarantined", "unknown")
PAGE = 500
"""Rows that are held at once."""

SHOWN_GROUPS = 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which items are asked for; no words at all mean every one.

    classes: names of error classes, whole or the last part. sqlstates: five characters. either: one or the other.
    """

    classes: tuple[str, ...] = ()
    sqlstates: tuple[str, ...] = ()
    either: tuple[str, ...] = ()

    @property
    def is_all(self) -> bool:
        return not (self.classes or self.sqlstates or self.either)

    def takes(self, group: FailureGroup) -> bool:
        """Every kind of word that was given must fit."""
        kinds = [(self.classes, _is_class), (self.sqlstates, _is_sqlstate), (self.either, _is_either)]
        return all(any(fits(group, word) for word in words) for words, fits in kinds if words)

    def refuse_unmatched(self, groups: Sequence[FailureGroup], run: str) -> None:
        """Raises ConfigError for a word that fits nothing, with what there is: it is a slip of the pen more often than not."""
        kinds = [(self.classes, _is_class, "--class"), (self.sqlstates, _is_sqlstate, "--sqlstate")]
        for words, fits, option in [*kinds, (self.either, _is_either, "--only")]:
            for word in words:
                if not any(fits(group, word) for group in groups):
                    raise ConfigError(f"{option}: no item of run {run} that went wrong has {word!r}. {_told(groups)}")
        if groups and not any(self.takes(group) for group in groups):
            raise ConfigError(f"--class and --sqlstate: no item of run {run} that went wrong has both. {_told(groups)}")


def _is_class(group: FailureGroup, word: str) -> bool:
    return word in (group.error_class, group.error_class.rpartition(".")[2])


def _is_sqlstate(group: FailureGroup, word: str) -> bool:
    return group.sqlstate is not None and group.sqlstate == word.upper()


def _is_either(group: FailureGroup, word: str) -> bool:
    return _is_class(group, word) or _is_sqlstate(group, word)


def _told(groups: Sequence[FailureGroup]) -> str:
    if not groups:
        return "None went wrong."
    shown = [f"{one.name} ({one.items:,})" for one in groups[:SHOWN_GROUPS]]
    return f"There are: {', '.join(shown)}{', ...' if len(groups) > SHOWN_GROUPS else ''}."


def groups_in(connection: Connection, item: Table, run: str) -> list[FailureGroup]:
    """The classes of a run's items that went wrong, the most frequent first."""
    state, kind = item.c.state, item.c["class"]
    states = [func.coalesce(func.sum(case((state == one, 1), else_=0)), 0) for one in TROUBLED]
    query = (
        select(kind, item.c.sqlstate, func.count().label("items"), func.min(item.c.message), *states)
        .where(item.c.run == run, state.in_(TROUBLED))
        .group_by(kind, item.c.sqlstate)
    )
    found = [
        FailureGroup(
            name, sqlstate, items=int(items), message=message, failed=int(failed), quarantined=int(deadly), unknown=int(lost)
        )
        for name, sqlstate, items, message, failed, deadly, lost in connection.execute(query)
    ]
    return sorted(found, key=lambda one: (-one.items, one.error_class, one.sqlstate or ""))


def chosen(connection: Connection, item: Table, run: str, wanted: Wanted) -> list[ColumnElement[bool]]:
    """The conditions that choose the wanted items of a run; none for all of them."""
    if wanted.is_all:
        return []
    groups = [group for group in groups_in(connection, item, run) if wanted.takes(group)]
    fitting = [and_(item.c["class"] == one.error_class, item.c.sqlstate.is_not_distinct_from(one.sqlstate)) for one in groups]
    return [or_(false(), *fitting)]


def groups(parts: tuple[Engine, Tables], run: str) -> list[FailureGroup]:
    """The same, asked by itself."""
    engine, tables = parts
    with engine.connect() as connection:
        return groups_in(connection, tables.item, run)


def troubled(
    parts: tuple[Engine, Tables], run: str, wanted: Wanted | None = None, *, limit: int | None = None, by_class: bool = False
) -> Iterator[FailureRecord]:
    """Items that are failed, quarantined or unknown, in the order they were cut; ``by_class``: those of one class together.

    They come in pages from the server: a million are no more in memory than five hundred.
    """
    engine, tables = parts
    item = tables.item
    order: list[Any] = [item.c["class"], item.c.sqlstate] if by_class else []
    with engine.connect() as connection:
        where = chosen(connection, item, run, wanted or Wanted())
        query = select(item).where(item.c.run == run, item.c.state.in_(TROUBLED), *where)
        rows = connection.execution_options(yield_per=PAGE).execute(query.order_by(*order, item.c.no, item.c.pos).limit(limit))
        for row in rows:
            known = row._mapping
            yield FailureRecord(
                load_items(known["payload"])[0], known["state"], known["attempts"], known["deaths"], known["class"],
                known["sqlstate"], known["message"],
            )  # fmt: skip
