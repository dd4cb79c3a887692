"""What runs in a worker, the same for every peer: one item in a Session and a transaction, and the trouble in it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from sqlalchemy import Engine, create_engine, insert, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.faults.cases import Case

ITEM_S = 0.005
ENGINE: Engine | None = None
"""This process's own. In the fault "fork" it is the parent's, and a forked child inherits it."""


class Base(DeclarativeBase):
    """The tables of the oracle: without a unique key over an item's effect, so that doubling shows."""


class Account(Base):
    """A row an item; its task adds one to ``n``."""

    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(default=0)


class Effect(Base):
    """A row for each time an item's work was committed."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[int]


class TwoArguments(Exception):
    """Raised with two, pickled with one: it cannot be made again on the other side."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


def connect(case: Case) -> None:
    """Make this process's engine, as SQLAlchemy's manual recommends it for a worker that must outlive the server."""
    global ENGINE
    ENGINE = create_engine(case.url, pool_pre_ping=True)


def initialize(case: Case) -> None:
    """The initializer that every peer runs in a new worker."""
    if case.fault == "initializer":
        case.happens_once()
        raise RuntimeError("the initializer raises")
    connect(case)


def task(case: Case, item: int) -> object:
    """One item for the peers: work and commit."""
    if ENGINE is None:  # after the fault "fork", in a worker that was not forked
        connect(case)
    with Session(ENGINE) as session:
        work(case, session, item)
        session.commit()
    return result(case, item)


def work(case: Case, session: Session, item: int) -> None:
    """The effect of an item in the session's transaction, which is still open when the fault happens."""
    present(case)
    session.execute(update(Account).where(Account.id == item).values(n=Account.n + 1))
    session.execute(insert(Effect).values(item=item))
    time.sleep(ITEM_S)
    if item == case.guilty:
        trouble(case)


def result(case: Case, item: int) -> object:
    """What the task returns."""
    if case.fault == "result" and item == case.guilty:
        case.happens_once()
        return threading.Lock()
    return item


def trouble(case: Case) -> None:
    """The faults that happen within an item. Two happen once, the others whenever the item is run."""
    is_first = case.fault in _IN_TASK and case.happens_once()
    if case.fault == "kill" and is_first:
        os.kill(os.getpid(), signal.SIGKILL)
    elif case.fault == "kill-all" and is_first:
        kill_all(case)
    elif case.fault == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    elif case.fault == "exit":
        os._exit(0)
    elif case.fault == "sys-exit":
        sys.exit()
    elif case.fault == "segfault":
        ctypes.string_at(0)
    elif case.fault == "exception":
        raise TwoArguments(7, "out of luck")
    elif case.fault == "hang":
        time.sleep(3600)


_IN_TASK = {"kill", "kill-all", "poison", "exit", "sys-exit", "segfault", "exception", "hang"}


def present(case: Case) -> None:
    """Write this worker's name down, so that another can find it to kill it."""
    with contextlib.suppress(FileExistsError):
        (Path(case.folder) / f"worker-{os.getpid()}").touch(exist_ok=False)


def kill_all(case: Case) -> None:
    """SIGKILL to every worker, this one last."""
    others = {int(path.name.partition("-")[2]) for path in Path(case.folder).glob("worker-*")} - {os.getpid()}
    for pid in others:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
