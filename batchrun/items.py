"""Items and what became of them: plain data, the same in the parent, the workers and the ledger."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Item = Any
"""One unit of work: str, int, float, bool, None, date, datetime, Decimal, UUID, bytes, tuple, list or dict.

An anonymous run takes anything that pickles; a durable one what ``batchrun.codec`` can write down.
"""


LONGEST_NAME = 200
_SHOWN_BY_STR = ("str", "date", "datetime", "UUID", "Decimal")  # by name: importing them takes a command that runs nothing longer


def item_name(item: Item) -> str | int | float | bool | None:
    """An item as a log line names it: plain for JSON, short, and never an error, whatever its class does.

    Keys are what they are; dates, UUIDs and decimals their text; anything else its repr, at most 200 characters.
    """
    if item is None or isinstance(item, bool | float) or (isinstance(item, int) and abs(item) < 2**63):
        return item
    try:
        shown = str(item) if type(item).__name__ in _SHOWN_BY_STR else repr(item)
    except Exception as error:
        return f"<{type(item).__name__} whose repr raised {type(error).__name__}>"
    return shown if len(shown) <= LONGEST_NAME else shown[: LONGEST_NAME - 3] + "..."


class OutcomeStatus(enum.StrEnum):
    """What became of an item."""

    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    QUARANTINED = "quarantined"  # killed its worker three times
    UNKNOWN = "unknown"  # effects outside the database, cut off before they were recorded


@dataclass(frozen=True, slots=True)
class ItemError:
    """An error as plain data, read in the worker, where the driver's objects still exist.

    type: the exception's class with its module, "builtins." left out.
    message: its text, at most 10,000 characters.
    sqlstate: five characters where the database gave one, else None.
    traceback: as text, innermost last; empty for a death.
    """

    type: str
    message: str
    sqlstate: str | None = None
    traceback: str = ""


@dataclass(slots=True)  # not frozen: a stream makes millions of these, and freezing costs three times the making
class Outcome:
    """What became of one item.

    item: as the source gave it. value: what the task returned, None where not done.
    error: what went wrong, or why it was skipped; None where done. attempts: counted from 1.
    """

    item: Item
    status: OutcomeStatus
    value: Any = None
    error: ItemError | None = None
    attempts: int = 1


def done_outcomes(items: Iterable[Item], values: Iterable[Any], attempts: int) -> Iterator[Outcome]:
    """The outcomes of items that are simply done, one at a time.

    A stream makes millions of these: filling one in takes half as long as calling its class, and one that is made only
    when it is looked at is gone before the garbage collector would walk over it.
    """
    new, done = object.__new__, OutcomeStatus.DONE
    for item, value in zip(items, values, strict=True):
        made = new(Outcome)
        made.item, made.status, made.value, made.error, made.attempts = item, done, value, None, attempts
        yield made
