"""Keysets on PostgreSQL, by psycopg2 and psycopg 3: every kind of key, its order and its bound."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Date,
    DateTime,
    Engine,
    Float,
    Integer,
    MetaData,
    Numeric,
    Select,
    String,
    Table,
    Uuid,
    case,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.orm import Session

from batchrun import iter_parallel, keyset, run_parallel
from batchrun.errors import ConfigError
from batchrun.sources.keysets import Keyset
from batchrun.sources.source import SourceContext
from tests.support.databases import engine_for
from tests.support.effects import effect, effects, make, once

N = 57
DAY = datetime(2026, 1, 1, tzinfo=UTC)
KEYS: dict[str, tuple[Any, list[Any]]] = {
    "int": (Integer, [n * 7 - 100 for n in range(N)]),
    "bigint": (BigInteger, [2**62 + n for n in range(N)]),
    "text": (String, [f"{'äÄzZ_-. '[n % 8]}{n}" for n in range(N)]),
    "text in C": (String(collation="C"), [f"{'äÄzZ_-. '[n % 8]}{n}" for n in range(N)]),
    "uuid": (Uuid, [UUID(int=(n * 2654435761) % 2**32 << 96 | n) for n in range(N)]),
    "timestamptz": (DateTime(timezone=True), [DAY + timedelta(microseconds=n) for n in range(N)]),
    "timestamp": (DateTime, [datetime(2026, 1, 1) + timedelta(days=n, microseconds=n) for n in range(N)]),  # noqa: DTZ001 # without a zone
    "date": (Date, [date(2026, 1, 1) + timedelta(days=n) for n in range(N)]),
    "numeric": (Numeric, [Decimal(n).scaleb(-n) + n for n in range(N)]),
    "numeric(12, 3)": (Numeric(12, 3), [Decimal(n) / 8 for n in range(N)]),
    "double": (Float(53), [0.1 * n for n in range(N)]),
}


@pytest.fixture(params=["psycopg2", "psycopg3"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue({"psycopg2": "pg_url", "psycopg3": "psycopg_url"}[request.param])
    return found


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = engine_for(url)
    yield made
    made.dispose()


def filled(engine: Engine, columns: list[Column[Any]], rows: list[tuple[Any, ...]], name: str = "things") -> Table:
    """A table of these rows, written in another order than that of the key."""
    table = Table(name, MetaData(), *columns)
    table.create(engine)
    shuffled = random.Random(7).sample(rows, len(rows))
    with engine.begin() as connection:
        connection.execute(insert(table), [dict(zip(table.c.keys(), row, strict=True)) for row in shuffled])
    return table


def read(engine: Engine, source: Keyset, limit: int = 10) -> list[Any]:
    """All items, through a reader that is given up and opened again behind its cursor at each take."""
    context = SourceContext(engine, Path(), durable=True)
    bound = source.bound(context)
    found: list[Any] = []
    cursor = None
    while True:
        reader = source.read(context, cursor, bound)
        taken = reader.take(limit)
        if not taken:
            assert reader.exhausted
            return found
        found += taken
        cursor = reader.cursor


def test_every_kind_of_key_gives_each_row_once_in_the_databases_own_order(engine: Engine) -> None:
    for kind, (type_, values) in KEYS.items():
        table = filled(engine, [Column("k", type_, primary_key=True)], [(value,) for value in values], kind)
        with engine.connect() as connection:
            wanted = list(connection.execute(select(table.c.k).order_by(table.c.k)).scalars())
        assert len(set(wanted)) == N, kind
        assert read(engine, keyset(select(table.c.k), page=7)) == wanted, kind
        assert read(engine, keyset(select(table.c.k), page=1000), limit=1000) == wanted, kind


def finding_its_row(kind: str, table: Table) -> Callable[[Session, Any], None]:
    def task(session: Session, item: Any) -> None:
        found = session.scalar(select(func.count()).select_from(table).where(table.c.k == item))
        effect(session, (kind, item, found))

    return task


def test_a_run_over_every_kind_of_key_is_exactly_once_after_an_interruption(url: str, engine: Engine) -> None:
    """Each item finds its own row by what it was given, before and after the resume."""
    make(url)
    everything = []
    for kind, (type_, values) in KEYS.items():
        table = filled(engine, [Column("k", type_, primary_key=True)], [(value,) for value in values], kind)
        task = finding_its_row(kind, table)
        stream = iter_parallel(task, keyset(select(table.c.k), page=5), url, workers=0, name=kind)
        for _ in range(9):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert run_parallel(task, keyset(select(table.c.k), page=5), url, workers=0, name=kind).done == N, kind
        with engine.connect() as connection:
            everything += [(kind, value, 1) for value in connection.execute(select(table.c.k)).scalars()]
    assert effects(url) == once(everything)


def composite(engine: Engine) -> Table:
    """(place, day, n): many rows share the first parts."""
    rows = [(f"p{n % 3}", date(2026, 1, 1 + n % 5), n, n * n) for n in range(N)]
    columns: list[Column[Any]] = [
        Column("place", String, primary_key=True), Column("day", Date, primary_key=True), Column("n", Integer, primary_key=True),
        Column("other", Integer),
    ]  # fmt: skip
    return filled(engine, columns, rows)


def test_composite_keys_are_compared_as_a_whole(engine: Engine) -> None:
    table = composite(engine)
    query = select(table.c.place, table.c.day, table.c.n)
    with engine.connect() as connection:
        wanted = [tuple(row) for row in connection.execute(query.order_by(*table.primary_key))]
    assert read(engine, keyset(query, page=7)) == wanted
    by_name = keyset(select(table.c.other), key=("place", "day", "n"), page=7)
    assert sorted(read(engine, by_name)) == sorted(n * n for n in range(N))


def test_a_key_other_than_the_primary_one_and_a_query_with_a_join(engine: Engine) -> None:
    table = composite(engine)
    other = table.alias("other_side")
    query = select(table.c.n).join(other, table.c.n == other.c.n).where(other.c.other > 100)
    assert read(engine, keyset(query, key=table.c.n, page=4)) == list(range(11, N))
    grouped = select(table.c.place, func.count().label("rows")).group_by(table.c.place)
    assert read(engine, keyset(grouped, key="place", page=1)) == [("p0", 19), ("p1", 19), ("p2", 19)]


@pytest.mark.parametrize("page", [2, 3, 5, 1000])
def test_a_duplicate_key_is_refused_by_name_and_none_is_lost_before_it(engine: Engine, page: int) -> None:
    columns: list[Column[Any]] = [Column("id", Integer, primary_key=True), Column("code", String)]
    table = filled(engine, columns, [(n, f"c{n:02}" if n != 7 else "c06") for n in range(20)])
    source = keyset(select(table.c.code), key=table.c.code, page=page)
    context = SourceContext(engine, Path(), durable=True)
    reader = source.read(context, None, source.bound(context))
    taken: list[Any] = []

    def take_all() -> None:
        while items := reader.take(4):
            taken.extend(items)

    with pytest.raises(ConfigError, match=r"the key things\.code is not unique: more than one row has c06.*Name a unique key"):
        take_all()
    assert taken in ([f"c{n:02}" for n in range(6)], [f"c{n:02}" for n in range(7)])


def test_a_null_key_is_refused_by_name(url: str, engine: Engine) -> None:
    columns: list[Column[Any]] = [Column("id", Integer, primary_key=True), Column("code", String)]
    table = filled(engine, columns, [(n, f"c{n}" if n != 7 else None) for n in range(20)])
    with pytest.raises(ConfigError, match=r"the key things\.code is NULL in the row of item 7"):
        run_parallel(effect, keyset(select(table.c.id), key=table.c.code), url, workers=0, name="nulls")
    outer: Select[Any] = select(table.c.id).where(table.c.code.is_not(None))
    assert len(read(engine, keyset(outer, key=table.c.code))) == 19


def test_a_key_that_is_an_expression(engine: Engine) -> None:
    columns: list[Column[Any]] = [Column("id", Integer, primary_key=True)]
    table = filled(engine, columns, [(n,) for n in range(20)])
    backwards = case((table.c.id >= 0, -table.c.id)).label("backwards")
    assert read(engine, keyset(select(table.c.id, backwards), key=backwards, page=3)) == [(n, -n) for n in range(19, -1, -1)]


def test_rows_that_come_and_go_while_the_run_goes_on_change_nothing_for_those_that_stay(url: str, engine: Engine) -> None:
    make(url)
    columns: list[Column[Any]] = [Column("id", Integer, primary_key=True)]
    table = filled(engine, columns, [(n * 10,) for n in range(60)])

    def task(session: Session, item: int) -> None:
        effect(session, item)

    stream = iter_parallel(task, keyset(select(table.c.id), page=5), url, workers=1, name="moving")
    for _ in range(10):
        next(stream)
    with engine.begin() as connection:
        connection.execute(insert(table), [{"id": n * 10 + 1} for n in range(80)])
        connection.execute(table.delete().where(table.c.id.in_([500, 510, 590])))
    for _ in stream:
        pass
    seen = effects(url)
    stayed = [n * 10 for n in range(60) if n * 10 not in (500, 510, 590)]
    assert {str(n) for n in stayed} <= set(seen)
    assert set(seen.values()) == {1}
    assert max(map(int, seen)) <= 590  # the bound is what was there when the run opened


def test_a_task_that_moves_its_own_key_or_adds_rows_ends(url: str, engine: Engine) -> None:
    make(url)
    columns: list[Column[Any]] = [Column("id", Integer, primary_key=True)]
    table = filled(engine, columns, [(n,) for n in range(40)])

    def task(session: Session, item: int) -> None:
        effect(session, item)
        session.execute(table.update().where(table.c.id == item).values(id=item + 1000))
        session.execute(insert(table).values(id=item + 2000))

    report = run_parallel(task, keyset(select(table.c.id), page=3), url, workers=1, name="moves")
    assert report.done == 40
    assert effects(url) == once(range(40))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM things")) == 80
