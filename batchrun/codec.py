"""Items, cursors and bounds as text and back, without loss: JSON, with a tag around what JSON does not know.

    1, "a", 2.5, true, null, [..], {"name": ..}     as they are
    {"$decimal": "1.50"}  {"$tuple": [1, 2]}  ...   everything else: an object of one key that begins with "$"
    {"$dict": [[key, value], ..]}                   a dict whose keys are not plain, or begin with "$"

The text is pure ASCII without a NUL character, so that every database stores it as TEXT. Types are compared
exactly: an IntEnum or a numpy integer is refused rather than turned into an int behind the task's back.
"""

from __future__ import annotations

import base64
import json
import math
import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from itertools import chain
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

MAX_DEPTH = 64
KEY_TEXT_LENGTH = 200
ALLOWED = "int, float, str, bool, None, date, datetime, time, timedelta, Decimal, UUID, bytes, tuple, list and dict"

_PLAIN = frozenset({int, str, float, bool, type(None)})
# Two lone surrogates in a row are two characters in Python, but JSON would read their escapes as one.
_SURROGATE_PAIR = re.compile(r"[\ud800-\udbff][\udc00-\udfff]")
_to_text = json.JSONEncoder(ensure_ascii=True, check_circular=False, allow_nan=False, separators=(",", ":")).encode


UNSTORABLE = '{"$unstorable":'
"""What a text of items has in it if one of them could not be written down."""


@dataclass(frozen=True, slots=True)
class Unstorable:
    """Stands in a list of items for one that cannot be written down; that item alone fails, with ``message``.

    type_name: the class that was refused, with its module. message: which, why and what to do.
    """

    type_name: str
    message: str


def dump(value: Any) -> str:
    """Write one value. Raises TypeError, which says what to pass instead, for what cannot come back the same."""
    return _to_text(_encode(value, 0))


def load(text: str) -> Any:
    """Read what ``dump`` wrote. Raises ValueError for any other text."""
    return json.loads(text, object_hook=_decode)


def dump_items(items: list[Any]) -> str:
    """Write a list of items. Never raises for an item: one that cannot be stored becomes an ``Unstorable``."""
    text = _dump_flat(items)
    return _to_text([_encode_item(item) for item in items]) if text is None else text


def load_items(text: str) -> list[Any]:
    """Read what ``dump_items`` wrote, ``Unstorable`` placeholders included."""
    items: list[Any] = load(text)
    return items


def _dump_flat(items: list[Any]) -> str | None:
    """Write plain values, flat dicts or flat tuples at the speed of C; None where an item needs a closer look."""
    kinds = set(map(type, items))
    shaped: list[Any] = items
    if kinds == {tuple} and set(map(type, chain.from_iterable(items))) <= _PLAIN:
        shaped = [{"$tuple": item} for item in items]
    elif kinds != {dict}:
        if not kinds <= _PLAIN:
            return None
    elif not (set(map(type, chain.from_iterable(items))) <= {str} and _flat_values(items)):
        return None
    try:
        text = _to_text(shaped)
    except ValueError:  # NaN, infinity, or an integer beyond Python's limit of decimal digits
        return None
    if "\\ud" in text or (kinds == {dict} and '"$' in text):  # perhaps split surrogates; perhaps a key like a tag
        return None
    return text


def _flat_values(items: list[dict[str, Any]]) -> bool:
    return set(map(type, chain.from_iterable(map(dict.values, items)))) <= _PLAIN


def _encode_item(item: Any) -> Any:
    try:
        return _encode(item, 0)
    except TypeError as error:
        message = str(error)
    except Exception as error:  # a time zone of the user's own that raises
        message = f"{refusal(item)} ({type(error).__name__}: {error})"
    return {"$unstorable": [type_name(item), message]}


def _encode(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is str:
        return value if not _SURROGATE_PAIR.search(value) else {"$str": value.encode("utf-8", "surrogatepass").hex()}
    if kind is bool or value is None:
        return value
    encoder = _ENCODERS.get(kind)
    if encoder is None:
        raise TypeError(refusal(value))
    if depth > MAX_DEPTH:
        raise TypeError(
            f"A {kind.__name__} nested more than {MAX_DEPTH} levels deep, or one that contains itself, cannot be stored."
        )
    return encoder(value, depth)


def _encode_int(value: int, _: int) -> Any:
    if value.bit_length() < 2000:
        return value
    try:
        repr(value)
    except ValueError:  # beyond sys.get_int_max_str_digits(); hexadecimal has no limit
        return {"$int": hex(value)}
    return value


def _encode_float(value: float, _: int) -> Any:
    if math.isfinite(value):
        return value
    return {"$float": "-nan" if math.isnan(value) and math.copysign(1, value) < 0 else repr(value)}


def _encode_moment(tag: str) -> Callable[[Any, int], Any]:
    def encode(value: datetime | time, _: int) -> Any:
        zone = _zone(value, value.tzinfo)
        bare = value.replace(tzinfo=None).isoformat()
        return {tag: bare if zone is None and not value.fold else [bare, value.fold, zone]}

    return encode


def _zone(value: datetime | time, zone: tzinfo | None) -> str | int | None:
    """How the zone is written: the key of a zone of the tz database, else a fixed offset in microseconds."""
    if zone is None:
        return None
    if type(zone) is ZoneInfo and zone.key:
        return zone.key
    offset = value.utcoffset()
    if offset is None:
        raise TypeError(
            f"A {type_name(value)} whose time zone ({type_name(zone)}) gives no offset cannot be stored: use zoneinfo."
        )
    return offset // timedelta(microseconds=1)


def _encode_list(value: list[Any], depth: int) -> Any:
    return [_encode(part, depth + 1) for part in value]


def _encode_tuple(value: tuple[Any, ...], depth: int) -> Any:
    return {"$tuple": [_encode(part, depth + 1) for part in value]}


def _encode_dict(value: dict[Any, Any], depth: int) -> Any:
    if all(type(key) is str and key[:1] != "$" and not _SURROGATE_PAIR.search(key) for key in value):
        return {key: _encode(part, depth + 1) for key, part in value.items()}
    return {"$dict": [[_encode(key, depth + 1), _encode(part, depth + 1)] for key, part in value.items()]}


_ENCODERS: dict[type, Callable[[Any, int], Any]] = {
    int: _encode_int,
    float: _encode_float,
    date: lambda value, _: {"$date": value.isoformat()},
    datetime: _encode_moment("$datetime"),
    time: _encode_moment("$time"),
    timedelta: lambda value, _: {"$timedelta": [value.days, value.seconds, value.microseconds]},
    Decimal: lambda value, _: {"$decimal": str(value)},
    UUID: lambda value, _: {"$uuid": value.hex},
    bytes: lambda value, _: {"$bytes": base64.b64encode(value).decode("ascii")},
    tuple: _encode_tuple,
    list: _encode_list,
    dict: _encode_dict,
    Unstorable: lambda value, _: {"$unstorable": [value.type_name, value.message]},
}


def _decode(found: dict[str, Any]) -> Any:
    if len(found) != 1:
        return found
    ((tag, value),) = found.items()
    if tag[:1] != "$":
        return found
    decoder = _DECODERS.get(tag)
    if decoder is None:
        raise ValueError(f"{tag!r} is no tag of batchrun's JSON: the text was written by something else, or a newer version")
    return decoder(value)


def _decode_moment(kind: type[datetime] | type[time]) -> Callable[[Any], datetime | time]:
    def decode(value: Any) -> datetime | time:
        text, fold, zone = (value, 0, None) if isinstance(value, str) else value
        found = kind.fromisoformat(text)
        return found if zone is None and not fold else found.replace(tzinfo=_zone_of(zone), fold=fold)

    return decode


def _zone_of(written: str | int | None) -> tzinfo | None:
    if isinstance(written, int):
        return timezone(timedelta(microseconds=written))
    return None if written is None else ZoneInfo(written)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$str": lambda value: bytes.fromhex(value).decode("utf-8", "surrogatepass"),
    "$int": lambda value: int(value, 16),
    "$float": float,
    "$date": date.fromisoformat,
    "$datetime": _decode_moment(datetime),
    "$time": _decode_moment(time),
    "$timedelta": lambda value: timedelta(*value),
    "$decimal": Decimal,
    "$uuid": UUID,
    "$bytes": base64.b64decode,
    "$tuple": tuple,
    "$dict": dict,
    "$unstorable": lambda value: Unstorable(*value),
}


def type_name(value: object) -> str:
    """The class of a value with its module, ``builtins.`` left out."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _is_mapped(value: object) -> bool:
    try:
        return "_sa_instance_state" in vars(value)
    except Exception:  # no __dict__, or one of its own that raises
        return False


def refusal(value: object) -> str:
    """Why a value cannot be stored, and what to pass instead. Never raises."""
    name = type_name(value)
    kinds = type(value).__mro__
    roots = {kind.__module__.partition(".")[0] for kind in kinds}
    if type in kinds:
        return f"A class ({getattr(value, '__name__', name)}) cannot be stored: pass a primary key or plain data."
    if _is_mapped(value):
        short = kinds[0].__name__
        return (
            f"An ORM object ({name}) cannot be stored: pass the primary key, not the object; "
            f"the task loads it by session.get({short}, key)."
        )
    if roots & {"sqlalchemy", "psycopg2", "psycopg", "sqlite3"}:
        return (
            f"A {name} cannot be stored, as it belongs to one connection or process: pass the primary key, not the object; "
            "the task gets a session of its own."
        )
    if "_io" in roots or "io" in roots:
        return (
            f"An open file ({name}) cannot be stored: pass its path, as you would pass the primary key, not the object; "
            "the task opens it."
        )
    if "enum" in roots:
        return f"An enum member ({name}) cannot be stored: pass its value, and make the member in the task."
    base = next((kind for kind in kinds[1:] if kind in _ENCODERS or kind in _PLAIN), None)
    hint = f"convert it to {base.__name__}" if base else "pass a primary key or plain data"
    return f"A {name} cannot be stored: {hint}. An item may be made of {ALLOWED}, of exactly these classes."


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = KEY_TEXT_LENGTH
_short.maxdict = _short.maxlist = _short.maxtuple = 20
_AS_TEXT = (date, datetime, time, timedelta, Decimal, UUID)


def key_text(item: object) -> str:
    """A text of an item for people: at most 200 printable characters, control characters escaped. Never raises."""
    try:
        if type(item) is str:
            text: str = item[: KEY_TEXT_LENGTH + 1]
        else:
            text = str(item) if type(item) in _AS_TEXT else _short.repr(item)
        text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[: KEY_TEXT_LENGTH + 1])
    except (Exception, SystemExit):
        text = f"<{type(item).__name__} that cannot be shown>"
    return text if len(text) <= KEY_TEXT_LENGTH else text[: KEY_TEXT_LENGTH - 3] + "..."
