"""Items from any iterable of Python: read lazily, once, and checked on resume by a rolling hash.

    iterable -> IterableReader.take() -> items, and a cursor {"count": n, "hash": of the first n items}
    resume:     skip n items, hash them again, compare

A durable run stores the cursor. The hash is a stream of blake2b over the items' text (``batchrun.codec``), so it
does not depend on how the items were cut into takes.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections import deque
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sized
from itertools import islice
from pathlib import PurePath
from typing import Any

from batchrun import codec
from batchrun.errors import ConfigError, RunChanged
from batchrun.items import Item
from batchrun.sources.source import Cursor, SourceContext

_SLICE = 10_000
# Iterating over these runs no code of the user's, so the clock need not be read after each item.
_QUICK: tuple[type, ...] = (list, tuple, range, set, frozenset, deque, type({}.keys()), type({}.values()), type({}.items()))


class RollingHash:
    """The hash of all items so far."""

    def __init__(self) -> None:
        self._state = hashlib.blake2b(digest_size=16)

    def update(self, items: list[Item]) -> None:
        """Add items. One that cannot be stored counts by its class."""
        if items:
            self._state.update(codec.dump_items(items)[1:-1].encode("ascii") + b",")

    def hexdigest(self) -> str:
        return self._state.hexdigest()


class IterableReader:
    """Takes items from an iterator. An error of the iterator's is kept until the items before it were handed out.

    count: how many items were taken before. hashed: the hash of those, None where no cursor will be stored.
    quick: the iterator never runs code of the user's.
    """

    def __init__(self, items: Iterator[Item], *, count: int = 0, hashed: RollingHash | None = None, quick: bool = False) -> None:
        self._items = items
        self._count = count
        self._hashed = hashed
        self._quick = quick
        self._error: BaseException | None = None
        self._exhausted = False

    @property
    def cursor(self) -> Cursor:
        """``{"count": n}``, with the hash of these n items in a durable run."""
        place = {} if self._hashed is None else {"hash": self._hashed.hexdigest()}
        return {"count": self._count, **place}

    @property
    def exhausted(self) -> bool:
        return self._exhausted

    def take(self, limit: int, budget_s: float = 0.1) -> list[Item]:
        """As ``Reader.take``; at least one item if there is one. Once the iterator raised, every further take raises it."""
        if self._error is not None:
            raise self._error
        items: list[Item] = []
        try:
            self._fill(items, limit, budget_s)
        except BaseException as error:
            self._error = error
            if not items or not isinstance(error, Exception):
                raise
        self._count += len(items)
        self._settled(items)
        return items

    def _fill(self, items: list[Item], limit: int, budget_s: float) -> None:
        if self._quick or limit <= 0:
            items.extend(islice(self._items, max(limit, 0)))
            self._exhausted = len(items) < limit
            return
        deadline = time.monotonic() + budget_s
        for item in self._items:
            items.append(item)
            if len(items) >= limit or time.monotonic() >= deadline:
                return
        self._exhausted = True

    def _settled(self, items: list[Item]) -> None:
        if self._hashed is not None:
            self._hashed.update(items)

    def close(self) -> None:
        """Run the ``finally`` blocks of a generator. Any other iterator belongs to the caller."""
        if inspect.isgenerator(self._items) and not self._items.gi_running:
            self._items.close()


def skip_hashed(items: Iterator[Item], after: Cursor, what: str, accept_changes: bool) -> RollingHash:
    """Take the first items out of an iterator and return their hash.

    after: the cursor that was stored. what: names the source in a message.
    Raises RunChanged if they are not what they were, unless ``accept_changes``.
    """
    hashed, left = RollingHash(), int(after["count"])
    while left and (skipped := list(islice(items, min(left, _SLICE)))):
        hashed.update(skipped)
        left -= len(skipped)
    if accept_changes:
        return hashed
    if left:
        count = after["count"]
        raise changed(what, f"now ends after {count - left:,} items, but {count:,} were taken from it before")
    if hashed.hexdigest() != after.get("hash"):
        raise changed(what, f"now gives other items: the first {after['count']:,} are not what they were")
    return hashed


def changed(what: str, how: str) -> RunChanged:
    """The error for items that are not what they were."""
    return RunChanged(
        f"The input changed since this run began: {what} {how}. Nothing was run. A set has another order in each process, and a "
        "generator may give other items when it is called again: sort it, or give it the same input. To go on behind the same "
        "number of items all the same, use --accept-changes (accept_changes=True)."
    )


class IterableSource:
    """Any iterable as a source. Making one reads nothing, and takes no more items than were asked for.

    accept_changes: resume although the first items are not what they were.
    Raises ConfigError, which says what to pass instead, for text, mappings, queries, classes, and what is no iterable.
    """

    def __init__(self, iterable: Iterable[Item], *, accept_changes: bool = False) -> None:
        _refuse(iterable)
        self._iterable = iterable
        self._was_read = False
        self.accept_changes = accept_changes

    def describe(self) -> str:
        """Such as ``list of 1,200 items``, ``range(0, 10)`` or ``generator orders``."""
        if isinstance(self._iterable, range):
            return repr(self._iterable)
        kind = type(self._iterable).__name__
        size = self._size()
        return f"{kind} of {size:,} items" if size is not None else f"{kind} {getattr(self._iterable, '__name__', '')}".strip()

    def fingerprint(self, context: SourceContext) -> Mapping[str, str]:
        """Kind and length; a range in full. The items themselves are checked by the cursor's hash."""
        return {"items": self.describe()}

    def bound(self, context: SourceContext) -> None:
        """None: an iterable ends by itself."""

    def total(self, context: SourceContext, bound: Any) -> int | None:
        """The length where there is one, else None."""
        return self._size()

    def _size(self) -> int | None:
        try:
            return len(self._iterable) if isinstance(self._iterable, Sized) else None
        except (OverflowError, TypeError):  # a range beyond sys.maxsize
            return None

    def read(self, context: SourceContext, after: Cursor, upto: Any) -> IterableReader | RangeReader:
        """Open a reader behind ``after``. Raises RunChanged if the items before it are not what they were."""
        if isinstance(self._iterable, range):
            return self._read_range(self._iterable, after)
        items = self._open()
        quick = isinstance(self._iterable, _QUICK)
        if not context.durable:
            count = 0 if after is None else after["count"]
            next(islice(items, count, count), None)
            return IterableReader(items, count=count, quick=quick)
        if after is None:
            return IterableReader(items, hashed=RollingHash(), quick=quick)
        hashed = skip_hashed(items, after, f"the {self.describe()}", self.accept_changes)
        return IterableReader(items, count=after["count"], hashed=hashed, quick=quick)

    def _read_range(self, numbers: range, after: Cursor) -> RangeReader:
        count = 0 if after is None else after["count"]
        if after is not None and after["hash"] != repr(numbers) and not self.accept_changes:
            raise changed(f"the {numbers!r}", f"was {after['hash']}")
        return RangeReader(numbers, count)

    def _open(self) -> Iterator[Item]:
        try:
            items = iter(self._iterable)
        except TypeError as error:
            raise ConfigError(f"items: a {codec.type_name(self._iterable)} cannot be iterated over: {error}") from error
        if items is self._iterable:
            if self._was_read:
                raise ConfigError(
                    f"items: the {self.describe()} was already read, and gives its items only once; make a new one."
                )
            self._was_read = True
        return items


class RangeReader:
    """Takes numbers from a range. Its cursor needs no hash: the range itself says what came before."""

    def __init__(self, numbers: range, count: int) -> None:
        self._numbers = numbers
        self._left = numbers[count:]
        self._count = count

    @property
    def cursor(self) -> Cursor:
        """``{"count": n, "hash": the range as text}``."""
        return {"count": self._count, "hash": repr(self._numbers)}

    @property
    def exhausted(self) -> bool:
        return not self._left

    def take(self, limit: int, budget_s: float = 0.1) -> list[Item]:
        """As ``Reader.take``; a range is never slow."""
        items = list(self._left[: max(limit, 0)])
        self._left = self._left[len(items) :]
        self._count += len(items)
        return items

    def close(self) -> None:
        """Nothing to let go of."""


def _refuse(found: Any) -> None:
    """Raise ConfigError for what can be iterated over, or nearly, but is not a list of items."""
    hint = _remedy(found)
    if hint is None and not isinstance(found, Iterable) and not hasattr(type(found), "__getitem__"):
        hint = "it cannot be iterated over; pass a list, a generator, keyset(...), csv_rows(...), jsonl(...) or lines(...)."
    if hint is not None:
        shown = f"the class {found.__name__}" if isinstance(found, type) else f"a {codec.type_name(found)}"
        raise ConfigError(f"items: {shown} was given: {hint}")


def _remedy(found: Any) -> str | None:
    if isinstance(found, type):
        return f"pass its rows, such as keyset(select({found.__name__})), or a list of items."
    if isinstance(found, str | bytes | bytearray):
        return "its items would be single characters; for the lines of a file write lines(path), for one item [text]."
    if isinstance(found, PurePath):
        return "write csv_rows(path), jsonl(path) or lines(path)."
    if isinstance(found, Mapping):
        return "its items would be the keys alone; pass list(mapping.items()), list(mapping) or its values."
    if isinstance(found, AsyncIterable) or inspect.isawaitable(found):
        return "batchrun reads plain iterables; write def instead of async def, or collect a list first."
    if inspect.isroutine(found):
        return "pass what it returns: call it."
    return _query_remedy(found)


def _query_remedy(found: Any) -> str | None:
    # By name, so that reading a list never imports SQLAlchemy.
    names = {kind.__name__ for kind in type(found).__mro__ if kind.__module__.partition(".")[0] == "sqlalchemy"}
    if "Query" in names:
        return "a legacy Query holds one cursor for the whole run; pass keyset(select(...))."
    if names & {"SelectBase", "Executable", "FromClause"}:
        return "wrap it: keyset(select(...)) reads it by pages of its key."
    if names & {"Session", "Engine", "Connection"}:
        return "pass keyset(select(...)); the connection is batchrun's own."
    return None
