"""Tasks that end the process they run in: each costs its own item, and nothing else."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import event, update
from sqlalchemy.orm import Session

from tests.chaos.controls import NaivePool, slow_item
from tests.chaos.scenario import scenario
from tests.chaos.world import World, carried_out
from tests.support import oracle
from tests.support.crashes import die, note, noted


def quiet() -> None:
    """The initializer: these deaths are meant, so nobody needs a core file or a traceback of them."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def overflow() -> None:
    """Let a C function call itself until the stack is full: glibc reads a regular expression by recursion."""
    ctypes.CDLL(None).regcomp(ctypes.create_string_buffer(1024), b"(" * 1_000_000, 1)


def recurse() -> None:
    recurse()


KILLS: dict[str, Callable[[], object]] = {
    "os._exit(0)": lambda: os._exit(0),
    "os._exit(1)": lambda: os._exit(1),
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "stack overflow": overflow,
    "kill -9": die,
}
"""These end the worker."""

RAISES: dict[str, Callable[[], object]] = {"sys.exit": lambda: sys.exit(3), "recursion": recurse}
"""These are exceptions in Python: the item is failed, and the worker lives."""

WAYS = KILLS | RAISES


# ------------------------------------------------------------------------------------------ where in an item
def before_its_first_statement(session: Session, item: int, end: Callable[[], object]) -> None:
    end()


def in_the_middle(session: Session, item: int, end: Callable[[], object]) -> None:
    session.execute(update(oracle.Account).where(oracle.Account.id == item).values(n=oracle.Account.n + 1))
    end()


def after_its_work(session: Session, item: int, end: Callable[[], object]) -> None:
    oracle.work(session, item)
    end()


def after_its_commit(session: Session, item: int, end: Callable[[], object]) -> None:
    oracle.work(session, item)
    session.commit()
    end()


def in_a_hook_of_the_commit(session: Session, item: int, end: Callable[[], object]) -> None:
    oracle.work(session, item)
    event.listen(session, "before_commit", lambda _: end())


POSITIONS = [before_its_first_statement, in_the_middle, after_its_work, after_its_commit, in_a_hook_of_the_commit]
Position = Callable[[Session, int, Callable[[], object]], None]


@dataclass(frozen=True)
class Ends:
    """The oracle's task, but for the guilty: item -> (its way, its position)."""

    guilty: dict[int, tuple[str, Position]]
    folder: Path

    def __call__(self, session: Session, given: Any, ctx: Any) -> None:
        for item in given if isinstance(given, list) else [given]:
            if item in self.guilty:
                note(self.folder, item)
                way, position = self.guilty[item]
                position(session, item, WAYS[way])
            else:
                oracle.work(session, item, ctx.attempt)


def judge_deaths(world: World, items: range, task: Ends, tries: Callable[[int], bool]) -> None:
    """Guilty items are quarantined after exactly three deaths, or failed; all else is done. tries: may one be noted so often."""
    killers = {item for item, (way, _) in task.guilty.items() if way in KILLS}
    ledger = world.judge(items, quarantined=killers, failed=len(task.guilty) - len(killers))
    assert ledger.of("failed") == set(task.guilty) - killers
    assert {item: ledger.deaths[item] for item in killers} == dict.fromkeys(killers, 3)
    wrong = {item: times for item in task.guilty if not tries(times := noted(task.folder, item)) and item in killers}
    assert not wrong, f"their worker died of them so often: {wrong}"
    world.struck("deaths of workers", sum(noted(task.folder, item) for item in killers))


@scenario("a task ends its process", dose=5, bound="one item each", databases=("postgresql", "sqlite"))
def endings(world: World) -> None:
    """Every way to end, each at so many positions of an item, all in one run."""
    faults = [(way, position) for way in WAYS for position in world.chance.sample(POSITIONS, min(world.strikes, len(POSITIONS)))]
    items = world.accounts(len(faults) * 5)
    task = Ends(dict(zip(world.chance.sample(items, len(faults)), faults, strict=True)), world.folder)
    method = "fork" if world.is_sqlite else "forkserver"
    carried_out(world, task, items, start_method=method, initializer=quiet, retries=0)
    judge_deaths(world, items, task, lambda times: times == 3)


def exits_once(url: str, item: int) -> int:
    """The naive item; one of them ends its process."""
    if item == 7:
        os._exit(0)
    return slow_item(url, item)


@endings.control
def _(world: World) -> str:
    with NaivePool(world, exits_once) as pool:
        return pool.outcome()


@scenario("poison", dose=3, soak=100, bound="quarantined after 3 deaths, others 100 %", databases=("postgresql", "sqlite"))
def poison(world: World) -> None:
    """A few among many, in transactions that many items share: each is tried alone before it is billed."""
    items = world.accounts(max(100, round(2_000 * world.factor)))
    guilty = world.chance.sample(items, world.strikes)
    task = Ends({item: (world.chance.choice(list(KILLS)), after_its_work) for item in guilty}, world.folder)
    mode: dict[str, Any] = {"batched": True} if world.is_sqlite else {"transaction": "chunk"}
    carried_out(world, task, items, start_method="fork", initializer=quiet, retries=0, **mode)
    judge_deaths(world, items, task, lambda times: times >= 3)


def is_poison(url: str, item: int) -> int:
    """The naive item; one kills its worker after its work, before its commit."""
    if item == 7:
        die()
    return slow_item(url, item)


@poison.control
def _(world: World) -> str:
    with NaivePool(world, is_poison) as pool:
        return pool.outcome()
