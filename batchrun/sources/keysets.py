"""Items from a query, in pages by key: each page is a short read of its own, strictly behind the last key.

    query -> analysis (queries.py): which columns are the item, which the key
    bound():   the greatest key when the run opens; no row behind it is read, whatever the tasks insert
    page:      SELECT .. WHERE key > :last AND key <= :bound ORDER BY key LIMIT n + 1

Keys are compared by the database alone, never in Python, so that every collation works. The row beyond the page is
only looked at: if the next page does not begin with it, its key equals the last one, and would have been lost.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import DBAPIError

from batchrun import codec
from batchrun.errors import ConfigError, RunChanged
from batchrun.items import Item
from batchrun.sources.queries import Plan, plan_of, query_text
from batchrun.sources.source import Cursor, SourceContext

_COUNT_S = 1.0
_TIE_BREAK = "Name a unique key, such as key=({names}, ...) with the primary key as its last part."


def keyset(query: Any, key: Any = None, *, page: int = 1000) -> Keyset:
    """Read a query in pages by key; each row that was there throughout comes exactly once, in the key's order.

    query: a ``select(...)``. One column: the item is its value; several: a tuple; one mapped class: its primary key.
    key: a column, an attribute, a name, or a sequence of these; None = the primary key if the query selects it,
        else the one selected column. It must be unique and never NULL; an index over it makes each page fast.
    page: rows read at once; 1,000, where the cost of a query no longer shows.
    Raises ConfigError for a query that cannot be read by key; while reading, for a duplicate or NULL key.
    """
    if type(page) is not int or not 1 <= page <= 1_000_000:
        raise ConfigError(f"keyset: page is {page!r}; it must be a whole number from 1 to 1,000,000.")
    return Keyset(plan_of(query, key), page)


class Keyset:
    """A query read by key. Making one reads nothing."""

    def __init__(self, plan: Plan, page: int = 1000) -> None:
        self._plan = plan
        self._page = page

    def describe(self) -> str:
        """Such as ``keyset of orders.id``."""
        return f"keyset of {', '.join(self._plan.names)}"

    def fingerprint(self, context: SourceContext) -> Mapping[str, str]:
        """The query as SQL with its values, and the key."""
        return {"query": query_text(self._plan.statement, context.engine), "key": ", ".join(self._plan.names)}

    def bound(self, context: SourceContext) -> list[Any]:
        """The greatest key, as a list of its parts; empty where the query has no rows. Raises ConfigError for a NULL key."""
        plan = self._plan
        with _engine(context).connect() as connection:
            if plan.may_be_null:
                self._refuse_null(connection)
            last = plan.statement.order_by(*[part.desc() for part in plan.keys]).limit(1)
            row = connection.execute(last).first()
        found = [] if row is None else [row[place] for place in plan.key_at]
        try:
            codec.dump(found)
        except TypeError as error:
            raise ConfigError(f"{self.describe()}: the key cannot be kept for a resume. {error} Or cast the column.") from None
        return found

    def _refuse_null(self, connection: Connection) -> None:
        row = connection.execute(self._plan.statement.where(self._plan.is_null()).limit(1)).first()
        if row is not None:
            raise null_key(self._plan, row)

    def total(self, context: SourceContext, bound: Any) -> int | None:
        """The number of rows; None where counting takes more than a second, or on other databases."""
        if bound == []:
            return 0
        rows = self._plan.between(None, bound).subquery("batchrun_counted")
        with _engine(context).connect() as connection:
            return _count(connection, select(func.count()).select_from(rows))

    @property
    def plan(self) -> Plan:
        """The query, made ready for pages."""
        return self._plan

    @property
    def width(self) -> int:
        """How many columns the key has."""
        return len(self._plan.keys)

    def count(self, engine: Engine, after: Cursor, upto: Any) -> int:
        """The rows that are there now strictly behind the key ``after``, up to ``upto``: what a verification compares."""
        if upto == []:
            return 0
        rows = self._plan.between(after, upto).subquery("batchrun_counted")
        with engine.connect() as connection:
            return int(connection.execute(select(func.count()).select_from(rows)).scalar_one())

    def read(self, context: SourceContext, after: Cursor, upto: Any) -> KeysetReader:
        """Open a reader strictly behind the key ``after``. Raises RunChanged if that is a key of another kind."""
        width = len(self._plan.keys)
        if any(place is not None and place != [] and len(place) != width for place in (after, upto)):
            raise RunChanged(f"{self.describe()}: the key had another number of columns when this run began; start a new run.")
        return KeysetReader(self._plan, _engine(context), self._page, after, upto)


class KeysetReader:
    """Takes items page by page. An error of the database's changes nothing here: the same ``take`` may be tried again."""

    def __init__(self, plan: Plan, engine: Engine, page: int, after: Cursor, upto: list[Any] | None) -> None:
        self._plan = plan
        self._engine = engine
        self._page = page
        self._upto = upto
        self._cursor: list[Any] | None = after
        self._seen: list[Any] | None = after  # the key the next page begins behind
        self._ahead: deque[tuple[list[Any], Item]] = deque()
        self._next_key: list[Any] | None = None  # the first key of the next page, as far as is known
        self._resumed = after is not None
        self._last_page = upto == []
        self._error: ConfigError | None = None

    @property
    def cursor(self) -> Cursor:
        """The last key as a list of its parts."""
        return self._cursor

    @property
    def exhausted(self) -> bool:
        return self._last_page and not self._ahead and self._error is None

    def take(self, limit: int, budget_s: float = 0.1) -> list[Item]:
        """As ``Reader.take``. Raises ConfigError for a duplicate or NULL key; errors of SQLAlchemy pass through."""
        items: list[Item] = []
        deadline = time.monotonic() + budget_s
        while len(items) < limit and not self.exhausted:
            if not self._ahead and items and time.monotonic() >= deadline:
                break
            try:
                self._fetch()
            except Exception:
                if not items:
                    raise
                break  # the items at hand first; the next take raises it again
            while self._ahead and len(items) < limit:
                self._cursor, item = self._ahead.popleft()
                items.append(item)
        return items

    def _fetch(self) -> None:
        """Read the next page, unless there are rows at hand."""
        if self._ahead:
            return
        if self._error is not None:
            raise self._error
        with self._engine.connect() as connection:
            rows = connection.execute(self._plan.page(self._seen, self._upto, self._page + 1)).all()
            keys = [[row[place] for place in self._plan.key_at] for row in rows]
            self._refuse_lost(connection, keys[0] if keys else None)
        kept = self._unique(keys[: self._page], rows)
        self._ahead.extend((keys[i], self._plan.item(rows[i])) for i in range(kept))
        self._last_page = len(rows) <= self._page
        self._next_key = None if self._last_page else keys[self._page]
        self._seen = keys[kept - 1] if kept else self._seen
        self._resumed = False
        if not kept and self._error is not None:
            raise self._error

    def _unique(self, keys: list[list[Any]], rows: Sequence[Any]) -> int:
        """How many rows may be handed out: those before the first NULL or repeated key, which becomes the error."""
        previous = self._seen
        for at, key in enumerate(keys):
            if None in key:
                self._error = null_key(self._plan, rows[at])
            elif key == previous:
                self._error = duplicate_key(self._plan, key)
            else:
                previous = key
                continue
            return at
        return len(keys)

    def _refuse_lost(self, connection: Connection, first: list[Any] | None) -> None:
        """Raise if a second row has the last key: this page, strictly behind it, would leave that row out."""
        as_expected = first == self._next_key if self._next_key is not None else not self._resumed
        if self._seen is None or as_expected:
            return
        same = connection.execute(self._plan.equal(self._seen).limit(2)).all()
        if len(same) > 1:
            raise duplicate_key(self._plan, self._seen)

    def close(self) -> None:
        """Nothing is held between pages."""


def null_key(plan: Plan, row: Sequence[Any]) -> ConfigError:
    names = ", ".join(plan.names)
    shown = codec.key_text(plan.item(row))
    return ConfigError(
        f"keyset: the key {names} is NULL in the row of item {shown}, so pages by key would leave it out. "
        f"Leave such rows out in the query (.where(... .is_not(None))), or name a key that is never NULL: key=... ."
    )


def duplicate_key(plan: Plan, key: list[Any]) -> ConfigError:
    names, shown = ", ".join(plan.names), ", ".join(codec.key_text(part) for part in key)
    return ConfigError(
        f"keyset: the key {names} is not unique: more than one row has {shown}, or the database does not find that value "
        f"equal to itself (a real column: cast it). Pages by key would leave rows out. {_TIE_BREAK.format(names=names)}"
    )


def _engine(context: SourceContext) -> Engine:
    if context.engine is None:
        raise ConfigError("keyset: reading a query needs a database; give one (database=, or url in config.toml).")
    return context.engine


def _count(connection: Connection, counting: Any) -> int | None:
    if connection.dialect.name == "postgresql":
        return _count_postgresql(connection, counting)
    if connection.dialect.name == "sqlite":
        return _count_sqlite(connection, counting)
    return None


def _count_postgresql(connection: Connection, counting: Any) -> int | None:
    connection.execute(text(f"SET LOCAL statement_timeout = {int(_COUNT_S * 1000)}"))
    try:
        return int(connection.execute(counting).scalar_one())
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == "57014" or getattr(error.orig, "pgcode", None) == "57014":
            return None
        raise


def _count_sqlite(connection: Connection, counting: Any) -> int | None:
    driver: Any = connection.connection.driver_connection
    deadline = time.monotonic() + _COUNT_S
    driver.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
    try:
        return int(connection.execute(counting).scalar_one())
    except DBAPIError:
        if time.monotonic() > deadline:
            return None
        raise
    finally:
        driver.set_progress_handler(None, 0)
