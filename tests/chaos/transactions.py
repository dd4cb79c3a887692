"""Tasks that do what they like with their transaction: atomic or reported, and the next item is clean."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tests.chaos.controls import NaivePool
from tests.chaos.scenario import scenario
from tests.chaos.world import World, carried_out
from tests.support import oracle
from tests.support.databases import engine_for

SETTINGS = "'work_mem', 'default_transaction_isolation'"
CLEAN = {
    "a setting": f"SELECT bool_and(setting = reset_val) FROM pg_settings WHERE name IN ({SETTINGS})",
    "a temporary table": "SELECT to_regclass('pg_temp.left_behind') IS NULL",
    "an advisory lock": "SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
}
"""What every item looks at before its work; true where nothing is left of the one before."""


def look_around(session: Session) -> None:
    """Raises AssertionError, which fails the item, for what another item left on this connection."""
    found = [what for what, statement in CLEAN.items() if not session.execute(text(statement)).scalar_one()]
    assert not found, f"left by another item: {', '.join(found)}"


def commits_in_the_middle(session: Session, item: int) -> None:
    session.commit()
    oracle.work(session, item)
    session.commit()
    session.execute(text("SELECT 1"))
    session.commit()


def commits_and_raises(session: Session, item: int) -> None:
    oracle.work(session, item)
    session.commit()
    raise ValueError("after the commit")


def commits_and_rolls_back(session: Session, item: int) -> None:
    oracle.work(session, item)
    session.commit()
    session.execute(text("UPDATE accounts SET n = n + 1 WHERE id = :item"), {"item": item})
    session.rollback()


def rolls_back_and_works(session: Session, item: int) -> None:
    oracle.work(session, item)
    session.rollback()
    oracle.work(session, item)


def closes(session: Session, item: int) -> None:
    oracle.work(session, item)
    session.commit()
    session.close()


def commits_as_text(session: Session, item: int) -> None:
    oracle.work(session, item)
    session.execute(text("COMMIT"))


def commits_on_the_driver(session: Session, item: int) -> None:
    """psycopg2's own commit() does nothing in autocommit, so there it is a cursor's COMMIT."""
    oracle.work(session, item)
    raw: Any = session.connection().connection.dbapi_connection
    if type(raw).__module__.startswith("psycopg2"):
        with raw.cursor() as cursor:
            cursor.execute("COMMIT")
    else:
        raw.commit()


def commits_on_the_driver_and_raises(session: Session, item: int) -> None:
    commits_on_the_driver(session, item)
    raise ValueError("after the driver's commit")


def swallows_an_error(session: Session, item: int) -> None:
    oracle.work(session, item)
    with contextlib.suppress(DBAPIError):
        session.execute(text("SELECT * FROM there_is_no_such_table"))


def leaves_a_setting(session: Session, item: int) -> None:
    session.execute(text("SET work_mem = '7MB'"))
    oracle.work(session, item)


def leaves_a_level(session: Session, item: int) -> None:
    session.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
    oracle.work(session, item)


def leaves_a_table(session: Session, item: int) -> None:
    session.execute(text("CREATE TEMP TABLE left_behind (a int)"))
    oracle.work(session, item)


def leaves_a_lock(session: Session, item: int) -> None:
    session.execute(text("SELECT pg_advisory_lock(42 + :item)"), {"item": item})
    oracle.work(session, item)


Misdeed = Callable[[Session, int], None]

MISDEEDS: dict[Misdeed, str] = {
    commits_in_the_middle: "",
    rolls_back_and_works: "",
    closes: "",
    leaves_a_setting: "",
    leaves_a_level: "",
    leaves_a_table: "",
    leaves_a_lock: "",
    commits_and_raises: "ValueError",
    commits_and_rolls_back: "SplitTransaction",
    commits_as_text: "TransactionControl",
    swallows_an_error: "SwallowedError",
    commits_on_the_driver: "PartialCommit",
    commits_on_the_driver_and_raises: "PartialCommit",
}
"""What a task does -> how its item fails; "" = it is done, once."""


@dataclass(frozen=True)
class Misbehaves:
    """The oracle's task, but for the guilty."""

    guilty: dict[int, Misdeed]

    def __call__(self, session: Session, item: int, ctx: Any) -> None:
        look_around(session)
        if misdeed := self.guilty.get(item):
            misdeed(session, item)
        else:
            oracle.work(session, item, ctx.attempt)


@scenario(
    "a task plays with its transaction",
    dose=1,
    bound="atomic or reported; the next item is clean",
    databases=("postgresql", "psycopg3"),
)
def transactions(world: World) -> None:
    """Every misdeed, so often, in any order; the item behind each runs on the same connection."""
    misdeeds = list(MISDEEDS) * world.strikes
    world.chance.shuffle(misdeeds)
    items = world.accounts(2 * len(misdeeds))
    task = Misbehaves(dict(zip(items[::2], misdeeds, strict=True)))
    run = carried_out(world, task, items, workers=1, start_method="fork")
    types = {one.item: one.error.type.rpartition(".")[2] for one in run.outcomes if one.error}
    assert types == {item: MISDEEDS[misdeed] for item, misdeed in task.guilty.items() if MISDEEDS[misdeed]}
    partly = [item for item, kind in types.items() if kind == "PartialCommit"]
    ledger = world.judge(items, failed=len(types), partly=partly)
    assert all("(partial)" in ledger.messages[item] for item in partly)
    world.struck("misdeeds", len(misdeeds))


def naive_misdeed(url: str, item: int) -> None:
    """By hand: one error is swallowed, and another comes after the commit, so that the item is tried once more."""
    with Session(engine_for(url)) as session:
        if item % 10 == 3:
            swallows_an_error(session, item)
        elif item % 10 == 7:
            commits_and_raises(session, item)
        else:
            oracle.work(session, item)
        session.commit()


@transactions.control
def _(world: World) -> str:
    with NaivePool(world, naive_misdeed) as pool:
        return pool.outcome()
