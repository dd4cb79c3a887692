"""The codec gives back exactly what it was given, or refuses it in words."""

from __future__ import annotations

import enum
import math
import re
import struct
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from batchrun import codec
from batchrun.codec import Unstorable

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # CI machines are slow

text = st.text(st.characters(codec=None, exclude_categories=()), max_size=20) | st.sampled_from(
    ["\0", "\ud800", "\ud800\udc00", "$"]
)
zones = st.sampled_from([ZoneInfo("Europe/Berlin"), UTC, ZoneInfo("UTC")]) | st.builds(
    timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))
)
plain = st.none() | st.booleans() | st.integers() | st.floats() | text
scalars = (
    plain
    | st.sampled_from([5000, 5001]).map(lambda digits: -(10**digits))
    | st.dates()
    | st.datetimes(timezones=st.none() | zones, allow_imaginary=True)
    | st.times(timezones=st.none() | zones)
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
    | st.binary(max_size=20)
)
keys = text | st.sampled_from(["$date", "$dict", "$"]) | st.integers() | st.tuples(st.integers(), text) | st.dates()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.lists(inner).map(tuple), max_leaves=12
)


def alike(one: Any, other: Any) -> bool:
    """Equal in class and value, NaN, the sign of zero, fold and zone included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other) or (
            math.isnan(one) and math.isnan(other) and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, Decimal):
        return bool(one.as_tuple() == other.as_tuple())
    if isinstance(one, datetime | time):
        return repr(one) == repr(other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return alike(list(one.items()), list(other.items()))
    return bool(one == other)


@unhurried
@given(values)
def test_any_value_comes_back_as_it_was(value: Any) -> None:
    written = codec.dump(value)
    assert written.isascii()
    assert "\0" not in written
    assert alike(codec.load(written), value)


flat = st.lists(plain) | st.lists(st.dictionaries(text, plain)) | st.lists(st.tuples(plain, text)) | st.lists(values)


@unhurried
@given(flat)
def test_a_list_of_items_comes_back_as_it_was(items: list[Any]) -> None:
    assert alike(codec.load_items(codec.dump_items(items)), items)


@unhurried
@given(flat, flat)
def test_the_text_of_an_item_does_not_depend_on_its_neighbours(left: list[Any], right: list[Any]) -> None:
    together = codec.dump_items(left + right)[1:-1]
    assert together == ",".join(filter(None, (codec.dump_items(part)[1:-1] for part in (left, right))))


@pytest.mark.parametrize(
    "value",
    [
        Decimal("NaN"),
        Decimal("sNaN12"),
        Decimal("-0E+30"),
        Decimal("1E-999999"),
        -0.0,
        float("-inf"),
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime(2026, 10, 25, 2, 30, 0, 1, fold=1),  # noqa: DTZ001
        time(2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        UUID(int=7),
        {"$decimal": "1"},
        {"$dict": [["$tuple", 1]]},
        {(1, 2): {None: b"\0"}},
        [{}, [], ()],
    ],
)
def test_hard_values_come_back_as_they_were(value: Any) -> None:
    assert alike(codec.load(codec.dump(value)), value)


class Colour(enum.IntEnum):
    RED = 1


class Name(enum.StrEnum):
    RED = "red"


class Text(str):
    __slots__ = ()


class Vague(tzinfo):
    def utcoffset(self, moment: datetime | None) -> None:
        return None

    def dst(self, moment: datetime | None) -> None:
        return None

    def tzname(self, moment: datetime | None) -> None:
        return None


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Colour.RED, "pass its value"),
        (Name.RED, "pass its value"),
        (Text("a"), "convert it to str"),
        (Point(1, 2), "convert it to tuple"),
        (OrderedDict(a=1), "convert it to dict"),
        ({1, 2}, "An item may be made of int, float, str"),
        (bytearray(b"a"), "An item may be made of"),
        (Order(id=7), "pass the primary key, not the object; the task loads it by session.get(Order, key)"),
        (Session(), "pass the primary key, not the object; the task gets a session of its own"),
        (sqlalchemy.create_engine("sqlite://"), "the task gets a session of its own"),
        (datetime(2026, 1, 1, tzinfo=Vague()), "use zoneinfo"),
        (object(), "pass a primary key or plain data"),
        (Order, "plain data"),
    ],
)
def test_any_other_class_is_refused_and_told_what_to_pass(value: Any, hint: str) -> None:
    with pytest.raises(TypeError, match=re.escape(hint)):
        codec.dump(value)
    with pytest.raises(TypeError, match=re.escape(hint)):
        codec.dump({"inside": [(value,)]})


def test_an_open_file_is_refused_and_its_path_asked_for(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as stream, pytest.raises(TypeError, match="pass its path"):
        codec.dump(stream)


def test_a_list_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TypeError, match="64 levels deep"):
        codec.dump(endless)


def test_an_item_that_cannot_be_stored_leaves_the_others_whole() -> None:
    found = codec.load_items(codec.dump_items([1, Order(id=7), {"a": Colour.RED}, "b"]))
    assert found[0] == 1
    assert found[3] == "b"
    assert isinstance(found[1], Unstorable)
    assert found[1].type_name.endswith(".Order")
    assert "pass the primary key, not the object" in found[1].message
    assert found[2].type_name == "dict"
    assert codec.load_items(codec.dump_items(found)) == found


def test_a_time_zone_that_raises_spoils_only_its_item() -> None:
    class Broken(Vague):
        def utcoffset(self, moment: datetime | None) -> None:
            raise RuntimeError("no")

    found = codec.load_items(codec.dump_items([datetime(2026, 1, 1, tzinfo=Broken()), date(2026, 1, 1)]))
    assert "RuntimeError: no" in found[0].message
    assert found[1] == date(2026, 1, 1)


def test_an_unknown_tag_is_an_error() -> None:
    with pytest.raises(ValueError, match="newer version"):
        codec.load('{"$later": 1}')


class Rude:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __repr__(self) -> str:
        raise self.error


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        ("a\x1b[31m\0\n", r"a\x1b[31m\x00\n"),
        ("\ud800", r"\ud800"),
        (7, "7"),
        (date(2026, 1, 2), "2026-01-02"),
        ((1, "x"), "(1, 'x')"),
        (Rude(ValueError), None),
        (Rude(SystemExit), None),
        pytest.param(10**5000, None, id="huge"),
        ("é", "é"),
    ],
)
def test_an_item_is_shown_without_control_characters(item: Any, shown: str | None) -> None:
    found = codec.key_text(item)
    assert found.isprintable()
    assert found == shown or shown is None


@unhurried
@given(values | st.text(min_size=150))
def test_an_item_is_shown_in_at_most_200_characters(item: Any) -> None:
    assert len(codec.key_text(item)) <= 200
