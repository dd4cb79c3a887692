"""The oracle: what the database itself says about exactly-once, whatever any report claims.

    task        +1 on accounts.n and a row in effects, in the item's own transaction
    verdict     what is in the data, without looking at the ledger      lost, doubled
    assert_exactly_once     data and ledger side by side: lost = 0, doubled = 0, done = applied both ways, counts add up

``accounts(id, n)`` and ``effects(item, worker, attempt)`` have no unique key over an item's effect, so doubling shows.
Everything is at module level, so that workers import it by name; this module imports little, since each start pays for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from os import getpid
from typing import TYPE_CHECKING

from sqlalchemy import Connection, ForeignKey, String, func, insert, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from batchrun.ledger.reading import Reading
from batchrun.ledger.schema import tables
from batchrun.runs import Counts
from tests.support.databases import engine_for

if TYPE_CHECKING:
    from batchrun import Context


class Base(DeclarativeBase):
    """The tables of the tests."""


class Account(Base):
    """One row an item; a task adds one to ``n``."""

    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(default=0)


class Effect(Base):
    """One row for each time a task's work was committed. worker: its process."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[int]
    worker: Mapped[int]
    attempt: Mapped[int]


class Label(Base):
    """For tasks that meet a unique key, or a foreign key that is checked at COMMIT."""

    __tablename__ = "labels"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), unique=True)
    account: Mapped[int | None] = mapped_column(ForeignKey("accounts.id", deferrable=True, initially="DEFERRED"))


# --------------------------------------------------------------------------------------------------- tables
FULL_TABLES = (
    "SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'batchrun_meta'"
)


def create(url: str, items: Iterable[int] = ()) -> str:
    """Make the tables, empty, with an account for each item; on PostgreSQL a ledger loses its runs. Returns the URL."""
    engine = engine_for(url)
    Base.metadata.create_all(engine)
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            names = connection.execute(text(FULL_TABLES)).scalar()
            connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))
    else:
        with engine.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(table.delete())
    if rows := [{"id": item, "n": 0} for item in items]:
        with engine.begin() as connection:
            connection.execute(insert(Account), rows)
    return url


# ---------------------------------------------------------------------------------------------------- tasks
def work(session: Session, item: int, attempt: int = 1) -> None:
    """The effect of one item, in the session's transaction."""
    session.execute(update(Account).where(Account.id == item).values(n=Account.n + 1))
    session.execute(insert(Effect).values(item=item, worker=getpid(), attempt=attempt))


def task(session: Session, item: int, ctx: Context) -> None:
    """The plain task."""
    work(session, item, ctx.attempt)


def batch(session: Session, items: Sequence[int], ctx: Context) -> None:
    """The plain task for batched=True."""
    for item in items:
        work(session, item, ctx.attempt)


# -------------------------------------------------------------------------------------------------- verdict
@dataclass(frozen=True)
class Verdict:
    """What the data says. times: item -> how often its effect was committed."""

    times: Counter[int]
    lost: set[int]
    doubled: set[int]
    torn: set[int] = field(default_factory=set)
    """Items whose two effects, the account and the row, are not there equally often: half a transaction."""

    @property
    def applied(self) -> set[int]:
        return set(self.times)

    @property
    def is_exact(self) -> bool:
        return not (self.lost or self.doubled or self.torn)


def verdict(url: str, items: Iterable[int], excused: Collection[int] = ()) -> Verdict:
    """Judge the data. excused: items that need not be applied, because something says that they failed."""
    with engine_for(url).connect() as connection:
        effects = Counter(connection.execute(select(Effect.item)).scalars())
        accounts = {row.id: row.n for row in connection.execute(select(Account.id, Account.n))}
    everything = set(items)
    times = Counter({item: max(accounts.get(item, 0), effects[item]) for item in everything | set(effects)})
    times = +times
    return Verdict(
        times,
        lost={item for item in everything if not times[item] and item not in excused},
        doubled={item for item, count in times.items() if count > 1},
        torn={item for item in everything if accounts.get(item, 0) != effects[item]},
    )


def applied(url: str) -> int:
    """How many effects are committed so far; -1 while the database cannot be asked."""
    with engine_for(url).connect() as connection:
        return int(connection.execute(select(func.count()).select_from(Effect)).scalar_one())


@dataclass(frozen=True)
class Books:
    """What the ledger says of each item. open_chunks, payloads: what a run that ended should not have."""

    states: dict[int, str]
    deaths: dict[int, int]
    attempts: dict[int, int]
    messages: dict[int, str]
    counts: Counts
    status: str
    open_chunks: int
    payloads: int

    def of(self, *states: str) -> set[int]:
        return {item for item, state in self.states.items() if state in states}


def run_id(url: str, name: str) -> str:
    """The id of a run, by its name."""
    return Reading(engine_for(url), tables()).find(name)


def books(url: str, run: str, items: Iterable[int]) -> Books:
    """Read a run's ledger. run: its id or name. items: in the order the source gave them."""
    engine, known, given = engine_for(url), tables(), list(items)
    reading = Reading(engine, known)
    run_id = reading.find(run)
    with engine.connect() as connection:
        chunks = connection.execute(
            select(known.chunk.c.no, known.chunk.c.size, known.chunk.c.pos, known.chunk.c.open)
            .where(known.chunk.c.run == run_id)
            .order_by(known.chunk.c.no)
        ).all()
        rows = connection.execute(select(known.item).where(known.item.c.run == run_id)).all()
        payloads = connection.execute(
            select(func.count()).select_from(known.payload).where(known.payload.c.run == run_id)
        ).scalar_one()
    starts = dict(zip((chunk.no for chunk in chunks), accumulate((chunk.size for chunk in chunks), initial=0), strict=False))
    states = {
        given[starts[chunk.no] + pos]: "done" if pos < chunk.pos else "pending" for chunk in chunks for pos in range(chunk.size)
    }
    exceptional = {given[starts[row.no] + row.pos]: row for row in rows}
    states.update({item: row.state for item, row in exceptional.items()})
    return Books(
        states,
        {item: row.deaths for item, row in exceptional.items()},
        {item: row.attempts for item, row in exceptional.items()},
        {item: row.message for item, row in exceptional.items()},
        reading.counts(run_id),
        reading.record(run_id).status.value,
        open_chunks=sum(bool(chunk.open) for chunk in chunks),
        payloads=int(payloads),
    )


def assert_exactly_once(
    url: str, run: str, items: Iterable[int], *, partly: Collection[int] = (), skipped: Collection[int] = ()
) -> Books:
    """Judge a run that ended. Returns what its ledger says.

    partly: items that committed behind the runner's back; the ledger must list them as failed, and the data may hold
    any of their work. skipped: items that raised Skip; of those at their first attempt the ledger keeps only the number.
    """
    given = list(items)
    ledger = books(url, run, given)
    ledger.states.update({item: "skipped" for item in skipped if ledger.states[item] == "done"})
    excused = ledger.of("failed", "skipped", "quarantined", "unknown")
    seen = verdict(url, given, excused)
    assert not seen.lost, f"lost: {sorted(seen.lost)}"
    assert not seen.doubled, f"doubled: {sorted(seen.doubled)}"
    assert not seen.torn - set(partly), f"half a transaction stands: {sorted(seen.torn)}"
    assert set(partly) <= ledger.of("failed"), "an item that committed by itself is not listed as failed"
    assert set(ledger.states) == set(given), "the ledger does not know every item"
    assert ledger.of("done") == seen.applied - set(partly), "done in the ledger and applied in the data differ"
    counts = ledger.counts
    assert counts.pending == 0
    assert counts.planned == len(given) == counts.settled
    for state in ("done", "failed", "skipped", "quarantined", "unknown"):
        assert getattr(counts, state) == len(ledger.of(state)), f"the count of {state} is wrong"
    assert ledger.open_chunks == ledger.payloads == 0, "a chunk is still open, or its payload is still there"
    assert ledger.status == ("failed" if ledger.of("failed", "quarantined", "unknown") else "done")
    return ledger


# ----------------------------------------------------------------------------------------------- the control
def naive_item(url: str, item: int) -> None:
    """What people write by hand: a Session, the work, a commit."""
    with Session(engine_for(url)) as session:
        work(session, item)
        session.commit()


def scalar(connection: Connection, statement: str) -> object:
    """One value of a statement."""
    return connection.execute(text(statement)).scalar()
