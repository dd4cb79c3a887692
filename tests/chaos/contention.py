"""Transactions that stand in each other's way: deadlocks, serialization failures, no connection left."""

from __future__ import annotations

import random
import time
from typing import Any

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.orm import Session

from tests.chaos.controls import NaivePool
from tests.chaos.scenario import scenario
from tests.chaos.world import World, administration, under_chaos
from tests.support import oracle
from tests.support.databases import engine_for

ROWS = 16
CROSSED = 4
"""So many of them are taken in random order."""

PARTS = 8
RETRIES = 7
ADD = text("UPDATE hot SET n = n + 1 WHERE id = :row")
SUM = text("SELECT sum(n) FROM hot WHERE id >= :low AND id < :high")


def make_rows(world: World) -> None:
    """A few rows that all items want, and a server that looks for deadlocks often, since each look that is due costs its wait."""
    name = make_url(world.url).database
    with administration(world) as execute:
        execute("CREATE TABLE IF NOT EXISTS hot (id int PRIMARY KEY, n int NOT NULL)")
        execute(f"INSERT INTO hot SELECT n, 0 FROM generate_series(0, {ROWS - 1}) AS n")
        execute(f"ALTER DATABASE {name} SET deadlock_timeout = '20ms'")
        execute(f"ALTER DATABASE {name} SET enable_seqscan = off")  # which would read, and so lock, all rows


def crossing(session: Session, item: int, rows: int, pause_s: float) -> None:
    """Two rows in random order."""
    one, other = random.Random(item).sample(range(rows), 2)
    session.execute(ADD, {"row": one})
    time.sleep(pause_s)  # work
    session.execute(ADD, {"row": other})


def deadlock_prone(session: Session, item: int, ctx: Any) -> None:
    """An item that takes two of the rows, in an order of its own."""
    oracle.work(session, item, ctx.attempt)
    crossing(session, item, CROSSED, 0.002)


def skewed(session: Session, item: int, ctx: Any) -> None:
    """An item that reads one part of the rows and writes to another, as the next one reads that: no order gives the same sums."""
    oracle.work(session, item, ctx.attempt)
    skew(session, item, PARTS, 0.001)


def skew(session: Session, item: int, parts: int, pause_s: float) -> None:
    part, size = random.Random(item).randrange(parts), ROWS // parts
    session.execute(SUM, {"low": part * size, "high": (part + 1) * size})
    time.sleep(pause_s)  # work
    session.execute(ADD, {"row": (part + 1) % parts * size})


def judge(world: World, items: range, an_item: int) -> None:
    """Everything is done, each with at most 8 attempts that count; and the rows have what the items added."""
    ledger = world.judge(items)
    assert ledger.counts.done == len(items)
    attempts = max(ledger.attempts.values(), default=1)
    assert attempts <= RETRIES + 1
    world.figures["most attempts"] = attempts
    with administration(world) as execute:
        assert execute("SELECT sum(n) FROM hot").scalar_one() == an_item * len(items)


@scenario(
    "deadlock-prone tasks: two rows in random order, retries=7", dose=1000, soak=50_000, bound="100 % done, at most 8 attempts"
)
def deadlocks(world: World) -> None:
    """Four workers over four rows."""
    items = world.accounts(world.strikes)
    make_rows(world)
    under_chaos(world, deadlock_prone, items, lambda _: None, workers=4, retries=RETRIES)
    judge(world, items, 2)
    with administration(world) as execute:
        found = execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").scalar_one()
    assert found, "there was no deadlock"
    world.struck("deadlocks", found)


@scenario(
    "SERIALIZABLE tasks",
    dose=1000,
    soak=50_000,
    bound="100 % done, at most 8 attempts",
    databases=("psycopg3",),
)
def serializable(world: World) -> None:
    """An engine with an isolation level; four workers read what the others write."""
    items = world.accounts(world.strikes)
    make_rows(world)
    engine = create_engine(engine_for(world.url).url, isolation_level="SERIALIZABLE")
    before = rolled_back(world)
    under_chaos(world, skewed, items, lambda _: None, database=engine, workers=4, retries=RETRIES)
    engine.dispose()
    judge(world, items, 1)
    found = rolled_back(world) - before
    assert found, "there was no conflict"
    world.struck("serialization failures", found)


def rolled_back(world: World) -> int:
    with administration(world) as execute:
        return int(execute("SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()").scalar_one())


def naive_crossing(url: str, item: int) -> None:
    with Session(engine_for(url)) as session:
        oracle.work(session, item)
        crossing(session, item, 2, 0.005)
        session.commit()


@deadlocks.control
def _(world: World) -> str:
    pool = NaivePool(world, naive_crossing, workers=8)
    make_rows(world)
    with pool:
        return pool.outcome()


def naive_skew(url: str, item: int) -> None:
    engine = engine_for(url).execution_options(isolation_level="SERIALIZABLE")
    with Session(engine) as session:
        oracle.work(session, item)
        skew(session, item, 2, 0.005)
        session.commit()


@serializable.control
def _(world: World) -> str:
    pool = NaivePool(world, naive_skew, workers=8)
    make_rows(world)
    with pool:
        return pool.outcome()
