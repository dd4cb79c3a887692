"""Tasks that end their process at a named point, and parents that do.

Everything is at module level, so that workers import it by name; it imports little, since each start pays for it.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.orm import Session

from tests.support import oracle

if TYPE_CHECKING:
    from batchrun import Context


def die() -> None:
    """As the out-of-memory killer would."""
    os.kill(os.getpid(), signal.SIGKILL)


def once(folder: Path, what: object) -> bool:
    """True for the first process that asks, ever."""
    try:
        (folder / f"once-{what}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def note(folder: Path, what: object) -> None:
    """Count that something happened."""
    with (folder / f"noted-{what}").open("a") as file:
        file.write("x")


def noted(folder: Path, what: object) -> int:
    """How often something happened."""
    path = folder / f"noted-{what}"
    return len(path.read_text()) if path.exists() else 0


# ------------------------------------------------------------------------------------------ a worker's crash points
def _before(session: Session, item: int) -> None:
    die()


def _after_flush(session: Session, item: int) -> None:
    session.add(oracle.Effect(item=item, worker=os.getpid(), attempt=1))
    session.flush()
    die()


def _after_commit(session: Session, item: int) -> None:
    event.listen(session, "after_commit", lambda _: die())


def _at_commit(session: Session, item: int) -> None:
    event.listen(session, "before_commit", lambda _: die())


def _after_own_commit(session: Session, item: int) -> None:
    oracle.work(session, item)
    session.commit()
    die()


class Deliberate(Exception):
    """What a task raises whose failure is to be recorded."""


def _after_rollback(session: Session, item: int) -> None:
    event.listen(session, "after_transaction_end", lambda *_: die())
    oracle.work(session, item)
    raise Deliberate


POINTS: dict[str, Callable[[Session, int], None]] = {
    "before the task's first statement": _before,
    "after a flush": _after_flush,
    "after the task's own commit()": _after_own_commit,
    "at COMMIT": _at_commit,
    "after COMMIT, before the report": _after_commit,
    "after ROLLBACK, before FAIL": _after_rollback,
}


class Crashing:
    """A task that crashes once, at one point of one item."""

    def __init__(self, point: str, item: int, folder: Path) -> None:
        self.point, self.item, self.folder = point, item, folder

    def __call__(self, session: Session, given: Any, ctx: Context) -> None:
        for item in given if isinstance(given, list) else [given]:
            if item == self.item:
                note(self.folder, "tries")
                if once(self.folder, "crash"):
                    POINTS[self.point](session, item)
            oracle.work(session, item, ctx.attempt)


# ------------------------------------------------------------------------------------------ poison
def _segfault() -> None:
    ctypes.string_at(0)


POISONS: dict[int, Callable[[], object]] = {
    5: lambda: os._exit(0),
    17: lambda: os._exit(1),
    23: die,
    31: _segfault,
    38: os.abort,
}
EXITS = 11
"""This item calls sys.exit, which Python makes an exception: the worker lives, the item is failed."""


class Poisonous:
    """A task some of whose items kill their worker: every time, or the first ``times``."""

    def __init__(self, folder: Path, poison: tuple[int, ...] = tuple(POISONS), times: int = 1000) -> None:
        self.folder, self.poison, self.times = folder, poison, times

    def __call__(self, session: Session, given: Any, ctx: Context) -> None:
        for item in given if isinstance(given, list) else [given]:
            oracle.work(session, item, ctx.attempt)
            if item in self.poison and noted(self.folder, item) < self.times:
                note(self.folder, item)
                POISONS[item]()
            if item == EXITS:
                sys.exit(3)


class KillsTheForkServer:
    """A task one of whose items kills, once, the process that made its worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, session: Session, item: int, ctx: Context) -> None:
        oracle.work(session, item, ctx.attempt)
        if item == 7 and once(self.folder, "server"):
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()


# ------------------------------------------------------------------------------------------ a parent's crash points
def slow(session: Session, given: Any, ctx: Context) -> None:
    """The plain task, a few milliseconds an item; takes an item or a list."""
    for item in given if isinstance(given, list) else [given]:
        oracle.work(session, item, ctx.attempt)
        time.sleep(0.003)  # work


Plain = Callable[..., Any]


def _nth(number: int) -> Callable[[], bool]:
    """A counter that says True at its ``number``-th call."""
    calls = itertools.count(1)
    return lambda: next(calls) == number


def _before_call(plain: Plain, is_now: Callable[[], bool]) -> Plain:
    def crashing(*arguments: Any) -> Any:
        if is_now():
            die()
        return plain(*arguments)

    return crashing


def _at_its_commit(plain: Plain, is_now: Callable[[], bool]) -> Plain:
    def crashing(owner: Any, *arguments: Any) -> Any:
        if is_now():
            event.listen(owner.engine, "commit", lambda _: die())
        return plain(owner, *arguments)

    return crashing


def _after_call(plain: Plain, is_now: Callable[[], bool]) -> Plain:
    def crashing(*arguments: Any) -> Any:
        found = plain(*arguments)
        if is_now():
            die()
        return found

    return crashing


PARENT_POINTS: dict[str, tuple[str, Callable[[Plain, Callable[[], bool]], Plain], int]] = {
    "at OPEN's COMMIT": ("Owner.create", _at_its_commit, 1),
    "before CUT": ("Owner.cut", _before_call, 4),
    "at CUT's COMMIT": ("Owner.cut", _at_its_commit, 4),
    "between CUT and dispatch": ("Owner.cut", _after_call, 4),
    "after dispatch": ("LocalPool.submit", _after_call, 6),
    "before DEATH": ("Owner.bill", _before_call, 1),
    "at DEATH's COMMIT": ("Owner.bill", _at_its_commit, 2),
    "after DEATH": ("Owner.bill", _after_call, 1),
    "before CHUNK END": ("Owner.end_chunks", _before_call, 1),
    "at CHUNK END's COMMIT": ("Owner.end_chunks", _at_its_commit, 1),
    "before the end is written": ("Owner.finish", _before_call, 1),
    "at the end's COMMIT": ("Owner.finish", _at_its_commit, 1),
}
"""What the owner of a run does -> which call of it crashes, and how."""


def crash_parent_at(point: str) -> None:
    """Arrange for this process to be killed at a point of its own bookkeeping."""
    from batchrun.execution.pool import LocalPool
    from batchrun.ledger.owner import Owner

    where, wrap, number = PARENT_POINTS[point]
    holder, name = where.split(".")
    owner: Any = {"Owner": Owner, "LocalPool": LocalPool}[holder]
    setattr(owner, name, wrap(getattr(owner, name), _nth(number)))


def carry_out(task: Any, items: int, url: str, point: str = "", **options: Any) -> None:
    """What a parent does: the run named crash, once. point: where it is killed; "" = the test does that."""
    from batchrun import run_parallel

    if point:
        crash_parent_at(point)
    run_parallel(task, range(items), url, **{"name": "crash", "workers": 2, "progress": False, **options})
