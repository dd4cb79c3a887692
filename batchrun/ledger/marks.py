"""The statements a worker sends: the mark that goes with BEGIN, and what is asked when a mark changed no row.

They are texts made of numbers and a run id of [0-9a-z], so that they can share one message with BEGIN; whatever
comes from the user (an item, an error's message) is bound, never pasted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect, Insert, Update, insert, select, update

from batchrun.database.stored import Statement
from batchrun.errors import AlreadyRunning, BatchrunError
from batchrun.items import ItemError
from batchrun.ledger.schema import Tables


class Fenced(AlreadyRunning):
    """Another process has taken the run over: this one may write nothing more."""


class Corrupt(BatchrunError):
    """The ledger says less is settled than was; somebody edited it."""


class Spot(NamedTuple):
    """Where an item stands: its chunk, its position there, and its retry, if it is one.

    attempt: the number of this attempt. retry: it has a row of its own, and that row is its mark.
    base: attempts that do not count, made before a person asked for the retry.
    """

    no: int
    pos: int
    attempt: int = 1
    retry: bool = False
    base: int = 0


@dataclass(frozen=True, slots=True)
class MarksSpec:
    """What a worker must know to mark: plain data."""

    run: str
    epoch: int
    schema: str | None


class Marks:
    """Makes the statements for one run and epoch."""

    def __init__(self, spec: MarksSpec, tables: Tables, dialect: Dialect) -> None:
        self.spec = spec
        self._tables = tables
        prepare = dialect.identifier_preparer.format_table
        self._chunk, self._item = prepare(tables.chunk), prepare(tables.item)
        self._mine = f"run = '{spec.run}' AND epoch = {spec.epoch}"
        self._now = (
            "((julianday('now') - 2440587.5) * 86400.0)" if dialect.name == "sqlite" else "extract(epoch FROM clock_timestamp())"
        )
        self.of_one = Statement(self.of_items)
        """The mark of an item's first attempt, of its chunk's number and its position: a server can keep it prepared."""

    def of_items(self, no: int | str, pos: int | str, count: int = 1) -> str:
        """The compare-and-swap that settles ``count`` items of a chunk, as a text."""
        return f"UPDATE {self._chunk} SET pos = pos + {count}, deaths = 0 WHERE {self._mine} AND no = {no} AND pos = {pos}"

    def of_retry(self, spot: Spot, state: str = "done") -> str:
        """The compare-and-swap of an item that has a row of its own."""
        return (
            f"UPDATE {self._item} SET state = '{state}', attempts = {spot.attempt} WHERE {self._mine} "
            f"AND no = {spot.no} AND pos = {spot.pos} AND state = 'retry' AND attempts = {spot.attempt - 1}"
        )

    def of(self, spot: Spot) -> str:
        """The mark of one item, first attempt or retry."""
        return self.of_retry(spot) if spot.retry else self.of_items(spot.no, spot.pos)

    def skipping(self, spot: Spot) -> str:
        """The mark of an item its task left out."""
        if spot.retry:
            return self.of_retry(spot, "skipped")
        return self.of_items(spot.no, spot.pos).replace("deaths = 0", "deaths = 0, skipped = skipped + 1")

    def passing(self, spot: Spot, *, partly: bool = False) -> str:
        """Moves on past an item that went wrong. partly: its own mark may have been committed by the task itself."""
        if spot.retry:
            loose = f"state IN ('retry', 'done') AND attempts IN ({spot.attempt - 1}, {spot.attempt})"
            mark = self.of_retry(spot, "failed")
            return mark.replace(f"state = 'retry' AND attempts = {spot.attempt - 1}", loose) if partly else mark
        if partly:
            return self.within(spot, spot.pos + 1, (spot.pos, spot.pos + 1))
        moved = f"UPDATE {self._chunk} SET pos = {spot.pos + 1}, deaths = 0"
        return f"{moved} WHERE {self._mine} AND no = {spot.no} AND pos = {spot.pos}"

    def within(self, spot: Spot, to: int, found: tuple[int, ...]) -> str:
        """Settles a chunk up to ``to`` where it stands at one of ``found``, unless the item at ``spot`` has its row already."""
        row = f"SELECT 1 FROM {self._item} WHERE run = '{self.spec.run}' AND no = {spot.no} AND pos = {spot.pos}"
        places = ", ".join(map(str, found))
        moved = f"UPDATE {self._chunk} SET pos = {to}, deaths = 0"
        return f"{moved} WHERE {self._mine} AND no = {spot.no} AND pos IN ({places}) AND NOT EXISTS ({row})"

    def running(self, spot: Spot) -> str:
        """transaction="none", a retry: its row says that it is under way before anything outside happens."""
        return self.of_retry(spot, "running")

    def of_running(self, spot: Spot) -> str:
        """transaction="none": the compare-and-swap of an item that was under way and went wrong."""
        where = f"WHERE {self._mine} AND no = {spot.no} AND pos = {spot.pos} AND state = 'running'"
        return f"UPDATE {self._item} SET epoch = epoch {where}"

    def ending(self, spot: Spot) -> str:
        """transaction="none": the item that was under way is done; a first attempt's row has served its purpose."""
        where = f"WHERE {self._mine} AND no = {spot.no} AND pos = {spot.pos} AND state = 'running'"
        return f"UPDATE {self._item} SET state = 'done' {where}" if spot.retry else f"DELETE FROM {self._item} {where}"

    def write_item(
        self,
        connection: Connection,
        spot: Spot,
        payload: str,
        state: str,
        error: ItemError | None = None,
        after_s: float | None = None,
        *,
        was_running: bool = False,
    ) -> None:
        """Give an item a row of its own, or bring its row up to date, in the transaction of ``passing``."""
        due = None if after_s is None else self._due(connection, after_s)
        known: dict[str, Any] = {
            "state": state,
            "attempts": spot.attempt,
            "due": due,
            "class": error.type if error else "",
            "sqlstate": error.sqlstate if error else None,
            "message": error.message if error else "",
        }
        has_row = spot.retry or was_running
        connection.execute(self._update_item(spot, known) if has_row else self._insert_item(spot, payload, known))

    def _due(self, connection: Connection, after_s: float) -> float:
        return float(connection.exec_driver_sql(f"SELECT {self._now}").scalar_one()) + after_s

    def _insert_item(self, spot: Spot, payload: str, known: dict[str, Any]) -> Insert:
        where = {"run": self.spec.run, "no": spot.no, "pos": spot.pos, "epoch": self.spec.epoch}
        return insert(self._tables.item).values(**where, payload=payload, deaths=0, base=0, **known)

    def _update_item(self, spot: Spot, known: dict[str, Any]) -> Update:
        row = self._tables.item
        return update(row).where(row.c.run == self.spec.run, row.c.no == spot.no, row.c.pos == spot.pos).values(**known)

    def look(self, connection: Connection, spot: Spot) -> str:
        """Why did the mark change no row? Returns "again" or the state the item is settled in.

        Zero rows do not mean done: it can also mean fenced, gone, or a zombie that has just rolled back.
        Raises Fenced or Corrupt.
        """
        row = self._tables.item
        mine = (row.c.run == self.spec.run, row.c.no == spot.no, row.c.pos == spot.pos)
        own = connection.execute(select(row.c.state, row.c.attempts, row.c.epoch).where(*mine)).first()
        if spot.retry:
            return self._look_at_retry(own, spot)
        chunk = self._tables.chunk
        found = connection.execute(
            select(chunk.c.pos, chunk.c.epoch).where(chunk.c.run == self.spec.run, chunk.c.no == spot.no)
        ).first()
        if found is None or found.epoch != self.spec.epoch:
            raise Fenced(f"Run {self.spec.run} was taken over by another process.")
        if found.pos < spot.pos:
            raise Corrupt(
                f"Chunk {spot.no} of run {self.spec.run} stands at {found.pos}, but {spot.pos} items of it were settled."
            )
        if found.pos == spot.pos:
            return "again"
        return str(own.state) if own else "done"

    def _look_at_retry(self, own: Any, spot: Spot) -> str:
        if own is None or own.epoch != self.spec.epoch:
            raise Fenced(f"Run {self.spec.run} was taken over by another process.")
        if own.state == "retry":
            return "again" if own.attempts == spot.attempt - 1 else "retry"
        return str(own.state)
