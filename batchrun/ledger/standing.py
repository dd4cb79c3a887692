"""Where one item of a run stands, as far as the ledger can tell.

    a row of its own      failed, quarantined, unknown, waiting for another try     sure
    an open chunk         its items are there: settled before the chunk's position, pending from it on     sure
    a closed chunk        only its first and last item are kept, as texts: a number between them is one of its items
                          if the source had it at all

A ledger keeps a row for a chunk and not for an item, which is why it cannot always be sure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from batchrun.codec import dump_items, key_text, load, load_items
from batchrun.ledger.reading import Reading
from batchrun.ledger.schema import Tables

PAGE = 1000
NOT_FOUND = "it is in no chunk that was cut so far; or in a closed one, whose ends alone are kept: only numbers are found there"


@dataclass(frozen=True, slots=True)
class Standing:
    """state: of the item's row, or done, pending, or "not cut". said: a sentence. chunk: its number; None = in none yet."""

    key: str
    state: str
    said: str
    chunk: int | None = None
    position: int | None = None
    attempts: int | None = None
    error: str = ""
    message: str = ""


def standing(reading: Reading, run: str, key: str) -> Standing:
    """Where the item stands that people write as ``key``: a text, a number, or its JSON."""
    engine, tables = reading.parts
    values = _meanings(key)
    with engine.connect() as connection:
        return (
            _own_row(connection, tables, run, key, values)
            or _open_chunk(connection, tables, run, key, values)
            or _closed_chunk(connection, tables, run, key)
            or Standing(key, "not cut", NOT_FOUND)
        )


def _meanings(key: str) -> list[Any]:
    """What a text on the command line may stand for."""
    found: list[Any] = [key]
    try:
        found.append(load(key))
    except (ValueError, TypeError, KeyError, RecursionError):
        return found
    if isinstance(found[1], list):
        found.append(tuple(found[1]))  # a composite key
    return found


def _own_row(connection: Connection, tables: Tables, run: str, key: str, values: list[Any]) -> Standing | None:
    item = tables.item
    query = select(item).where(item.c.run == run, item.c.payload.in_([dump_items([value]) for value in values]))
    row = connection.execute(query.order_by(item.c.no, item.c.pos).limit(1)).first()
    if row is None:
        return None
    known = row._mapping
    tried = f"{row.attempts} attempt{'' if row.attempts == 1 else 's'}"
    said = {
        "retry": f"it waits for another try, after {tried}",
        "running": "it is under way, or was when its process was cut off",
        "done": f"done, after {tried}",
        "skipped": "the task skipped it",
    }.get(row.state, f"{row.state}, after {tried}" + (f" and {row.deaths} deaths of its worker" if row.deaths else ""))
    return Standing(key, row.state, said, row.no, row.pos, row.attempts, known["class"], row.message)


def _open_chunk(connection: Connection, tables: Tables, run: str, key: str, values: list[Any]) -> Standing | None:
    chunk, payload = tables.chunk, tables.payload
    query = (
        select(chunk.c.no, chunk.c.pos, chunk.c.skipped, payload.c["items"])
        .join(payload, (payload.c.run == chunk.c.run) & (payload.c.no == chunk.c.no))
        .where(chunk.c.run == run, chunk.c.open)
        .order_by(chunk.c.no)
    )
    for row in connection.execution_options(yield_per=10).execute(query):
        for place, item in enumerate(load_items(row[3])):
            if any(_same(item, value) for value in values) or key_text(item) == key:
                settled = place < row.pos
                said = _settled(row.skipped) if settled else "it is pending: its chunk is cut, and it comes next or soon"
                return Standing(key, "done" if settled else "pending", said, row.no, place)
    return None


def _same(item: Any, value: Any) -> bool:
    return type(item) is type(value) and bool(item == value)


def _settled(skipped: int) -> str:
    return "done" if not skipped else f"done; or skipped, as {skipped:,} of its chunk were"


def _closed_chunk(connection: Connection, tables: Tables, run: str, key: str) -> Standing | None:
    for no, first, last, skipped in _closed(connection, tables, run):
        if key in (first, last):
            return Standing(key, "done", _settled(skipped), no)
        if _is_between(key, first, last):
            said = f"{_settled(skipped)}, if the source has it: it lies between {first} and {last}, the ends of a closed chunk"
            return Standing(key, "done", said, no)
    return None


def _closed(connection: Connection, tables: Tables, run: str) -> Iterator[Any]:
    chunk = tables.chunk
    query = select(chunk.c.no, chunk.c.first, chunk.c.last, chunk.c.skipped).where(chunk.c.run == run, ~chunk.c.open)
    yield from connection.execution_options(yield_per=PAGE).execute(query.order_by(chunk.c.no))


def _is_between(key: str, first: str | None, last: str | None) -> bool:
    """Of whole numbers only: how a database orders texts is its own affair."""
    try:
        ends = sorted((int(first or ""), int(last or "")))
        return ends[0] <= int(key) <= ends[1]
    except ValueError:
        return False
