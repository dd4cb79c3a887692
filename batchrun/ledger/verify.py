"""``batchrun verify``: is a run's ledger in order, and does it cover the keys that its source has?

    check_ledger   one snapshot of the tables: sums, numbers, positions, payloads, rows       ok or wrong
    check_keys     a keyset's keys, counted by the database between the frontiers of its chunks    ok, changed or wrong

What the keys prove: the chunks' ranges follow one another without gap or overlap, each begins behind the key where the one
before it ended, and each holds now as many keys as the chunk had items. Keys inserted, deleted or moved out of the query
since cannot be told apart from each other by a count; they are reported as changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, and_, case, exists, func, or_, select

from batchrun.codec import load, load_items
from batchrun.ledger.reading import StoredRun
from batchrun.ledger.schema import Tables
from batchrun.runs import FINISHED, RunStatus
from batchrun.sources.keysets import Keyset

OK, WRONG, CHANGED, SKIPPED = "ok", "WRONG", "changed", "not checked"

_STATES = ("retry", "running", "done", "failed", "skipped", "quarantined", "unknown")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. status: OK, WRONG, CHANGED (the data moved on since) or SKIPPED."""

    name: str
    status: str
    text: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What ``verify`` found of one run."""

    run: str
    job: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return all(check.status != WRONG for check in self.checks)


@dataclass(frozen=True, slots=True)
class _Facts:
    """Sums over a run's chunks and item rows."""

    chunks: int
    lowest: int
    highest: int
    planned: int
    settled: int
    skipped: int
    open: int
    states: dict[str, int]

    def of(self, state: str) -> int:
        return self.states.get(state, 0)

    @property
    def waiting(self) -> int:
        return self.of("retry") + self.of("running")


def check_ledger(engine: Engine, tables: Tables, stored: StoredRun) -> list[Check]:
    """Look at everything the ledger says of a run, in one snapshot; a run that is going on may be looked at as well."""
    with engine.connect() as bare:
        level = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
        connection = bare.execution_options(**level)
        row = connection.execute(select(tables.run).where(tables.run.c.id == stored.id)).one()
        facts = _facts(connection, tables, stored.id)
        checks = _Checks(connection, tables, stored.id, facts)
        return [
            checks.counts(),
            checks.numbers(row.next_no),
            checks.positions(),
            checks.payloads(),
            checks.rows(),
            checks.ending(RunStatus(row.status), row.sealed),
        ]


def _facts(connection: Connection, tables: Tables, run: str) -> _Facts:
    chunk, item = tables.chunk, tables.item

    def total(column: Any) -> Any:
        return func.coalesce(func.sum(column), 0)

    sums = select(
        func.count(), func.coalesce(func.min(chunk.c.no), 0), func.coalesce(func.max(chunk.c.no), -1), total(chunk.c.size),
        total(chunk.c.pos), total(chunk.c.skipped), total(case((chunk.c.open, 1), else_=0)),
    ).where(chunk.c.run == run)  # fmt: skip
    found = [int(value) for value in connection.execute(sums).one()]
    states = connection.execute(select(item.c.state, func.count()).where(item.c.run == run).group_by(item.c.state)).all()
    chunks, lowest, highest, planned, settled, skipped, is_open = found
    by_state = {str(state): int(count) for state, count in states}
    return _Facts(chunks, lowest, highest, planned, settled, skipped, is_open, by_state)


class _Checks:
    """The checks of one run, over one connection."""

    def __init__(self, connection: Connection, tables: Tables, run: str, facts: _Facts) -> None:
        self._connection, self._tables, self._run, self._facts = connection, tables, run, facts

    def counts(self) -> Check:
        """Planned = done + failed + skipped + quarantined + unknown + pending, each of them counted by itself."""
        facts, of = self._facts, self._facts.of
        skipped, pending = facts.skipped + of("skipped"), facts.planned - facts.settled + facts.waiting
        done = facts.settled - facts.skipped - sum(facts.states.values()) + of("done")
        bad = of("failed") + skipped + of("quarantined") + of("unknown")
        text = (
            f"planned {facts.planned:,} = done {done:,} + failed {of('failed'):,} + skipped {skipped:,} + "
            f"quarantined {of('quarantined'):,} + unknown {of('unknown'):,} + pending {pending:,}"
        )
        strange = [state for state in facts.states if state not in _STATES]
        if strange:
            text += f"; rows in unknown states: {', '.join(strange)}"
        sound = done >= 0 and pending >= 0 and facts.planned == done + bad + pending and not strange
        return _check("counts", sound, text)

    def numbers(self, next_no: int) -> Check:
        """The chunks are numbered from 0 on, without a gap; the primary key forbids that two have one number."""
        facts, chunk = self._facts, self._tables.chunk
        other = chunk.alias()
        after = exists().where(other.c.run == self._run, other.c.no == chunk.c.no + 1)
        gap = self._scalar(select(func.min(chunk.c.no) + 1).where(chunk.c.run == self._run, chunk.c.no < facts.highest, ~after))
        text = f"{facts.chunks:,} chunks, numbered {facts.lowest} to {facts.highest}; the next is {next_no}"
        if facts.lowest != 0 or gap is not None:
            return Check("numbers", WRONG, f"{text}; there is no chunk {0 if facts.lowest else gap}")
        return _check("numbers", facts.chunks == next_no == facts.highest + 1, text)

    def positions(self) -> Check:
        """Every position lies within its chunk, and closed chunks are through."""
        chunk = self._tables.chunk.c
        wrong = or_(
            chunk.size < 1, chunk.pos < 0, chunk.pos > chunk.size, chunk.skipped < 0, chunk.skipped > chunk.pos,
            and_(~chunk.open, chunk.pos < chunk.size),
        )  # fmt: skip
        bad = self._numbers(select(chunk.no).where(chunk.run == self._run, wrong))
        text = f"{self._facts.settled:,} of {self._facts.planned:,} items settled, {self._facts.open:,} chunks open"
        return _listed("positions", text, bad, "positions that cannot be, in chunks")

    def payloads(self) -> Check:
        """An open chunk has its items, all of them; a closed one has none."""
        chunk, payload = self._tables.chunk.c, self._tables.payload.c
        has = exists().where(payload.run == chunk.run, payload.no == chunk.no)
        bad = self._numbers(select(chunk.no).where(chunk.run == self._run, chunk.open, ~has))
        kept = exists().where(chunk.run == payload.run, chunk.no == payload.no, chunk.open)
        bad += self._numbers(select(payload.no).where(payload.run == self._run, ~kept))
        both = select(chunk.no, chunk.size, payload["items"]).where(
            chunk.run == self._run, chunk.open, payload.run == chunk.run, payload.no == chunk.no
        )
        items = 0
        for no, size, text in self._connection.execute(both):
            items += size
            bad += [] if _length(text) == size else [no]
        return _listed("payloads", f"{self._facts.open:,} open chunks have their {items:,} items", bad, "not so in chunks")

    def rows(self) -> Check:
        """The row of an item stands in a chunk, before its position; and no more of them than the chunk has settled."""
        chunk, item = self._tables.chunk.c, self._tables.item.c
        within = exists().where(chunk.run == item.run, chunk.no == item.no, item.pos >= 0, item.pos < chunk.pos)
        bad = self._numbers(select(item.no).where(item.run == self._run, ~within).distinct())
        own = select(func.count()).where(item.run == chunk.run, item.no == chunk.no).scalar_subquery()
        bad += self._numbers(select(chunk.no).where(chunk.run == self._run, chunk.skipped + own > chunk.pos))
        return _listed("rows", f"{sum(self._facts.states.values()):,} items with a row of their own", bad, "misplaced in chunks")

    def ending(self, status: RunStatus, sealed: bool) -> Check:
        """A run that ended has nothing open, and its status says how its items ended."""
        facts = self._facts
        text = f"status {status.value}, source {'exhausted' if sealed else 'not exhausted'}"
        if status not in FINISHED or status is RunStatus.CANCELLED:
            return Check("ending", OK, text)
        bad = facts.of("failed") + facts.of("quarantined") + facts.of("unknown")
        left = facts.planned - facts.settled + facts.waiting
        sound = sealed and not left and not facts.open and (status is RunStatus.FAILED) == (bad > 0)
        told = "" if sound else f", but {left:,} pending, {facts.open:,} open chunks, {bad:,} items that went wrong"
        return _check("ending", sound, text + told)

    def _numbers(self, query: Any) -> list[int]:
        return [int(no) for no in self._connection.execute(query.limit(6)).scalars()]

    def _scalar(self, query: Any) -> int | None:
        found = self._connection.execute(query).scalar()
        return None if found is None else int(found)


def _check(name: str, sound: bool, text: str) -> Check:
    return Check(name, OK if sound else WRONG, text)


def _listed(name: str, text: str, bad: Sequence[int], what: str) -> Check:
    if not bad:
        return Check(name, OK, text)
    shown = ", ".join(str(no) for no in sorted(set(bad))[:5])
    return Check(name, WRONG, f"{text}; {what} {shown}{', ...' if len(set(bad)) > 5 else ''}")


def _length(text: str) -> int:
    try:
        return len(load_items(text))
    except Exception:  # whatever somebody wrote there
        return -1


# ------------------------------------------------------------------------------------------------------- keys
def check_keys(source: Keyset, engine: Engine, ledger: Engine, tables: Tables, stored: StoredRun) -> Check:
    """Count the source's keys between the chunks' frontiers, a short query for each chunk.

    engine: reads the source. ledger: reads the chunks.
    """
    chunk = tables.chunk.c
    with ledger.connect() as connection:
        rows = connection.execute(
            select(chunk.no, chunk.size, chunk.frontier).where(chunk.run == stored.id).order_by(chunk.no)
        ).all()
    planned = sum(row.size for row in rows)
    ends: list[Any] = [None if row.frontier is None else load(row.frontier) for row in rows]
    if rows and (None in ends or ends[-1] != stored.cursor):
        return Check("keys", WRONG, f"the last of {len(rows):,} chunks does not end where the source's frontier is recorded")
    if any(not isinstance(end, list) or len(end) != source.width for end in ends):
        return Check("keys", WRONG, f"the chunks' keys have not {source.width} columns")
    fewer = more = changed = 0
    for size, found in zip((row.size for row in rows), _found(source, engine, ends), strict=True):
        changed += found != size
        fewer += max(0, size - found)
        more += max(0, found - size)
    is_whole = stored.sealed and stored.options.get("limit") is None
    behind = source.count(engine, stored.cursor, stored.bound) if is_whole else 0
    return _judged(stored, len(rows), planned, changed, fewer, more, behind, is_whole)


def _found(source: Keyset, engine: Engine, ends: Sequence[Any]) -> Iterator[int]:
    after = None
    for end in ends:
        yield source.count(engine, after, end)
        after = end


def _judged(
    stored: StoredRun, chunks: int, planned: int, changed: int, fewer: int, more: int, behind: int, is_whole: bool
) -> Check:
    text = f"{planned:,} keys covered in {chunks:,} chunks"
    short = max(0, (stored.total or 0) - planned) if is_whole else 0
    if short and more + behind:
        return Check(
            "keys", WRONG,
            f"{text}; but {stored.total:,} were there when it opened, and {more + behind:,} that are there belong to no item",
        )  # fmt: skip
    told = [f"{fewer:,} are no longer in the query"] if fewer else []
    told += [f"{more + behind:,} came since"] if more + behind else []
    if told:
        return Check("keys", CHANGED, f"{text}; of their ranges {changed:,} changed since they were cut: {', '.join(told)}")
    whole = ", none left up to the bound" if is_whole else ""
    return Check("keys", OK, f"{text}: each range holds as many keys as its chunk had items{whole}")
