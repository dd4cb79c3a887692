"""The parent's side of a dry run: what is said before it begins, and what its workers measured, added up to a Rehearsal.

opening   -> notices: nothing is kept, what a rollback does not undo, a real run that is going on
workers   -> Measured -> Costs           observers' events -> errors by class
the end   -> Rehearsal: figures an item, and a forecast of the whole source
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from batchrun.books import AnonymousBook
from batchrun.calls import Call
from batchrun.codec import dump_items
from batchrun.errors import BatchrunError, ConfigError
from batchrun.events import Event, ItemTrouble, Notice
from batchrun.execution.rehearsing import LOCAL
from batchrun.forecast import Setting, bound_by, expected
from batchrun.items import Item
from batchrun.ledger.reading import Reading, open_reading
from batchrun.rehearsal import Costs, Measured, Rehearsal
from batchrun.seating import cores

NO_SESSION = (
    'A dry run rolls back what tasks do in their session, and with transaction="none" they have none: whatever they do, they '
    "would do for real. Run the job with --transaction item or chunk, or for real with --limit 1."
)
LASTING = (
    "Dry run: each item runs in a real transaction, which is rolled back. A rollback does not undo effects outside the database, "
    "numbers taken from sequences, and what an initializer does."
)
ENOUGH_S = 1.0
"""Of work, below which whatever else the machine does for a moment weighs too much."""

BY_SESSION = "as the server counts it for the workers' own sessions"
BY_SERVER = "of the whole server meanwhile, other sessions included"


def check_dry_run(call: Call) -> None:
    """Raises ConfigError where nothing could be rolled back."""
    if call.dry_run and not call.has_session:
        raise ConfigError(NO_SESSION)


def running_now(call: Call, ledger: Engine) -> str:
    """A sentence about a real run of the same job that is going on; empty where there is none. Writes nothing."""
    try:
        reading: Any = open_reading(ledger, call.schema)
        if not isinstance(reading, Reading):
            return ""
        alive = [stored.id for stored in reading.stored_of_job(call.job.name) if reading.is_alive(stored)]
    except (SQLAlchemyError, BatchrunError):  # no right to look, a ledger of another layout: the dry run needs none
        return ""
    if not alive:
        return ""
    return (
        f"Run {alive[0]} of {call.job.name} is going on. This dry run waits for the rows it has locked, and makes it wait in "
        "turn; what is measured here is a busier database than one without it."
    )


class RehearsalBook(AnonymousBook):
    """Writes chunks out as the ledger would hold them, and forgets them: what that takes is part of a run.

    bytes, items: written so far.
    """

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.bytes = self.items = 0

    def cut(self, no: int, pieces: Sequence[list[Item]], frontiers: Sequence[Any]) -> None:
        for piece in pieces:
            self.bytes += len(dump_items(piece))
            self.items += len(piece)


class Rehearsing:
    """Gathers what a dry run shows. An observer of the run, too."""

    def __init__(self, call: Call, engine: Engine, book: RehearsalBook, *, whole: int | None) -> None:
        self._call = call
        self._engine = engine
        self._book = book
        self._whole = whole
        self._costs = Costs()
        self._found = Rehearsal()
        self._began = time.monotonic()
        self._cpu = time.process_time()
        self._first_s: float | None = None
        self._lsn = self._position()

    def observe(self, event: Event) -> None:
        """Count what fails."""
        if isinstance(event, ItemTrouble):
            self._found.failed(event.outcome)

    def add(self, measured: Measured) -> None:
        """What a worker measured over an order."""
        if self._first_s is None:
            self._first_s = time.monotonic() - self._began - measured.wall_s - measured.waited_s
            self._cpu = time.process_time()
        self._costs.add(measured)

    def result(self, workers: int, most: int | None) -> Rehearsal:
        """Everything, at the end of a run of so many workers. most: items a chunk may have."""
        costs, found, setting = self._costs, self._found, self._setting(workers, most)
        sample = self._call.sample
        found.sample, found.seed = (str(sample), sample.seed) if sample else (None, None)
        found.whole, found.cores = self._whole, setting.cores
        found.latency, found.commit_s = costs.latency, None if setting.reads else costs.commit_s
        if costs.items:
            found.statements = costs.statements / costs.items
            self._add_times()
            self._add_wal()
        found.expected = expected(costs, setting, self._whole)
        found.bound_by = bound_by(costs, setting)
        found.notes = self._notes(setting)
        return found

    def _add_times(self) -> None:
        costs, found = self._costs, self._found
        if not costs.wall.items:
            return
        items = costs.wall.items
        found.cpu_s = costs.cpu.sum / items
        found.server_s = costs.server.sum / items if costs.is_server_seen else None
        found.waiting_s = max(0.0, (costs.wall.sum - costs.cpu.sum - costs.server.sum) / items)

    def _setting(self, workers: int, most: int | None) -> Setting:
        options, costs = self._call.options, self._costs
        is_sqlite = self._engine.dialect.name == "sqlite"
        host = self._engine.url.host or ""
        return Setting(
            workers=workers, threads=options.threads, cores=cores(),
            shares_cores=is_sqlite or host in LOCAL or host.startswith("/"),
            one_writer=is_sqlite and not options.read_only,
            per_item=options.transaction == "item" and not options.batched, batched=options.batched, reads=options.read_only,
            parent_s=(time.process_time() - self._cpu) / costs.items if workers and costs.items else 0.0,
            item_bytes=self._book.bytes / max(1, self._book.items), start_s=max(0.0, self._first_s or 0.0), most=most,
        )  # fmt: skip

    # The write-ahead log.

    def _position(self) -> int | None:
        """How many bytes the server has written; None on SQLite, on a standby, and where it is not permitted."""
        if self._engine.dialect.name != "postgresql":
            return None
        try:
            with self._engine.connect() as connection:
                return int(connection.scalar(text("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")))
        except SQLAlchemyError:
            return None

    def _add_wal(self) -> None:
        costs, found, now = self._costs, self._found, self._position()
        if costs.wal_items:
            found.wal_bytes, found.wal_by = costs.wal_bytes / costs.wal_items, BY_SESSION
        elif now is not None and self._lsn is not None:
            found.wal_bytes, found.wal_by = max(0, now - self._lsn) / costs.items, BY_SERVER

    def _notes(self, setting: Setting) -> list[str]:
        """What the figures do not say."""
        notes = []
        if self._found.partial:
            notes.append(
                f"{self._found.partial} items ended their transaction past the session: what they wrote before that is "
                "COMMITTED, although this was a dry run. Look at what they left."
            )
        measured_s = self._costs.wall.sum
        if self._costs.items and measured_s < ENOUGH_S and (self._whole is None or self._costs.items < self._whole):
            more = f"{10 ** math.ceil(math.log10(self._costs.items * ENOUGH_S / max(measured_s, 0.001))):,}".replace(",", "")
            notes.append(f"Only {measured_s:.1g} s of work were measured; a sample of {more} makes the forecast firmer.")
        if self._whole is None:
            notes.append("Nobody knows how many items the source has, so the forecast is for a million.")
        if not setting.shares_cores:
            notes.append("The server is another machine, whose cores are not known: it is taken to keep up with 8 workers.")
        elif not setting.one_writer and self._costs.items and not self._costs.is_server_seen:
            notes.append("The server's process cannot be seen from here: waiting for it is taken as computing on this machine.")
        if not setting.reads and self._costs.items and self._found.commit_s is None:
            notes.append("What a COMMIT takes could not be tried: the forecast is without it.")
        return notes


def notices(call: Call, ledger: Engine | None, tell: Callable[[Notice], None]) -> None:
    """What is said once, before a dry run begins."""
    tell(Notice("INFO", LASTING))
    if ledger is not None and (said := running_now(call, ledger)):
        tell(Notice("WARNING", said))
