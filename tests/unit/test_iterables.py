"""An iterable is read lazily and once; a resume goes on behind the items that were taken, or says that they changed."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import DeclarativeBase, Mapped, Query, mapped_column

from batchrun import codec
from batchrun.errors import ConfigError, RunChanged
from batchrun.sources.coerce import as_source
from batchrun.sources.iterables import IterableSource
from batchrun.sources.source import SourceContext

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # CI machines are slow

DURABLE = SourceContext(engine=None, folder=Path(), durable=True)
PASSING = SourceContext(engine=None, folder=Path(), durable=False)


def drain(source: Any, context: SourceContext = DURABLE, after: Any = None, takes: list[int] | None = None) -> list[Any]:
    reader, items = source.read(context, after, source.bound(context)), []
    sizes = iter(takes or [])
    while not reader.exhausted:
        items += reader.take(next(sizes, 1000))
    reader.close()
    reader.close()
    return items


def cursor_after(source: Any, takes: list[int], context: SourceContext = DURABLE) -> tuple[list[Any], Any]:
    """Take so many items so often, then crash: the items handed out and the cursor as the ledger gives it back."""
    reader, items = source.read(context, None, None), []
    for size in takes:
        items += reader.take(size)
    return items, codec.load(codec.dump(reader.cursor))


kinds = st.sampled_from([list, tuple, lambda items: (item for item in items), lambda items: dict(enumerate(items)).values()])


@unhurried
@given(st.lists(st.integers() | st.text() | st.dates()), kinds, st.lists(st.integers(0, 7)), st.lists(st.integers(1, 7)))
def test_resuming_gives_each_item_exactly_once(items: list[Any], kind: Any, before: list[int], later: list[int]) -> None:
    taken, cursor = cursor_after(IterableSource(kind(items)), before)
    assert taken + drain(IterableSource(kind(items)), after=cursor, takes=later) == items


@unhurried
@given(st.integers(-50, 50), st.integers(-50, 50), st.sampled_from([1, 3, -2]), st.lists(st.integers(0, 7)))
def test_resuming_a_range_gives_each_number_exactly_once(start: int, stop: int, step: int, before: list[int]) -> None:
    numbers = range(start, stop, step)
    taken, cursor = cursor_after(IterableSource(numbers), before)
    assert taken + drain(IterableSource(numbers), after=cursor) == list(numbers)


def test_a_huge_range_is_resumed_without_counting() -> None:
    source = IterableSource(range(10**20))
    assert source.read(DURABLE, {"count": 10**19, "hash": repr(range(10**20))}, None).take(1) == [10**19]
    assert source.total(DURABLE, None) is None


def test_a_generator_is_never_read_ahead() -> None:
    seen: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            seen.append(len(seen))
            yield len(seen)

    reader = IterableSource(endless()).read(DURABLE, None, None)
    assert reader.take(3) == [1, 2, 3]
    assert seen == [0, 1, 2]


def test_a_slow_generator_hands_out_what_it_has_when_the_time_is_over() -> None:
    reader = IterableSource(iter(range(9))).read(DURABLE, None, None)
    assert reader.take(9, budget_s=0.0) == [0]
    assert not reader.exhausted


@pytest.mark.parametrize("context", [DURABLE, PASSING])
def test_an_error_of_the_generator_comes_after_the_items_before_it(context: SourceContext) -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the feed is gone")

    reader = IterableSource(broken()).read(context, None, None)
    assert reader.take(10) == [1, 2]
    assert reader.cursor["count"] == 2
    for _ in range(2):
        with pytest.raises(OSError, match="the feed is gone"):
            reader.take(10)
    assert not reader.exhausted


def test_an_interrupt_loses_no_item_silently() -> None:
    def interrupted() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    reader = IterableSource(interrupted()).read(DURABLE, None, None)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            reader.take(10)
    assert reader.cursor["count"] == 0


def test_closing_runs_the_generators_finally() -> None:
    closed = []

    def held() -> Iterator[int]:
        try:
            yield from range(9)
        finally:
            closed.append(True)

    reader = IterableSource(held()).read(DURABLE, None, None)
    reader.take(1)
    reader.close()
    reader.close()
    assert closed == [True]


@pytest.mark.parametrize(
    ("now", "how"),
    [
        ([1, 2, 9, 4, 5], "the first 3 are not what they were"),
        ([1, 2], "now ends after 2 items, but 3 were taken from it before"),
        ([], "now ends after 0 items"),
    ],
)
@pytest.mark.parametrize("kind", [list, iter])
def test_changed_items_are_refused_on_resume(now: list[int], how: str, kind: Any) -> None:
    _, cursor = cursor_after(IterableSource([1, 2, 3, 4, 5]), [3])
    with pytest.raises(RunChanged, match=how) as caught:
        IterableSource(kind(now)).read(DURABLE, cursor, None)
    assert "--accept-changes" in str(caught.value)
    assert "sort it" in str(caught.value)
    assert drain(IterableSource(kind(now), accept_changes=True), after=cursor) == now[3:]


def test_a_changed_range_is_refused_on_resume() -> None:
    _, cursor = cursor_after(IterableSource(range(10)), [3])
    with pytest.raises(RunChanged, match=re.escape("range(0, 10)")):
        IterableSource(range(1, 10)).read(DURABLE, cursor, None)
    assert drain(IterableSource(range(1, 10), accept_changes=True), after=cursor) == [4, 5, 6, 7, 8, 9]


def test_items_that_cannot_be_stored_do_not_stop_the_reading() -> None:
    things = [object(), 1]
    assert drain(IterableSource(things)) == things


def test_a_generator_is_not_read_twice() -> None:
    source = IterableSource(number for number in range(3))
    assert drain(source) == [0, 1, 2]
    with pytest.raises(ConfigError, match="already read"):
        source.read(DURABLE, None, None)


def test_nothing_is_hashed_where_nothing_is_stored() -> None:
    reader = IterableSource(iter([1])).read(PASSING, None, None)
    reader.take(5)
    assert reader.cursor == {"count": 1}


def test_length_and_description_are_told() -> None:
    assert IterableSource([1, 2]).total(DURABLE, None) == 2
    assert IterableSource(list(range(1200))).describe() == "list of 1,200 items"
    assert IterableSource(range(3)).fingerprint(DURABLE) == {"items": "range(0, 3)"}
    assert IterableSource(number for number in [1]).total(DURABLE, None) is None
    assert IterableSource(number for number in [1]).describe() == "generator <genexpr>"


def test_an_empty_iterable_gives_no_items() -> None:
    empties: list[Any] = [[], (), range(0), iter([])]
    for empty in empties:
        assert drain(IterableSource(empty)) == []


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


class Asynchronous:
    def __aiter__(self) -> Any:
        return self


@types.coroutine
def waiting() -> Any:
    yield


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("orders.csv", "lines(path), for one item [text]"),
        (b"ab", "single characters"),
        (Path("orders.csv"), "csv_rows(path)"),
        ({1: 2}, "list(mapping.items())"),
        (sqlalchemy.select(Order.id), "keyset(select(...))"),
        (sqlalchemy.select(Order.id).union_all(sqlalchemy.select(Order.id)), "keyset(select(...))"),
        (Order.__table__, "keyset(select(...))"),
        (Query([Order]), "legacy Query"),
        (Order, "keyset(select(Order))"),
        (Asynchronous(), "write def instead of async def"),
        (waiting(), "write def instead of async def"),
        (len, "call it"),
        (7, "it cannot be iterated over; pass a list"),
        (None, "it cannot be iterated over; pass a list"),
        (sqlalchemy.create_engine("sqlite://"), "keyset(select(...))"),
    ],
)
def test_what_is_no_list_of_items_is_refused_with_what_to_pass(given: Any, hint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(hint)):
        as_source(given)


def test_a_source_is_taken_as_it_is() -> None:
    source = IterableSource([1])
    assert as_source(source) is source
    assert as_source([1]).describe() == "list of 1 items"
