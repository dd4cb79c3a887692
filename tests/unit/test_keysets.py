"""A keyset reads a query in pages by key: each row that was there throughout once, and never one past the bound."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Query, aliased, joinedload, mapped_column, relationship, with_loader_criteria

from batchrun import codec, keyset
from batchrun.errors import ConfigError, RunChanged
from batchrun.sources.source import SourceContext


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int | None] = mapped_column(sa.ForeignKey("customers.id"))
    state: Mapped[str | None]
    lines: Mapped[list[Line]] = relationship()


class Line(Base):
    __tablename__ = "lines"
    order_id: Mapped[int] = mapped_column(sa.ForeignKey("orders.id"), primary_key=True)
    no: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str | None]


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012


class Manager(Person):
    __tablename__ = "managers"
    id: Mapped[int] = mapped_column(sa.ForeignKey("people.id"), primary_key=True)
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012


class Clerk(Person):
    __mapper_args__ = {"polymorphic_identity": "clerk"}  # noqa: RUF012


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = sa.create_engine(f"sqlite:///{tmp_path / 'data.db'}")
    Base.metadata.create_all(made)
    with made.begin() as connection:
        connection.execute(sa.insert(Customer), [{"id": n, "name": f"c{n}"} for n in (1, 2)])
        connection.execute(
            sa.insert(Order),
            [{"id": n, "customer_id": 1 + n % 2 if n < 9 else None, "state": "open" if n % 3 else None} for n in range(10)],
        )
        connection.execute(sa.insert(Line), [{"order_id": n, "no": m, "kind": "x"} for n in range(4) for m in range(n)])
        connection.execute(
            sa.insert(Person), [{"id": 1, "kind": "clerk"}, {"id": 2, "kind": "manager"}, {"id": 3, "kind": "person"}]
        )
        connection.execute(sa.text("INSERT INTO managers VALUES (2)"))
    yield made
    made.dispose()


@pytest.fixture
def context(engine: sa.Engine, tmp_path: Path) -> SourceContext:
    return SourceContext(engine=engine, folder=tmp_path, durable=True)


def stored(value: Any) -> Any:
    """As the ledger gives it back."""
    return codec.load(codec.dump(value))


def drain(source: Any, context: SourceContext, after: Any = None, upto: Any = "bound", size: int = 3) -> list[Any]:
    reader = source.read(context, after, stored(source.bound(context)) if upto == "bound" else upto)
    items = []
    while not reader.exhausted:
        items += reader.take(size)
    reader.close()
    return items


ORDERS = Base.metadata.tables["orders"]
LINES = Base.metadata.tables["lines"]
ALL_LINES = [(n, m) for n in range(4) for m in range(n)]
OTHER = aliased(Order)

QUERIES: dict[str, tuple[Callable[[], Any], list[Any], str]] = {
    "one column": (lambda: keyset(select(Order.id), page=3), list(range(10)), "orders.id"),
    "a where": (lambda: keyset(select(Order.id).where(Order.state.is_(None)), page=3), [0, 3, 6, 9], "orders.id"),
    "its own order is dropped": (lambda: keyset(select(Order.id).order_by(Order.state)), list(range(10)), "orders.id"),
    "a mapped class": (lambda: keyset(select(Order), page=4), list(range(10)), "orders.id"),
    "a mapped class, composite": (lambda: keyset(select(Line), page=2), ALL_LINES, "lines.order_id, lines.no"),
    "an alias": (lambda: keyset(select(OTHER).where(OTHER.id > 7)), [8, 9], "orders.id"),
    "a loader option": (lambda: keyset(select(Order).options(joinedload(Order.lines))), list(range(10)), "orders.id"),
    "criteria options": (lambda: keyset(select(Order).options(with_loader_criteria(Order, Order.id < 2))), [0, 1], "orders.id"),
    "a table": (
        lambda: keyset(select(LINES.c.no, LINES.c.order_id), page=1),
        [(m, n) for n, m in sorted(ALL_LINES, key=lambda k: k[::-1])],
        "lines.no, lines.order_id",
    ),
    "several with the primary key": (
        lambda: keyset(select(Order.state, Order.id).where(Order.id < 2)),
        [(None, 0), ("open", 1)],
        "orders.id",
    ),
    "a key not selected": (
        lambda: keyset(select(Order.state, Order.customer_id), Order.id),
        [("open" if n % 3 else None, 1 + n % 2 if n < 9 else None) for n in range(10)],
        "orders.id",
    ),
    "a key by name": (lambda: keyset(select(Order.state).where(Order.id < 2), "id"), [None, "open"], "orders.id"),
    "a key by name of a class": (
        lambda: keyset(select(Line).where(Line.order_id == 3), "no"),
        [(3, 0), (3, 1), (3, 2)],
        "lines.no",
    ),
    "a key by label": (lambda: keyset(select(Order.id.label("which")).where(Order.id < 2), "which"), [0, 1], "orders.id"),
    "a sequence as key": (
        lambda: keyset(select(LINES.c.kind), ["order_id", LINES.c.no], page=2),
        ["x"] * 6,
        "lines.order_id, lines.no",
    ),
    "a lightweight table": (
        lambda: keyset(select(sa.column("id")).select_from(sa.table("orders")), page=9),
        list(range(10)),
        "id",
    ),
    "a join": (
        lambda: keyset(select(Order.id, Customer.name).join(Customer, Customer.id == Order.customer_id).where(Order.id < 2)),
        [(0, "c1"), (1, "c2")],
        "orders.id",
    ),
    "a class under a join": (
        lambda: keyset(select(Order).join(Customer, Customer.id == Order.customer_id), page=2),
        list(range(9)),
        "orders.id",
    ),
    "an outer join": (
        lambda: keyset(select(Order.id, Customer.name).outerjoin(Customer, Customer.id == Order.customer_id).where(Order.id > 7)),
        [(8, "c1"), (9, None)],
        "orders.id",
    ),
    "distinct": (lambda: keyset(select(Order.customer_id).where(Order.id < 9).distinct(), page=1), [1, 2], "orders.customer_id"),
    "a distinct class": (lambda: keyset(select(Order).join(Line).distinct(), page=2), [1, 2, 3], "orders.id"),
    "a group": (
        lambda: keyset(select(Line.order_id, func.count()).group_by(Line.order_id), Line.order_id, page=2),
        [(1, 1), (2, 2), (3, 3)],
        "lines.order_id",
    ),
    "an aggregate": (lambda: keyset(select(func.max(Order.id))), [9], "max"),
    "a window": (
        lambda: keyset(select(Order.id, func.row_number().over(order_by=Order.id)), Order.id, page=3),
        [(n, n + 1) for n in range(10)],
        "orders.id",
    ),
    "a function": (lambda: keyset(select(func.abs(Order.id) * 2), page=3), [n * 2 for n in range(10)], ""),
    "a union": (lambda: keyset(select(Order.id).union(select(Customer.id + 100)), page=3), [*range(10), 101, 102], "orders.id"),
    "a subquery": (lambda: keyset(select(select(Order.id).limit(4).subquery("few").c.id)), [0, 1, 2, 3], "few.id"),
    "single-table inheritance": (lambda: keyset(select(Clerk)), [1], "people.id"),
    "joined inheritance": (lambda: keyset(select(Manager)), [2], ""),
}


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_gives_its_items_in_the_order_of_the_key(context: SourceContext, name: str) -> None:
    make, expected, key = QUERIES[name]
    source = make()
    assert drain(source, context) == expected
    assert source.describe().startswith(f"keyset of {key}")
    assert source.total(context, source.bound(context)) == len(expected)


@pytest.mark.parametrize("name", QUERIES)
@pytest.mark.parametrize("taken", [0, 1, 2, 5])
def test_resuming_a_query_gives_each_item_exactly_once(context: SourceContext, name: str, taken: int) -> None:
    make, expected, _ = QUERIES[name]
    reader = make().read(context, None, make().bound(context))
    first = reader.take(taken)
    assert first + drain(make(), context, after=stored(reader.cursor)) == expected


METADATA = sa.MetaData()
KEYS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "integer": (sa.Integer(), st.integers(-(2**63), 2**63 - 1)),
    "text": (sa.Text(), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)),
    "nocase": (sa.Text(collation="NOCASE"), st.text("aé z", max_size=3)),
    "bytes": (sa.LargeBinary(), st.binary(max_size=4)),
    "date": (sa.Date(), st.dates()),
    "datetime": (sa.DateTime(), st.datetimes()),
    "float": (sa.Float(), st.floats(allow_nan=False, allow_infinity=False)),
    "numeric": (sa.Numeric(12, 3), st.decimals(-(10**6), 10**6, places=3, allow_nan=False)),
    "uuid": (sa.Uuid(), st.uuids()),
    "boolean": (sa.Boolean(), st.booleans()),
}
TABLES = {name: sa.Table(name, METADATA, sa.Column("key", kind, unique=True)) for name, (kind, _) in KEYS.items()}
PAIRS = sa.Table("pairs", METADATA, sa.Column("a", sa.Integer, primary_key=True), sa.Column("b", sa.Text, primary_key=True))


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    made = sa.create_engine("sqlite://", poolclass=sa.StaticPool, connect_args={"check_same_thread": False})
    METADATA.create_all(made)
    yield made
    made.dispose()


def each_once(engine: sa.Engine, table: sa.Table, rows: list[dict[str, Any]], page: int, takes: list[int]) -> list[Any]:
    with engine.begin() as connection:
        connection.execute(table.delete())
        if rows:
            connection.execute(table.insert(), rows)
    context = SourceContext(engine=engine, folder=Path(), durable=True)
    source = keyset(select(table), page=page)
    bound = stored(source.bound(context))
    reader, found = source.read(context, None, bound), []
    for size in takes:
        found += reader.take(size)
    return found + drain(source, context, after=stored(reader.cursor), upto=bound)


@pytest.mark.filterwarnings("ignore:Dialect sqlite.*Decimal")
@pytest.mark.parametrize("name", KEYS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=40, deadline=None)
@given(data=st.data(), page=st.integers(1, 4), takes=st.lists(st.integers(0, 4), max_size=4))
def test_keys_of_any_type_are_resumed_exactly(
    keyed: sa.Engine, name: str, data: st.DataObject, page: int, takes: list[int]
) -> None:
    keys = data.draw(st.lists(KEYS[name][1], unique=True, max_size=9))
    found = each_once(keyed, TABLES[name], [{"key": key} for key in keys], page, takes)
    assert sorted(found) == sorted(keys)
    assert len(found) == len(keys)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60, deadline=None)
@given(
    pairs=st.sets(st.tuples(st.integers(0, 3), st.text("ab", max_size=2)), max_size=12),
    page=st.integers(1, 5),
    takes=st.lists(st.integers(0, 4), max_size=4),
)
def test_composite_keys_are_resumed_exactly(keyed: sa.Engine, pairs: set[tuple[int, str]], page: int, takes: list[int]) -> None:
    assert each_once(keyed, PAIRS, [{"a": a, "b": b} for a, b in pairs], page, takes) == sorted(pairs)


def test_rows_behind_the_bound_are_not_read(context: SourceContext, engine: sa.Engine) -> None:
    source = keyset(select(Order.id), page=2)
    reader = source.read(context, None, source.bound(context))
    found = []
    while not reader.exhausted:
        taken = reader.take(1)
        found += taken
        with engine.begin() as connection:
            connection.execute(sa.insert(Order), [{"id": 1000 + number} for number in taken])
    assert found == list(range(10))


def test_rows_inserted_and_deleted_meanwhile_cost_no_other_row(context: SourceContext, engine: sa.Engine) -> None:
    source = keyset(select(Order.id), page=2)
    reader = source.read(context, None, source.bound(context))
    assert reader.take(2) == [0, 1]
    with engine.begin() as connection:
        connection.execute(sa.delete(Order).where(Order.id.in_([1, 2, 5])))
        connection.execute(sa.insert(Order), [{"id": -1}])
    assert reader.take(10, budget_s=10) == [3, 4, 6, 7, 8, 9]


def test_an_empty_query_has_no_items_even_if_rows_come_later(context: SourceContext, engine: sa.Engine) -> None:
    source = keyset(select(Order.id).where(Order.id > 100))
    bound = stored(source.bound(context))
    with engine.begin() as connection:
        connection.execute(sa.insert(Order), [{"id": 200}])
    assert bound == []
    assert source.total(context, bound) == 0
    assert drain(source, context, upto=bound) == []


def table_of(engine: sa.Engine, keys: list[Any], kind: Any = None) -> sa.Table:
    table = sa.Table("loose", sa.MetaData(), sa.Column("k", kind or sa.Integer))
    table.create(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"k": key} for key in keys])
    return table


@pytest.mark.parametrize("page", [1, 2, 3, 10])
@pytest.mark.parametrize("size", [1, 10])
def test_a_duplicate_key_is_an_error_that_names_it(context: SourceContext, engine: sa.Engine, page: int, size: int) -> None:
    source = keyset(select(table_of(engine, [1, 2, 2, 3]).c.k), page=page)
    reader = source.read(context, None, source.bound(context))
    found: list[int] = []
    while len(found) < 2:
        found += reader.take(size)
    assert found == [1, 2]
    with pytest.raises(ConfigError, match=re.escape("the key loose.k is not unique: more than one row has 2")) as caught:
        reader.take(size)
    assert "the primary key as its last part" in str(caught.value)
    assert not reader.exhausted
    with pytest.raises(ConfigError, match="more than one row has 2"):
        reader.take(1)
    with pytest.raises(ConfigError, match="more than one row has 2"):
        source.read(context, stored(reader.cursor), None).take(1)


@pytest.mark.parametrize("page", [1, 2])
def test_keys_that_only_the_database_finds_equal_are_not_lost(context: SourceContext, engine: sa.Engine, page: int) -> None:
    source = keyset(select(table_of(engine, ["a", "b", "B", "c"], sa.Text(collation="NOCASE")).c.k), page=page)
    if page == 1:
        with pytest.raises(ConfigError, match="not unique"):
            drain(source, context, size=1)
    else:
        reader = source.read(context, None, None)
        taken = reader.take(2)
        with pytest.raises(ConfigError, match="not unique"):
            source.read(context, stored(reader.cursor), None).take(1)
        assert len(taken) == 2


@pytest.mark.parametrize("at", ["bound", "page"])
def test_a_null_key_is_an_error_that_names_it(context: SourceContext, engine: sa.Engine, at: str) -> None:
    source = keyset(select(table_of(engine, [1, None, 2]).c.k))
    with pytest.raises(ConfigError, match=re.escape("the key loose.k is NULL in the row of item None")) as caught:
        source.bound(context) if at == "bound" else source.read(context, None, None).take(5)
    assert ".is_not(None)" in str(caught.value)
    with pytest.raises(ConfigError, match=re.escape("customers.id is NULL")):
        keyset(select(Order.id, Customer.id).outerjoin(Customer, Customer.id == Order.customer_id), Customer.id).bound(context)


def test_a_database_error_may_be_tried_again(context: SourceContext, engine: sa.Engine) -> None:
    source = keyset(select(Order.id), page=2)
    reader = source.read(context, None, None)
    assert reader.take(1) == [0]
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE orders RENAME TO away"))
    assert reader.take(9) == [1]
    with pytest.raises(OperationalError):
        reader.take(9)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE away RENAME TO orders"))
    assert reader.take(9, budget_s=10) == [2, 3, 4, 5, 6, 7, 8, 9]


def test_no_connection_is_held_between_pages(context: SourceContext, engine: sa.Engine) -> None:
    source = keyset(select(Order.id), page=2)
    reader = source.read(context, None, source.bound(context))
    reader.take(3)
    assert isinstance(engine.pool, sa.QueuePool)
    assert engine.pool.checkedout() == 0


def test_a_take_ends_when_its_time_is_over(context: SourceContext) -> None:
    assert keyset(select(Order.id), page=2).read(context, None, None).take(9, budget_s=0) == [0, 1]


def test_the_fingerprint_tells_queries_and_values_apart(context: SourceContext) -> None:
    moment, which = datetime(2026, 1, 1, tzinfo=UTC), uuid.UUID(int=1)
    kinds = [
        keyset(select(Order.id)),
        keyset(select(Order.id).where(Order.id > 1)),
        keyset(select(Order.id).where(Order.id > 2)),
        keyset(select(Order.id).where(Order.id.in_([1, 2]))),
        keyset(select(Order.id).where(Order.id.in_([1, 3]))),
        keyset(select(Order.id).where(sa.literal(date(2026, 1, 1)) < sa.func.now())),
        keyset(select(Order.id).where(sa.literal(moment) < sa.func.now())),
        keyset(select(Order.id).where(sa.literal(which) == sa.literal(b"\0\xff"))),
        keyset(select(Order.id).where(sa.literal(Decimal("1.5")) > 1)),
        keyset(select(Order.id, Order.customer_id), "customer_id"),
        keyset(select(Order.id).where(Order.id.not_in(range(5000)))),
        keyset(select(Order.id).where(Order.id.not_in(range(5001)))),
    ]
    texts = [codec.dump(dict(source.fingerprint(context))) for source in kinds]
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) < 2500
    assert kinds[1].fingerprint(context) == {
        "query": "SELECT orders.id \nFROM orders \nWHERE orders.id > 1",
        "key": "orders.id",
    }


@pytest.mark.parametrize("name", QUERIES)
def test_the_fingerprint_holds_no_address(context: SourceContext, name: str) -> None:
    make, _, _ = QUERIES[name]
    assert "%(" not in str(make().fingerprint(context))
    assert make().fingerprint(context) == make().fingerprint(context)


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: keyset(select(Order.id).limit(3)), "LIMIT or OFFSET"),
        (lambda: keyset(select(Order.id).offset(3)), "--limit N"),
        (lambda: keyset(Query([Order])), "legacy Query"),
        (lambda: keyset(Order), "the class Order was given: keyset(query) takes a select(...)"),
        (lambda: keyset(sa.text("SELECT 1")), "takes a select(...)"),
        (lambda: keyset([1, 2]), "a list was given"),
        (lambda: keyset(select(Order, Customer)), "a mapped class and something else"),
        (lambda: keyset(select(Order.state, Order.customer_id)), "keyset(query, key=Order.id)"),
        (lambda: keyset(select(sa.text("id")).select_from(ORDERS)), "text(...)"),
        (lambda: keyset(select(Order.id), "nothing"), "key='nothing': the query has customer_id, id, state"),
        (lambda: keyset(select(Order.state).join(Customer, Customer.id == Order.customer_id), "id"), "more than one column"),
        (lambda: keyset(select(Order.id), 7), "key=7 is no column"),
        (lambda: keyset(select(Order.id), []), "key is empty"),
        (lambda: keyset(select(Order.state).distinct(), Order.id), "orders.id is not among the query's columns"),
        (lambda: keyset(select(Order.id), page=0), "page is 0"),
        (lambda: keyset(select(Order.id), page=True), "page is True"),
    ],
)
def test_a_query_that_cannot_be_read_by_key_is_refused_with_the_remedy(make: Callable[[], Any], hint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(hint)):
        make()


def test_a_key_of_another_width_is_refused_on_resume(context: SourceContext) -> None:
    with pytest.raises(RunChanged, match="another number of columns"):
        keyset(select(Order.id)).read(context, [1, 2], None)


def test_a_run_without_a_database_is_told_so() -> None:
    with pytest.raises(ConfigError, match="needs a database"):
        keyset(select(Order.id)).bound(SourceContext(engine=None, folder=Path(), durable=True))


def test_counting_gives_up_after_its_time(context: SourceContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchrun.sources.keysets._COUNT_S", -1)
    numbers = select(sa.literal(1).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < 100_000))
    assert keyset(select(numbers.c.n)).total(context, None) is None
