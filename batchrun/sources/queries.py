"""What a query gives: which of its columns are the item and which the key, and the statements of a page."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, and_, inspect, literal, or_, select, tuple_
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ColumnClause, ColumnElement, Label, TextClause, _anonymous_label
from sqlalchemy.sql.selectable import CompoundSelect, FromClause, Join, Select
from sqlalchemy.types import NullType

from batchrun import codec
from batchrun.errors import ConfigError

_TEXT_LENGTH = 2000
_HOW = "keyset(query) takes a select(...), such as keyset(select(Order.id).where(Order.total.is_(None)))"


@dataclass(frozen=True, slots=True)
class Plan:
    """A query made ready for pages.

    statement: selects the item's columns and, behind them, those of the key that are not among them; not ordered.
    keys: expressions to compare and order by. names: for people. key_at: where the keys stand in a row.
    width: how many columns the item has. may_be_null: nothing says that the key is never NULL.
    """

    statement: Select[Any]
    keys: tuple[Any, ...]
    names: tuple[str, ...]
    key_at: tuple[int, ...]
    width: int
    may_be_null: bool

    def item(self, row: Sequence[Any]) -> Any:
        """One column: its value; several: a plain tuple."""
        return row[0] if self.width == 1 else tuple(row[: self.width])

    def page(self, after: Sequence[Any] | None, upto: Sequence[Any] | None, limit: int) -> Select[Any]:
        """The first rows strictly behind ``after``, up to ``upto``; None = no such end."""
        return self.between(after, upto).order_by(*self.keys).limit(limit)

    def between(self, after: Sequence[Any] | None, upto: Sequence[Any] | None) -> Select[Any]:
        """All rows strictly behind ``after``, up to ``upto``."""
        found = self.statement
        if after is not None:
            found = found.where(self._whole() > self._whole(after))
        return found if upto is None else found.where(self._whole() <= self._whole(upto))

    def equal(self, key: Sequence[Any]) -> Select[Any]:
        """The rows with this key."""
        return self.statement.where(and_(*[part == _bound(part, value) for part, value in zip(self.keys, key, strict=True)]))

    def is_null(self) -> ColumnElement[bool]:
        """The condition that a part of the key is NULL."""
        return or_(*[part.is_(None) for part in self.keys])

    def _whole(self, values: Sequence[Any] | None = None) -> Any:
        parts = self.keys if values is None else [_bound(key, value) for key, value in zip(self.keys, values, strict=True)]
        return parts[0] if len(parts) == 1 else tuple_(*parts)


def _bound(key: Any, value: Any) -> Any:
    # With the column's own type, so that the value goes back the way it came (a Decimal on SQLite, a UUID).
    return literal(value) if isinstance(key.type, NullType) else literal(value, key.type)


def plan_of(query: Any, key: Any) -> Plan:
    """Find the item's columns and the key. Raises ConfigError for what cannot be read by key."""
    query = _readable(query)
    entity, items = _items(query)
    wanted = _given_keys(query, entity, items, key) if key is not None else _own_keys(entity, items)
    names = tuple(_name(part) for part in wanted)
    is_wrapped = _is_wrapped(query, items)
    columns, key_at = _with_keys(query, items, wanted)
    may_be_null = is_wrapped or _has_outer_join(query) or any(getattr(part, "nullable", True) for part in wanted)
    if isinstance(query, Select):
        query = query.with_only_columns(*columns, maintain_column_froms=True)
    if not is_wrapped:
        return Plan(query, tuple(wanted), names, key_at, len(items), may_be_null)
    outer = list(query.subquery("batchrun_rows").c)
    return Plan(select(*outer), tuple(outer[place] for place in key_at), names, key_at, len(items), may_be_null)


def _readable(query: Any) -> Any:
    if not isinstance(query, Select | CompoundSelect):
        kinds = {kind.__name__ for kind in type(query).__mro__}
        hint = "a legacy Query holds one cursor for the whole run; write it as select(...)" if "Query" in kinds else _HOW
        shown = f"the class {query.__name__}" if isinstance(query, type) else f"a {codec.type_name(query)}"
        raise ConfigError(f"keyset: {shown} was given: {hint}.")
    if any(getattr(query, name, None) is not None for name in ("_limit_clause", "_offset_clause", "_fetch_clause")):
        raise ConfigError(
            "keyset: the query has a LIMIT or OFFSET, and which rows it means would change from page to page. "
            "Leave it out; to plan fewer items use --limit N (@job(limit=N)) or a where()."
        )
    if any(isinstance(column, TextClause) for column in getattr(query, "_raw_columns", ())):
        raise ConfigError(
            "keyset: the query selects text(...), which has no name; use column(...) or literal_column(...).label(...)."
        )
    return _without_loaders(query.order_by(None))


def _without_loaders(query: Any) -> Any:
    # Loader options (joinedload ...) belong to an entity that is no longer selected; criteria options stay, as they choose rows.
    options = getattr(query, "_with_options", ())
    kept = tuple(option for option in options if getattr(option, "_is_criteria_option", False))
    if kept != options:
        query = query._generate()
        query._with_options = kept
    return query


def _items(query: Any) -> tuple[Any, list[Any]]:
    """Return (the one mapped class or None, the columns of the item)."""
    if not isinstance(query, Select):
        return None, list(query.selected_columns)
    found = query.column_descriptions
    entities = [one["expr"] for one in found if one.get("entity") is not None and one["expr"] is one["entity"]]
    if not entities:
        return None, [_clause(column) for column in query.selected_columns]
    if len(found) > 1:
        raise ConfigError("keyset: the query selects a mapped class and something else; select columns, or one mapped class.")
    mapper: Any = inspect(entities[0]).mapper
    attributes = [getattr(entities[0], mapper.get_property_by_column(column).key) for column in mapper.primary_key]
    return entities[0], [_clause(attribute) for attribute in attributes]


def _own_keys(entity: Any, items: list[Any]) -> list[Any]:
    if entity is not None or len(items) == 1:
        return [_bare(item) for item in items]
    by_table: dict[str, list[Any]] = {}
    for column in map(_bare, items):
        if getattr(column, "primary_key", False) and column.table is not None:
            by_table.setdefault(column.table.name, []).append(column)
    for columns in by_table.values():
        if {column.key for column in columns} == {column.key for column in columns[0].table.primary_key}:
            return columns
    raise ConfigError(
        "keyset: the query selects several columns, but not the primary key: which key are the pages to go by? "
        "Select the primary key as well, or name a unique key: keyset(query, key=Order.id)."
    )


def _given_keys(query: Any, entity: Any, items: list[Any], key: Any) -> list[Any]:
    parts = list(key) if isinstance(key, list | tuple) else [key]
    if not parts:
        raise ConfigError("keyset: key is empty; name a column, or leave key out.")
    return [_bare(_named(query, entity, items, part) if isinstance(part, str) else _column(part)) for part in parts]


def _named(query: Any, entity: Any, items: list[Any], name: str) -> Any:
    matches = [item for item in items if name in (getattr(item, "key", None), getattr(item, "name", None))]
    if not matches and entity is not None and name in inspect(entity).mapper.column_attrs:
        matches = [_clause(getattr(entity, name))]
    if not matches:
        matches = [table.c[name] for table in _tables(query) if name in table.c]
    if len(matches) != 1:
        known = sorted({str(column.key) for table in _tables(query) for column in table.c})
        why = "more than one column has that name; pass the column itself" if matches else f"the query has {', '.join(known)}"
        raise ConfigError(f"keyset: key={name!r}: {why}.")
    return matches[0]


def _column(part: Any) -> Any:
    found = _clause(part)
    if not isinstance(found, ColumnElement):
        raise ConfigError(f"keyset: key={part!r} is no column; pass a column, an attribute such as Order.id, or a name.")
    return found


def _clause(found: Any) -> Any:
    while not isinstance(found, ColumnElement) and hasattr(found, "__clause_element__"):
        found = found.__clause_element__()
    return found


def _bare(column: Any) -> Any:
    while isinstance(column, Label):
        column = column.element
    return column


def _tables(query: Any) -> list[Any]:
    """Everything in FROM that has columns of its own."""
    if not isinstance(query, Select):
        return []
    return list(dict.fromkeys(_leaves(query.get_final_froms())))


def _leaves(froms: Sequence[Any]) -> Iterator[FromClause]:
    for one in froms:
        if isinstance(one, Join):
            yield from _leaves((one.left, one.right))
        else:
            yield one


def _has_outer_join(query: Any) -> bool:
    froms = query.get_final_froms() if isinstance(query, Select) else []
    return any(isinstance(one, Join) and (one.isouter or one.full) for start in froms for one in visitors.iterate(start))


def _is_grouped(query: Any) -> bool:
    return not isinstance(query, Select) or bool(query._distinct or query._group_by_clauses or query._having_criteria)


def _is_wrapped(query: Any, items: list[Any]) -> bool:
    """True where a condition on the key may mean something else inside the query than on its result.

    Such are DISTINCT, GROUP BY, UNION, aggregates and window functions; around plain functions it costs nothing.
    """
    return _is_grouped(query) or not all(isinstance(_bare(item), ColumnClause) and not _bare(item).is_literal for item in items)


def _with_keys(query: Any, items: list[Any], keys: list[Any]) -> tuple[list[Any], tuple[int, ...]]:
    """Return (the item's columns and the keys that are not among them, where each key stands)."""
    columns, places = list(items), []
    for key in keys:
        at = next((place for place, column in enumerate(columns) if _bare(column) is key or _bare(column).compare(key)), None)
        if at is None and _is_grouped(query):
            raise ConfigError(
                f"keyset: key {_name(key)} is not among the query's columns, as DISTINCT, GROUP BY and UNION demand: select it."
            )
        if at is None:
            at = len(columns)
            columns.append(key)
        places.append(at)
    return columns, tuple(places)


def _name(column: Any) -> str:
    table = getattr(column, "table", None)
    while table is not None and not _is_given(getattr(table, "name", None)):
        table = getattr(table, "element", None)  # an alias without a name: what it is an alias of
    name = getattr(column, "name", None)
    name = name if _is_given(name) else str(column)
    return f"{table.name}.{name}" if table is not None else str(name)


def _is_given(name: Any) -> bool:
    # A name that SQLAlchemy makes up holds an address, which is another one in each process.
    return bool(name) and not isinstance(name, _anonymous_label)


def query_text(statement: Select[Any], engine: Engine | None) -> str:
    """A query as SQL with its values, the same in every process; a long one is cut and ends in a hash of the whole."""
    found = _compiled(statement, engine)
    if len(found) <= _TEXT_LENGTH:
        return found
    return f"{found[:_TEXT_LENGTH]}... ({hashlib.blake2b(found.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()})"


def _compiled(statement: Select[Any], engine: Engine | None) -> str:
    for dialect in (None, engine.dialect if engine is not None else None):
        try:
            return str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
        except (SQLAlchemyError, NotImplementedError):  # a value or construct that this dialect cannot write
            pass
        try:
            compiled = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
        except (SQLAlchemyError, NotImplementedError):
            continue
        values = ", ".join(f"{name}={_value_text(value)}" for name, value in sorted(compiled.params.items()))
        return f"{compiled} [{values}]"
    return repr(type(statement))


def _value_text(value: Any) -> str:
    try:
        return codec.dump(value)
    except TypeError:
        return codec.type_name(value)
