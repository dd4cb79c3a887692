"""The tasks, the same code for every peer: ``task(session, item)``, or ``task(item)`` where no database is asked for.

What a peer adds is ``committed`` or ``read``: a Session on this process's own engine for each item. batchrun gets the
tasks as they are.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.speed.trial import Trial, arrive

WAIT_S = 0.02
SLOW_EVERY = 100
QUICK_S = 0.0005
FOLDER = "BENCHMARK_FOLDER"
"""The environment variable with a trial's folder, for tasks that note something."""
ENGINE: Engine | None = None
TASK: Callable[..., Any] | None = None
"""Of this worker process."""


class Base(DeclarativeBase):
    """The one table of the benchmarks."""


class Account(Base):
    """A row of some width; half full pages, so that an UPDATE stays on its page for everybody."""

    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    owner: Mapped[str]
    balance: Mapped[int]
    note: Mapped[str]


# -------------------------------------------------------------------------------------------------- the tasks
def noop(item: int) -> None:
    """Nothing: what is left is dispatch."""


def echo(item: bytes) -> bytes:
    """1 KiB there, 1 KiB back."""
    return item


def wait(item: int) -> None:
    """20 ms for an answer from elsewhere."""
    time.sleep(WAIT_S)


def wait_for_server(session: Session, item: int) -> None:
    """20 ms for an answer of the database."""
    session.execute(text("SELECT pg_sleep(0.02)"))


def mixed(item: int) -> None:
    """One item of a hundred is 1,000 times slower; which one of the hundred, changes. Notes when this worker was last busy."""
    time.sleep(QUICK_S * 1000 if is_slow(item) else QUICK_S)
    (Path(os.environ[FOLDER]) / f"ended-{os.getpid()}").write_text(str(time.monotonic()))


def is_slow(item: int) -> bool:
    block, place = divmod(item, SLOW_EVERY)
    return place == block * 37 % SLOW_EVERY


def orm_read(session: Session, key: int) -> None:
    """Read one object by its key."""
    account = session.get_one(Account, key)
    assert account.balance >= 0


def orm_write(session: Session, key: int) -> None:
    """Read one object by its key, and change it."""
    account = session.get_one(Account, key)
    account.balance += 1


def orm_write_batched(session: Session, keys: Sequence[int]) -> None:
    """The same change for a list of keys, in one statement."""
    session.execute(update(Account).where(Account.id.in_(keys)).values(balance=Account.balance + 1))


SELECT = "SELECT id, owner, balance, note FROM accounts WHERE id = {key}"
UPDATE = "UPDATE accounts SET balance = {balance} WHERE id = {key}"


def driver_write(session: Session, key: int) -> None:
    """The same as ``orm_write`` on the driver's own cursor, with no ORM and no Core."""
    driver_write_on(session.connection().connection.cursor(), key)


def driver_write_on(cursor: Any, key: int) -> None:
    cursor.execute("SELECT id, owner, balance, note FROM accounts WHERE id = %s", (key,))
    row = cursor.fetchone()
    cursor.execute("UPDATE accounts SET balance = %s WHERE id = %s", (row[2] + 1, key))
    cursor.close()


TASKS: dict[str, Callable[..., Any]] = {
    task.__name__: task
    for task in (noop, echo, wait, wait_for_server, mixed, orm_read, orm_write, orm_write_batched, driver_write)
}
NEEDS_NO_DATABASE = {"noop", "echo", "wait", "mixed"}
WRITING = {"orm_write", "orm_write_batched", "driver_write"}
"""Tasks that a peer commits; each adds one to the balance of its item's account."""


def items_of(trial: Trial) -> Sequence[Any]:
    """The items of a trial: keys from 1, or texts of 1 KiB."""
    if trial.task == "echo":
        return [f"{item:08d}".encode() * 128 for item in range(trial.items)]
    return range(1, trial.items + 1)


# ---------------------------------------------------------------------------------------- what a peer's user adds
def initialize(trial: Trial, session: int) -> None:
    """The initializer of every peer's worker: an engine of its own, then the barrier."""
    global ENGINE, TASK
    TASK = TASKS[trial.task]
    if trial.url:
        ENGINE = create_engine(trial.url)
    arrive(trial.folder, trial.workers, session, trial.postmaster)


def initializer(trial: Trial) -> Callable[[], None]:
    return functools.partial(initialize, trial, os.getsid(0))


def arrival(trial: Trial) -> Callable[[], None]:
    """The initializer of batchrun's worker, which has an engine already: the barrier alone."""
    return functools.partial(arrive, trial.folder, trial.workers, os.getsid(0), trial.postmaster)


def performed(trial: Trial) -> Callable[[Any], Any]:
    """What a peer maps over the items."""
    if not trial.url:
        return TASKS[trial.task]
    return committed if trial.task in WRITING else read


def committed(item: Any) -> None:
    """One item in a Session and a transaction of its own."""
    assert TASK is not None
    with Session(ENGINE) as session:
        TASK(session, item)
        session.commit()


def read(item: Any) -> None:
    """One item in a Session of its own, with nothing to commit."""
    assert TASK is not None
    with Session(ENGINE) as session:
        TASK(session, item)
