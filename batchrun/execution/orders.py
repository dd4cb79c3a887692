"""What crosses between the parent and its workers: orders down, messages up. Plain data, pickled by us.

parent  --- Order (items already pickled) --->  worker
parent  <-- Ready, Settled, Ended, ... --------  worker
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cloudpickle

from batchrun.codec import Unstorable
from batchrun.execution.stacks import Hook
from batchrun.items import Item, ItemError
from batchrun.rehearsal import Measured

MAX_VALUE_BYTES = 64 * 1024 * 1024
"""A result or item larger than this fails its item: it belongs into the database or a file, not into a pipe."""

REMEDY = "Pass the primary key, not the object."

PLAIN = frozenset({type(None), bool, int, float})


@dataclass(slots=True, eq=False)
class Order:
    """A chunk, or what is left of one, on its way through one worker. The parent keeps it until it has ended.

    no, pos: the chunk, and where in it the first of ``items`` stands. index: of the first item in the whole run,
    for results in order. attempt, base: of the items' next try. retry: one item with a row of its own.
    alone: one item after the other, each with its own mark; a death is then billed. exclusive: nothing else may
    run in the worker meanwhile. deaths: how often its first item has killed a worker (anonymous runs).
    reached: how many of the items are settled. late_at: which of them overran its time limit, so that its worker had to
    be killed; found: what is known about where it was. weight: bytes on the wire. singly: the items must be pickled one by one.
    most: the worker gets only so many of them, for the sake of a rate; the rest is another order's. None = all.
    """

    no: int
    pos: int
    items: list[Item]
    index: int = 0
    attempt: int = 1
    base: int = 0
    retry: bool = False
    alone: bool = False
    exclusive: bool = False
    deaths: int = 0
    reached: int = 0
    singly: bool = False
    id: int = 0
    late_at: int | None = None
    found: str = ""
    weight: int = 0
    most: int | None = None

    @property
    def handed_over(self) -> int:
        """How many of its items the worker gets."""
        return len(self.items) if self.most is None else min(self.most, len(self.items))

    def rest(self, **changes: Any) -> Order:
        """What is left of it, as a new order."""
        made = Order(
            self.no, self.pos + self.reached, self.items[self.reached :], self.index + self.reached, self.attempt, self.base,
            self.retry, self.alone, self.exclusive,
        )  # fmt: skip
        for name, value in changes.items():
            setattr(made, name, value)
        return made


class Sent(NamedTuple):
    """An order as the worker gets it. start: its first item in the whole run.

    items: one pickle of all, or a list of pickles where ``singly``; in a frame the length of a pickle that stands at its end.
    """

    id: int
    no: int
    pos: int
    attempt: int
    base: int
    retry: bool
    alone: bool
    start: int
    items: bytes | memoryview | list[bytes] | int


Span = tuple[float, int]
"""So many items in a row took so many seconds each."""


class Timing(NamedTuple):
    """How an order's time was spent. steps: of the histogram (see batchrun.insight). slowest: seconds and offset of a few.

    commit_s: in marks and commits. waited_s: for its turn to write.
    """

    steps: dict[int, int]
    slowest: list[tuple[float, int]]
    commit_s: float
    waited_s: float


class Trouble(NamedTuple):
    """An item of a Settled message that is not simply done.

    state: an OutcomeStatus value, or "retry" with ``after`` seconds to wait.
    """

    offset: int
    state: str
    error: ItemError | None
    after: float = 0.0


class Ready(NamedTuple):
    """The worker has its engine and its state, and waits for orders.

    cleans_up: its initializer has a rest to run at the end. hook: how to ask it where it is; None = it cannot be asked.
    """

    pid: int
    cleans_up: bool = False
    hook: Hook | None = None


class Initializing(NamedTuple):
    """The worker calls its initializer now."""


class Settled(NamedTuple):
    """``amount`` further items of an order are settled. values: of each, or None where nobody asked for them.

    are_packed: some of the values are Packed. spans: seconds of an item, and of how many in a row; None where nobody asked.
    """

    order: int
    amount: int
    troubles: list[Trouble]
    values: list[Any] | None
    are_packed: bool = False
    spans: list[Span] | None = None


class Ended(NamedTuple):
    """The order is over; what it did not settle was not begun.

    busy_s: seconds it took. memory: the worker's resident bytes; 0 where nobody wants to know. timing: where they went.
    """

    order: int
    busy_s: float
    memory: int = 0
    timing: Timing | None = None


class Unreadable(NamedTuple):
    """The order's items cannot be unpickled together: send them one by one."""

    order: int


class Began(NamedTuple):
    """The item at ``offset`` of the order begins now: after a wait, or in a chunk that reports nothing until its end."""

    order: int
    offset: int


class Waiting(NamedTuple):
    """The order waits for the database or for its turn to write: no item of it is running."""

    order: int


class Failed(NamedTuple):
    """The worker cannot work at all: its task, engine or initializer failed. kind: "job", "database", "fenced", "corrupt"."""

    kind: str
    text: str
    traceback: str = ""


class Said(NamedTuple):
    """Text a task printed (PRINT) or logged, or a notice of the worker's own (WARNING) or the pool's (NOTICE).

    logger: its name; empty for what is no log record. item, attempt: what the thread was at, the item as
    ``items.item_name`` makes it; attempt 0 = outside of a task. traceback: of the exception it logged. at: Unix time.
    """

    level: str
    text: str
    logger: str = ""
    item: str | int | float | bool | None = None
    attempt: int = 0
    traceback: str = ""
    at: float = 0.0


class Away(NamedTuple):
    """A worker waits for the database: why, for people. An empty text: it waits no longer."""

    why: str


Message = Ready | Initializing | Settled | Ended | Unreadable | Began | Waiting | Failed | Said | Away | Measured


class Packed(NamedTuple):
    """A value of no plain type: pickled, and read back once in the worker, so that it cannot hurt the parent."""

    data: bytes


class Stop:
    """Parent to worker: begin no further item. A worker that has none left ends."""


def pack(value: Any) -> Any:
    """Make a task's value ready to cross. Raises whatever pickling it raises; ValueError when it is too large."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is str or kind is bytes:
        _check_size(len(value))
        return value
    data = cloudpickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    _check_size(len(data))
    pickle.loads(data)
    return Packed(data)


def are_plain(values: list[Any]) -> bool:
    """Need none of them be packed?"""
    kinds = set(map(type, values))
    if kinds <= PLAIN:
        return True
    return kinds <= {bytes, str} and max(map(len, values)) <= MAX_VALUE_BYTES


def _check_size(size: int) -> None:
    if size > MAX_VALUE_BYTES:
        raise ValueError(
            f"The task returned {size / 1e6:,.0f} MB; results up to {MAX_VALUE_BYTES // 2**20} MiB cross back to the caller. "
            "Write it to the database or a file and return where it is."
        )


def unpack(value: Any) -> Any:
    return pickle.loads(value.data) if type(value) is Packed else value


def sent(order: Order) -> Sent:
    """The order as it goes to a worker; notes its weight."""
    items = encode_items(order)
    order.weight = len(items) if isinstance(items, bytes) else sum(map(len, items))
    return Sent(order.id, order.no, order.pos, order.attempt, order.base, order.retry, order.alone, order.index, items)


def in_frame(message: Sent) -> tuple[Sent, bytes]:
    """An order's message and what goes behind it: a pickle of much data is neither pickled again nor copied."""
    items = message.items
    return (message._replace(items=len(items)), items) if isinstance(items, bytes) else (message, b"")


def out_of_frame(message: Sent, frame: bytes) -> Sent:
    """In the worker: the order's message with its items."""
    items = message.items
    return message._replace(items=memoryview(frame)[-items:]) if isinstance(items, int) else message


def encode_items(order: Order) -> bytes | list[bytes]:
    """Pickle an order's items: together where that works, else each by itself with the bad ones replaced."""
    items = order.items if order.most is None else order.items[: order.most]
    if not order.singly:
        try:
            return pickle.dumps(items, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception:
            pass
    return [_encode_one(item) for item in items]


def _encode_one(item: Item) -> bytes:
    try:
        return bytes(cloudpickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL))
    except Exception as error:
        kind = type(item)
        said = f"This item, a {kind.__module__}.{kind.__qualname__}, cannot be sent to a worker: {error}. {REMEDY}"
        return pickle.dumps(Unstorable(kind.__qualname__, said))


def decode_items(sent: bytes | memoryview | list[bytes] | int) -> list[Item]:
    """In the worker. Raises when items that were pickled together cannot be read."""
    if isinstance(sent, bytes | memoryview):
        return list(pickle.loads(sent))
    assert isinstance(sent, list)
    return [_decode_one(data) for data in sent]


def _decode_one(data: bytes) -> Item:
    try:
        return pickle.loads(data)
    except BaseException as error:  # an item's __setstate__ is foreign code
        return Unstorable(
            "object",
            f"This item cannot be read in a worker: {type(error).__name__}: {error}. Pass the primary key, not the object.",
        )


Report = Callable[[Message], None]
