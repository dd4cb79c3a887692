"""Tasks that never end: each is over soon after its time limit, whatever it does."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.chaos.controls import NaivePool, slow_item
from tests.chaos.scenario import scenario
from tests.chaos.world import World, carried_out
from tests.support import oracle

TIMEOUT_S = 0.5


def sleeps(session: Session) -> None:
    time.sleep(60)  # work


def sleeps_on_the_server(session: Session) -> None:
    session.execute(text("SELECT pg_sleep(60)"))


def loops_in_c(session: Session | None) -> None:
    """Holds the interpreter's lock and never looks for a signal."""
    sum(itertools.repeat(1))


def hears_nothing(session: Session) -> None:
    """Ignores SIGTERM, and swallows whatever is raised into it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)  # work


def stops(session: Session) -> None:
    """Its whole process stands still, as under a debugger."""
    os.kill(os.getpid(), signal.SIGSTOP)


HANGS: list[Callable[[Session], None]] = [sleeps, sleeps_on_the_server, loops_in_c, hears_nothing, stops]


@dataclass(frozen=True)
class Hangs:
    """The oracle's task; some items never end. They note when they began, on the clock that all processes share."""

    guilty: dict[int, Callable[[Session], None]]
    folder: Path

    def __call__(self, session: Session, item: int, ctx: Any) -> None:
        oracle.work(session, item, ctx.attempt)
        if item in self.guilty:
            (self.folder / f"began-{item}").write_text(str(time.monotonic()))
            self.guilty[item](session)


@scenario("a task hangs", dose=1, soak=50, bound="killed within timeout + 2 s")
def hangs(world: World) -> None:
    """Every kind, so often, all in one run."""
    kinds = HANGS * world.strikes
    items = world.accounts(len(kinds) * 8)
    task = Hangs(dict(zip(world.chance.sample(items, len(kinds)), kinds, strict=True)), world.folder)
    run = carried_out(world, task, items, workers=3, timeout=TIMEOUT_S)
    ledger = world.judge(items, failed=len(kinds))
    assert ledger.of("failed") == set(task.guilty)
    for one, arrived in zip(run.outcomes, run.arrivals, strict=True):
        if one.item in task.guilty:
            assert one.error is not None
            assert one.error.type == "ItemTimeout", one.error
            began = float((world.folder / f"began-{one.item}").read_text())
            world.within(arrived - began - TIMEOUT_S, 2.0, "end of a hang, after its limit")
            world.struck("hangs")


def hangs_once(url: str, item: int) -> int:
    """The naive item; one of them never ends."""
    if item == 7:
        loops_in_c(None)
    return slow_item(url, item)


@hangs.control
def _(world: World) -> str:
    with NaivePool(world, hangs_once) as pool:
        return pool.outcome()
