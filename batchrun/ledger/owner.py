"""What the owner of a run writes: opening, taking over, cutting, billing deaths, ending. One process at a time owns a run.

    open / take over  ->  the epoch goes up by one, and every later statement carries it: the old owner's change no row
    cut               ->  the source's frontier, the chunk and its items in one transaction, before anything is sent
    bill              ->  a death, on the item that the chunk's position points at
    end_chunks        ->  chunks that are through lose their payload

Nothing here waits for long: on SQLite ``Busy`` is raised at once when it is not the owner's turn, on PostgreSQL after
a second's lock_timeout, and the runner's loop comes back to it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, Select, bindparam, delete, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from batchrun.codec import dump
from batchrun.database.failures import READ_ONLY_STATE, Meaning, is_away, meaning_of, message_of, sqlstate_of
from batchrun.database.pooler import is_pooled
from batchrun.database.turnstile import OwnerTurn
from batchrun.errors import AlreadyRunning
from batchrun.items import ItemError
from batchrun.ledger import liveness, requests
from batchrun.ledger.insights import write_insight
from batchrun.ledger.marks import Fenced, Spot
from batchrun.ledger.reading import now_expression
from batchrun.ledger.records import Billed, Fate, NewRun, OpenChunk
from batchrun.ledger.schema import Tables
from batchrun.ledger.troubles import Wanted, chosen
from batchrun.runs import RunStatus

_STUCK = "xact_start < clock_timestamp() - interval '1 second'"
"""A worker that lives may be about to commit, and its session to serve the pooler's next client: give it that time."""

FENCED = "Run {} was taken over by {}; this process has stopped and written nothing more."


class Busy(Exception):
    """Not now: another writes, or the database is away. Nothing was done; try again."""

    def __init__(self, reason: str, *, away: bool = False, read_only: bool = False) -> None:
        super().__init__(reason)
        self.away = away
        self.read_only = read_only


@contextmanager
def asking() -> Iterator[None]:
    """Around what is read or written by the way: raises Busy while the database is away, or another has it."""
    try:
        yield
    except DBAPIError as error:
        raise _busy(error) or error from None


def _busy(error: DBAPIError) -> Busy | None:
    """Busy, where it may work later."""
    away, said = is_away(error), " ".join(message_of(error).split())
    if away or meaning_of(error, is_lost=False, retry_on=()) in (Meaning.RETRY, Meaning.CONFLICT):
        return Busy(said, away=away, read_only=away and sqlstate_of(error) == READ_ONLY_STATE)
    return None


@dataclass(slots=True)
class Owner:
    """The owner's hand on one run."""

    engine: Engine
    tables: Tables
    run: str
    epoch: int = 1
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    turn: OwnerTurn | None = None

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction of the owner's. Raises Busy instead of waiting; Fenced errors pass through."""
        if self.turn and not self.turn.try_enter():
            raise Busy("a worker is writing")
        try:
            with self.engine.connect() as bare:
                connection = bare.execution_options(batchrun_begin="BEGIN IMMEDIATE")
                with connection.begin():
                    if self.engine.dialect.name == "postgresql":
                        connection.exec_driver_sql("SET LOCAL lock_timeout = '1s'")
                    yield connection
        except DBAPIError as error:
            busy = _busy(error)
            if busy is not None and busy.read_only:
                self.engine.dispose()  # the next connection may lead to the server that takes writes
            raise busy or error from None
        finally:
            if self.turn:
                self.turn.leave()

    # Opening and taking over.

    def create(self, new: NewRun, refuse: Callable[[], None] | None = None) -> None:
        """Write the run's row. Raises AlreadyRunning when a run of that name was opened at the same moment.

        refuse: called while nobody else can open a run; raises when this one must not be.
        """
        now = now_expression(self.engine.dialect.name)
        row: dict[str, Any] = {
            "id": new.id, "job": new.job, "name": new.name, "status": RunStatus.RUNNING.value, "token": self.token,
            "epoch": self.epoch,
            "heartbeat": now, "owner": str(liveness.this_process()), "next_no": 0, "cursor": None, "bound": new.bound,
            "fingerprint": new.fingerprint, "sealed": False, "params": new.params, "options": new.options,
            "guarantee": new.guarantee, "workers": new.workers, "total": new.total, "started": now, "ended": None,
            "elapsed": 0.0, "note": "",
        }  # fmt: skip
        try:
            with self.writing() as connection:
                if self.engine.dialect.name == "postgresql":
                    name = self.engine.dialect.identifier_preparer.format_table(self.tables.run)
                    connection.exec_driver_sql(f"LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE")
                if refuse:
                    refuse()
                connection.execute(insert(self.tables.run).values(**row))
        except IntegrityError:
            if self._was_created(new):
                return
            raise AlreadyRunning(f"A run named {new.name!r} was opened by another process at this very moment.") from None

    def _was_created(self, new: NewRun) -> bool:
        """Did an INSERT of ours, whose COMMIT was not answered, land after all?"""
        run = self.tables.run
        with self.writing() as connection:
            return connection.execute(select(run.c.token).where(run.c.id == new.id)).scalar() == self.token

    def take_over(self, seen_epoch: int) -> None:
        """Become the owner of a run seen at ``seen_epoch``. Raises AlreadyRunning when somebody was quicker."""
        run = self.tables.run
        with self.writing() as connection:
            before = connection.execute(select(run.c.status).where(run.c.id == self.run)).scalar()
            found = connection.execute(
                update(run)
                .where(run.c.id == self.run, run.c.epoch == seen_epoch)
                .values(
                    epoch=seen_epoch + 1,
                    token=self.token,
                    heartbeat=now_expression(self.engine.dialect.name),
                    owner=str(liveness.this_process()),
                    status=RunStatus.RUNNING.value,
                    ended=None,
                    note="",
                )
            )
            if found.rowcount != 1 and not self._is_mine(connection, seen_epoch + 1):
                holder = self._holder(connection)
                raise AlreadyRunning(f"Run {self.run} was taken over by {holder} at this very moment; it goes on there.")
            requests.taken_over(connection, self.tables, self.run, str(before))
        self.epoch = seen_epoch + 1

    def _is_mine(self, connection: Connection, epoch: int) -> bool:
        """Did a takeover of ours, whose COMMIT was not answered, land after all?"""
        run = self.tables.run
        row = connection.execute(select(run.c.epoch, run.c.token).where(run.c.id == self.run)).first()
        return row is not None and (row.epoch, row.token) == (epoch, self.token)

    def _holder(self, connection: Connection) -> str:
        """Who owns the run now, for people."""
        found = connection.execute(select(self.tables.run.c.owner).where(self.tables.run.c.id == self.run)).scalar()
        owner = liveness.parse(str(found or ""))
        return owner.shown if owner else "another process"

    def _fenced(self, connection: Connection) -> Fenced:
        return Fenced(FENCED.format(self.run, self._holder(connection)))

    def end_older_sessions(self) -> int:
        """PostgreSQL: end what older epochs left on the server, and this one's workers by ``worker``. Returns how many."""
        if self.engine.dialect.name != "postgresql":
            return 0
        mine = f"batchrun:{self.run[:8]}:{self.epoch}:%"
        where = "application_name LIKE %(all)s AND application_name NOT LIKE %(mine)s"
        return self._terminate(where, f"batchrun:{self.run[:8]}:%", mine, f"AND {_STUCK}")

    def end_stuck_owner(self) -> int:
        """PostgreSQL: end the session of an owner that stands still (stopped, or cut off) in a transaction of its own, with
        the run's row locked. One that lives holds it for milliseconds.
        """
        if self.engine.dialect.name != "postgresql":
            return 0
        return self._terminate(f"application_name LIKE %(all)s AND {_STUCK}", f"batchrun-owner:{self.run[:8]}:%", "")

    def end_sessions_of(self, worker: int) -> int:
        """PostgreSQL: end what a dead worker left on the server, so that its locks go at once."""
        if self.engine.dialect.name != "postgresql":
            return 0
        return self._terminate("application_name LIKE %(all)s", f"batchrun:{self.run[:8]}:{self.epoch}:{worker}:%", "")

    def _terminate(self, where: str, every: str, mine: str, pooled: str = "") -> int:
        """pooled: what else must hold behind a pooler, where a session may bear our name and serve somebody else."""
        statement = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity AS session WHERE datname = current_database() "
            f"AND usename = current_user AND pid <> pg_backend_pid() AND {where}"
        )
        with self.writing() as connection:
            if is_pooled(connection):
                statement += f" AND {self._holds_a_mark()} {pooled}"
            return int(connection.exec_driver_sql(statement, {"all": every, "mine": mine}).scalar_one())

    def _holds_a_mark(self) -> str:
        """Is the session in a transaction that took a mark? Only a worker's is, and none that lies idle in a pool."""
        named = self.engine.dialect.identifier_preparer.format_table
        names = [named(table).replace("'", "''") for table in (self.tables.chunk, self.tables.item)]
        tables = ", ".join(f"'{name}'::regclass" for name in names)
        return (
            "EXISTS (SELECT FROM pg_locks AS held WHERE held.pid = session.pid AND held.granted "
            f"AND held.mode = 'RowExclusiveLock' AND held.relation IN ({tables}))"
        )

    def adopt(self, *, cut_off: str) -> list[OpenChunk]:
        """Put everything that is open under the new epoch; waits for zombies, so what it returns is the truth.

        cut_off: the state of items that were under way outside the database: "unknown", or "retry" where the job
        says that it is idempotent.
        """
        chunk, item, payload = self.tables.chunk, self.tables.item, self.tables.payload
        # Only an open chunk has its items still. There are a handful of these, and of chunks perhaps a million.
        has_items = chunk.c.no.in_(select(payload.c.no).where(payload.c.run == self.run))
        left = (chunk.c.run == self.run, has_items, chunk.c.open)
        with self.writing() as connection:
            connection.execute(update(chunk).where(*left).values(epoch=self.epoch))
            connection.execute(update(item).where(item.c.run == self.run, item.c.state == "retry").values(epoch=self.epoch))
            connection.execute(
                update(item)
                .where(item.c.run == self.run, item.c.state == "running")
                .values(epoch=self.epoch, **_cut_off(cut_off))
            )
            rows = connection.execute(
                select(chunk.c.no, chunk.c.pos, chunk.c.size, chunk.c.deaths).where(*left).order_by(chunk.c.no)
            ).all()
        return [OpenChunk(row.no, row.pos, row.size, row.deaths) for row in rows]

    # While it runs.

    def cut(
        self, no: int, items: Sequence[str], sizes: Sequence[int], ends: Sequence[tuple[str, str]], frontiers: Sequence[Any]
    ) -> None:
        """Record new chunks, from number ``no`` on, with the source's frontier behind them.

        items: each chunk's payload as text. ends: its first and last item, for people. frontiers: where the source
        stands behind each. Raises Fenced. Safe to call
        again after Busy: when the first try landed after all, nothing is written twice.
        """
        run, count, behind = self.tables.run, len(items), [dump(frontier) for frontier in frontiers]
        with self.writing() as connection:
            moved = connection.execute(
                update(run)
                .where(run.c.id == self.run, run.c.epoch == self.epoch, run.c.next_no == no)
                .values(next_no=no + count, cursor=behind[-1], heartbeat=now_expression(self.engine.dialect.name))
            )
            if moved.rowcount != 1:
                self._landed(connection, no + count)
                return
            rows = [
                {"run": self.run, "no": no + i, "epoch": self.epoch, "size": sizes[i], "pos": 0, "skipped": 0, "deaths": 0,
                 "first": ends[i][0], "last": ends[i][1], "frontier": behind[i],
                 "open": True}
                for i in range(count)
            ]  # fmt: skip
            connection.execute(insert(self.tables.chunk), rows)
            connection.execute(
                insert(self.tables.payload), [{"run": self.run, "no": no + i, "items": items[i]} for i in range(count)]
            )

    def _landed(self, connection: Connection, expected: int) -> None:
        run = self.tables.run
        row = connection.execute(select(run.c.epoch, run.c.next_no).where(run.c.id == self.run)).first()
        if row is None or row.epoch != self.epoch or row.next_no != expected:
            raise self._fenced(connection)

    def seal(self) -> None:
        """The source is exhausted: a resume need not read it again."""
        self._update_run(sealed=True)

    def beat(self, insight: str = "") -> None:
        """Say that the owner lives. insight: where the run's time went so far, as JSON; "" = what is there stays."""
        self._update_run(insight, heartbeat=now_expression(self.engine.dialect.name))

    def note(self, text: str) -> None:
        """What there is to say of the run while it goes on, such as why it is slow."""
        self._update_run(note=text)

    def tune(self, asked: requests.Request, workers: int) -> None:
        """What was asked for holds from now on. Raises Fenced."""
        with self.writing() as connection:
            if not requests.tune(connection, self.tables, self.run, self.epoch, asked, workers):
                raise self._fenced(connection)

    def _update_run(self, insight: str = "", **values: Any) -> None:
        with self.writing() as connection:
            self._update_in(connection, insight, **values)

    def _update_in(self, connection: Connection, insight: str = "", **values: Any) -> None:
        run = self.tables.run
        found = connection.execute(update(run).where(run.c.id == self.run, run.c.epoch == self.epoch).values(**values))
        if found.rowcount != 1:
            raise self._fenced(connection)
        if insight:
            write_insight(connection, self.tables, self.run, self.epoch, insight)

    def end_chunks(self, numbers: Sequence[int]) -> None:
        """Close chunks that are through and drop their payloads, in one transaction."""
        chunk, payload = self.tables.chunk, self.tables.payload
        with self.writing() as connection:
            connection.execute(
                update(chunk)
                .where(chunk.c.run == self.run, chunk.c.no.in_(numbers), chunk.c.epoch == self.epoch, chunk.c.pos == chunk.c.size)
                .values(open=False)
            )
            done = select(chunk.c.no).where(chunk.c.run == self.run, chunk.c.no.in_(numbers), ~chunk.c.open)
            connection.execute(delete(payload).where(payload.c.run == self.run, payload.c.no.in_(done)))

    def bill(self, no: int, payload_of: Any, error: ItemError, limit: int) -> Billed:
        """Count a death against the item at the chunk's position; the ``limit``-th quarantines it and moves on.

        payload_of: pos -> the item as text. Raises Busy while a zombie of the dead worker still holds the row.
        """
        chunk = self.tables.chunk
        mine = (chunk.c.run == self.run, chunk.c.no == no, chunk.c.epoch == self.epoch)
        with self.writing() as connection:
            row = connection.execute(select(chunk.c.pos, chunk.c.size, chunk.c.deaths).where(*mine).with_for_update()).first()
            if row is None:
                raise self._fenced(connection)
            if row.pos >= row.size:
                return Billed(row.pos, 0)
            if row.deaths + 1 < limit:
                connection.execute(update(chunk).where(*mine, chunk.c.pos == row.pos).values(deaths=row.deaths + 1))
                return Billed(row.pos, row.deaths + 1)
            connection.execute(update(chunk).where(*mine, chunk.c.pos == row.pos).values(deaths=0, pos=row.pos + 1))
            connection.execute(
                insert(self.tables.item).values(
                    run=self.run, no=no, pos=row.pos, epoch=self.epoch, payload=payload_of(row.pos), state="quarantined",
                    attempts=1, base=0, deaths=limit, **_explained(error),
                )
            )  # fmt: skip
            return Billed(row.pos, limit, quarantined=True)

    def bill_retry(self, spot: Spot, error: ItemError, limit: int) -> Billed:
        """The same for an item that has a row of its own."""
        item = self.tables.item
        mine = (item.c.run == self.run, item.c.no == spot.no, item.c.pos == spot.pos, item.c.epoch == self.epoch)
        with self.writing() as connection:
            row = connection.execute(select(item.c.state, item.c.deaths, item.c.attempts).where(*mine).with_for_update()).first()
            if row is None or row.state != "retry" or row.attempts != spot.attempt - 1:
                return Billed(spot.pos, 0)
            over = row.deaths + 1 >= limit
            values = {"state": "quarantined", **_explained(error)} if over else {}
            connection.execute(update(item).where(*mine).values(deaths=row.deaths + 1, **values))
            return Billed(spot.pos, row.deaths + 1, quarantined=over)

    def cut_off(self, spot: Spot, state: str) -> None:
        """transaction="none": the worker died while this item was under way."""
        item = self.tables.item
        mine = (item.c.run == self.run, item.c.no == spot.no, item.c.pos == spot.pos, item.c.epoch == self.epoch)
        with self.writing() as connection:
            connection.execute(update(item).where(*mine, item.c.state == "running").values(**_cut_off(state)))

    def known(self, no: int, since: int) -> tuple[int, dict[int, Fate]]:
        """How far the chunk is settled, once nobody holds its row any more, and what has a row of its own from ``since`` on.

        Raises Busy while a zombie holds the chunk's row.
        """
        chunk, item = self.tables.chunk, self.tables.item
        mine = (chunk.c.run == self.run, chunk.c.no == no, chunk.c.epoch == self.epoch)
        with self.writing() as connection:
            pos = connection.execute(select(chunk.c.pos).where(*mine).with_for_update()).scalar()
            if pos is None:
                raise self._fenced(connection)
            where = (item.c.run == self.run, item.c.no == no, item.c.pos >= since)
            rows = connection.execute(self._fates().where(*where)).all()
        return int(pos), {row.pos: _fate(row) for row in rows}

    def known_retry(self, spot: Spot) -> tuple[int, dict[int, Fate]]:
        """The same for an item that has a row of its own: it is settled when that row is past this attempt."""
        item = self.tables.item
        mine = (item.c.run == self.run, item.c.no == spot.no, item.c.pos == spot.pos, item.c.epoch == self.epoch)
        with self.writing() as connection:
            row = connection.execute(self._fates().where(*mine).with_for_update()).first()
            if row is None:
                raise self._fenced(connection)
        if row.state == "retry" and row.attempts == spot.attempt - 1:
            return spot.pos, {}
        return spot.pos + 1, {} if row.state == "done" else {spot.pos: _fate(row)}

    def _fates(self) -> Select[Any]:
        item = self.tables.item
        after = (item.c.due - now_expression(self.engine.dialect.name)).label("after")
        return select(item.c.pos, item.c.state, item.c.attempts, item.c["class"], item.c.sqlstate, item.c.message, after)

    def fail_current(self, spot: Spot, payload: str, error: ItemError, after_s: float | None) -> bool:
        """Fail the item at ``spot`` in the worker's stead, which was killed for overrunning. False when it had settled.

        after_s: None = it is failed; else it is tried again after so many seconds.
        """
        chunk, item = self.tables.chunk, self.tables.item
        now = now_expression(self.engine.dialect.name)
        values = {**_explained(error), "state": "failed" if after_s is None else "retry", "attempts": spot.attempt}
        values["due"] = None if after_s is None else now + after_s
        with self.writing() as connection:
            if spot.retry:
                own = (item.c.run == self.run, item.c.no == spot.no, item.c.pos == spot.pos, item.c.epoch == self.epoch)
                waiting = (item.c.state == "retry", item.c.attempts == spot.attempt - 1)
                return connection.execute(update(item).where(*own, *waiting).values(**values)).rowcount == 1
            mine = (chunk.c.run == self.run, chunk.c.no == spot.no, chunk.c.epoch == self.epoch, chunk.c.pos == spot.pos)
            moved = connection.execute(update(chunk).where(*mine).values(pos=spot.pos + 1, deaths=0))
            if moved.rowcount == 1:
                place = {"run": self.run, "no": spot.no, "pos": spot.pos, "epoch": self.epoch}
                connection.execute(insert(item).values(**place, payload=payload, base=0, deaths=0, **values))
            return moved.rowcount == 1

    def requeue(self, states: Sequence[str], wanted: Wanted | None = None) -> int:
        """``retry``: put items in these states back. Their attempts so far no longer count. Returns how many."""
        item = self.tables.item
        with self.writing() as connection:
            of_class = chosen(connection, item, self.run, wanted or Wanted())
            found = connection.execute(
                update(item)
                .where(item.c.run == self.run, item.c.state.in_(bindparam("states", expanding=True)), *of_class)
                .values(state="retry", base=item.c.attempts, deaths=0, due=0.0, epoch=self.epoch),
                {"states": list(states)},
            )
            return int(found.rowcount)

    def accept(self, fingerprint: str, options: str) -> None:
        """From now on the run is of this code, these parameters and this input."""
        self._update_run(fingerprint=fingerprint, options=options)

    def finish(self, status: RunStatus, note: str, elapsed_s: float, insight: str = "") -> None:
        """Write how the run ended. Raises Fenced."""
        now = now_expression(self.engine.dialect.name)
        elapsed = self.tables.run.c.elapsed + elapsed_s
        with self.writing() as connection:
            self._update_in(connection, insight, status=status.value, note=note, ended=now, heartbeat=now, elapsed=elapsed)
            requests.ended(connection, self.tables, self.run, status)


def _fate(row: Any) -> Fate:
    error = ItemError(row._mapping["class"], row.message, row.sqlstate)
    return Fate(row.state, error, max(0.0, float(row.after or 0.0)))


def _cut_off(state: str) -> dict[str, Any]:
    if state == "retry":
        return {"state": "retry", "due": 0.0}
    said = "The item was under way when its process was cut off; what it did outside the database is not known."
    return {"state": state, "class": "batchrun.CutOff", "message": said}


def _explained(error: ItemError) -> dict[str, Any]:
    return {"class": error.type, "sqlstate": error.sqlstate, "message": error.message}
