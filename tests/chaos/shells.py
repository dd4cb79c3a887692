"""A run that is paused, tuned, resumed and cancelled from other shells, while owners, workers and those shells are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from sqlalchemy import select

from batchrun.api import Place, verify_run
from batchrun.ledger.schema import tables
from tests.chaos.programs import JOB, Program, Project
from tests.chaos.scenario import scenario
from tests.chaos.world import World
from tests.support import oracle
from tests.support.databases import engine_for
from tests.support.waiting import wait_until

PER_STRIKE = 500
"""Items, so that --dose 13.4 are 100,000 of them."""

OBEYED_S = 2.0

MOST_S = 0.02
"""An item, on a machine that is busy with other things: of 100,000 a cancelled run may leave most."""


@scenario(
    "pause, tune, resume, cancel from a second shell, while both sides are killed",
    dose=15,
    soak=300,
    bound="a request is obeyed within 2 s",
)
def shells(world: World) -> None:
    """At last the run is cancelled, and what it left undone is done by a second run: over both, each effect is there once."""
    items = world.accounts(world.strikes * PER_STRIKE)
    with Project(world) as project:
        story = _Story(world, project, project.start("run", JOB, "pause=0.001", "-j", "2", "--rate", "50/s"))
        story.program.wait_applied(1)
        first = project.newest_run()
        strikes: list[Callable[[], None]] = [
            story.pause, story.tune, story.kill_worker, story.kill_owner, story.kill_owner_that_was_asked,
            story.kill_whoever_asks,
        ]  # fmt: skip
        enough = len(items) - max(1.5 * PER_STRIKE, 0.05 * len(items))  # something must be left to be cancelled
        for number in range(world.strikes):
            if oracle.applied(world.url) > enough:
                break
            strike = strikes[number] if number < len(strikes) else world.chance.choice(strikes)
            strike()
            story.go_on_if_paused()
        story.cancel()
        assert verify_run(Place(world.url, world.folder), first).ok
        rest = set(items) - oracle.verdict(world.url, items).applied
        assert rest, "nothing was left when it was cancelled"
        last = project.start("run", JOB, "untouched=true", "-j", "2").end(120.0 + len(rest) * MOST_S)
        assert last.code == 0, last.err
        second = last.run
        _judge(world, items, first, second, rest)


class _Story:
    """What is done to a run by chance. program: its present owner."""

    def __init__(self, world: World, project: Project, program: Program) -> None:
        self.world, self.project, self.program = world, project, program
        self.tables = tables()
        self.request = self.tables.request

    def pause(self) -> None:
        """Paused, then resumed."""
        asking = self.project.start("pause", "last")
        self._timed()
        assert asking.end().code == 0, asking.end().err
        ended = self.program.end()
        assert ended.code in (5, 0), ended.err
        self.world.struck("pauses")
        self._resume()

    def tune(self) -> None:
        """Other workers, or another rate, or none."""
        chance = self.world.chance
        options = chance.choice(
            [["-j", str(chance.randrange(1, 4))], ["--rate", f"{chance.randrange(500, 3000)}/s"], ["--rate", "none"]]
        )
        asking = self.project.start("tune", "last", *options)
        self._timed()
        assert asking.end().code == 0 or self._status() == "paused", asking.end().err
        self.world.struck("tunings")

    def kill_worker(self) -> None:
        """One worker, by chance."""
        if workers := self.program.workers():
            os.kill(self.world.chance.choice(workers), signal.SIGKILL)
            self.world.struck("worker kills")
        self._some_more()

    def kill_owner(self) -> None:
        """The parent of the run; the next one goes on at once."""
        self.program.kill()
        self.program.end()
        self.world.struck("owner kills")
        self._resume()

    def kill_owner_that_was_asked(self) -> None:
        """It was asked to pause, or to be tuned, and dies of it."""
        options = self.world.chance.choice([["pause", "last"], ["tune", "last", "-j", "2"]])
        asking = self.project.start(*options)
        self._wait_for_request(asking)
        self.program.kill()
        self.program.end()
        assert asking.end().code in (0, 1, 2), asking.end().err
        self.world.struck("owner kills while asked")
        self._resume()

    def kill_whoever_asks(self) -> None:
        """A command that dies has either asked, and is obeyed, or has not."""
        asking = self.project.start("pause", "last")
        if self.world.chance.random() < 0.7:
            self._wait_for_request(asking)
        asking.kill()
        asking.end()
        self.world.struck("kills of a command")
        wait_until(lambda: self.program.is_over or not self._is_asked(), 20.0, what="the request of a dead command is obeyed")

    def go_on_if_paused(self) -> None:
        """The command that asked for it may be dead, and its request be written in its last moment."""
        if self._status() == "paused":
            self.program.end()
            self._resume()

    def cancel(self) -> None:
        """By commands that are killed, or whose owner is, until one comes through. The run is slowed, so as not to end before."""
        self.project.call("tune", "last", "--rate", "5/s")
        for _ in range(2):
            asking = self.project.start("cancel", "last")
            self._wait_for_request(asking)
            self.world.chance.choice([asking.kill, self.program.kill])()
            self.world.struck("kills while cancelling")
            asking.end()
        self.project.call("cancel", "last")
        self.world.struck("cancels")
        assert self.program.end().code in (3, -9), self.program.end().err

    def _resume(self) -> None:
        self.program = self.project.start("resume", "last")
        self._some_more()

    def _some_more(self) -> None:
        """Wait until it is at work again."""
        before = oracle.applied(self.world.url)
        more = before + self.world.chance.randrange(1, 40)
        wait_until(lambda: self.program.is_over or oracle.applied(self.world.url) >= more, 60.0, what="the run gets on")

    def _status(self) -> str:
        with engine_for(self.world.url).connect() as connection:
            return str(oracle.scalar(connection, "SELECT status FROM batchrun_run ORDER BY started DESC LIMIT 1"))

    def _is_asked(self) -> bool:
        """A pause that was obeyed stands until the resume."""
        own = self.tables.run
        waits = select(self.request.c.run).join(own, own.c.id == self.request.c.run).where(own.c.status != "paused")
        with engine_for(self.world.url).connect() as connection:
            return connection.execute(waits).first() is not None

    def _wait_for_request(self, asking: Program) -> None:
        wait_until(lambda: asking.is_over or self._is_asked(), 30.0, every_s=0.002, what="the request is written")

    def _timed(self) -> None:
        """How long the owner takes to obey, from when the request is there."""
        wait_until(lambda: self.program.is_over or self._is_asked(), 30.0, every_s=0.002, what="the request is written")
        asked = time.monotonic()
        wait_until(lambda: not self._is_asked(), 30.0, every_s=0.002, what="the request is obeyed")
        self.world.within(time.monotonic() - asked, OBEYED_S, "request obeyed")


def _judge(world: World, items: range, first: str, second: str, rest: set[int]) -> None:
    """Data and both ledgers side by side."""
    seen = oracle.verdict(world.url, items)
    assert seen.is_exact, f"lost {len(seen.lost)}, doubled {len(seen.doubled)}, torn {len(seen.torn)}"
    cancelled = oracle.books(world.url, first, items)
    assert cancelled.status == "cancelled"
    assert cancelled.of("done") == set(items) - rest, "the cancelled run's ledger and the data differ"
    counts = cancelled.counts
    assert counts.planned == counts.done + counts.pending
    later = oracle.books(world.url, second, sorted(rest))
    assert later.status == "done"
    assert later.of("done") == rest
    world.figures["items"] += len(items)
    world.figures["left by the cancelled run"] += len(rest)
    world.judge_leftovers()
