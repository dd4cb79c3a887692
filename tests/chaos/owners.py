"""Owners that are stopped, interrupted, and fired again by cron."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from unittest import mock

from sqlalchemy import make_url

from batchrun import run_parallel
from batchrun.errors import AlreadyRunning
from tests.chaos.controls import ITEMS, naive_fleet
from tests.chaos.programs import JOB, Program, Project
from tests.chaos.scenario import scenario
from tests.chaos.world import RUN, World
from tests.support import crashes, oracle
from tests.support.databases import engine_for
from tests.support.oracle import verdict
from tests.support.waiting import wait_until

LEASE_S = 2.5
FORK = multiprocessing.get_context("fork")


# ------------------------------------------------------------------------------------------ a lease that ran out
def own(url: str, items: range) -> None:
    """What an owner does; its exit code is the command line's."""
    try:
        run_parallel(crashes.slow, items, url, name=RUN, workers=2, start_method="fork", progress=False)
    except AlreadyRunning as error:
        print(error, file=sys.stderr)
        os._exit(error.exit_code)


@contextlib.contextmanager
def owner(world: World, items: range) -> Iterator[multiprocessing.process.BaseProcess]:
    process = FORK.Process(target=own, args=(world.url, items))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


@scenario("the owner is stopped past its lease, a second takes over, the first wakes", dose=5, soak=100, bound="5 s")
def sleeper(world: World) -> None:
    """Each owner but the last is stopped in the middle and woken when the next is at work: it writes nothing more."""
    per_owner = 40
    items = world.accounts((world.strikes + 1) * per_owner * 5)  # what a stopped owner's workers still have is done too
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("batchrun.ledger.liveness.LEASE_S", LEASE_S))
        stack.enter_context(mock.patch("batchrun.runner.HEARTBEAT_S", 0.5))
        current = stack.enter_context(owner(world, items))
        for _ in range(world.strikes):
            wait_for_more(world, per_owner, current)
            os.kill(current.pid or 0, signal.SIGSTOP)
            world.struck("owners past their lease")
            wait_until(lambda: silent_s(world) > LEASE_S, 20.0)
            following = stack.enter_context(owner(world, items))
            wait_for_more(world, per_owner // 2, following)
            woken = time.monotonic()
            os.kill(current.pid or 0, signal.SIGCONT)
            current.join(30)
            assert current.exitcode == 75, f"the woken owner ended with {current.exitcode}"
            world.within(time.monotonic() - woken, 5.0, "end of a woken owner")
            current = following
        current.join(60)
        assert current.exitcode == 0
    world.judge(items)


def wait_for_more(world: World, count: int, by: multiprocessing.process.BaseProcess | None = None) -> None:
    """Wait until so many more effects are committed, while that process lives."""
    enough = oracle.applied(world.url) + count

    def there_are_more() -> bool:
        assert by is None or by.is_alive(), f"the owner ended with {by.exitcode}"
        return oracle.applied(world.url) >= enough

    wait_until(there_are_more, 30.0, every_s=0.01, what="the owner gets on")


def silent_s(world: World) -> float:
    with engine_for(world.url).connect() as connection:
        found = oracle.scalar(connection, "SELECT extract(epoch FROM clock_timestamp()) - heartbeat FROM batchrun_run")
    return float(str(found))


@sleeper.control
def stopped_fleet(world: World) -> str:
    """A claim with a time in it, and no epoch: the sleeper goes on with what somebody else has done meanwhile."""
    items = world.accounts(ITEMS)
    with naive_fleet(world.url, items, lease_s=0.01) as first:
        wait_for_more(world, 5)
        wait_until(lambda: is_stopped_between_transactions(world, first), 20.0, every_s=0.003)
        with naive_fleet(world.url, items, lease_s=0.01):
            wait_until(lambda: oracle.applied(world.url) >= ITEMS, 20.0, what="the second does what the first claimed")
            os.kill(first, signal.SIGCONT)
            wait_until(lambda: verdict(world.url, items).doubled, 20.0, what="the sleeper doubles")
    return f"doubles {len(verdict(world.url, items).doubled)}"


def is_stopped_between_transactions(world: World, pid: int) -> bool:
    """Stop it, unless it holds a row just now, for which the second would wait."""
    os.kill(pid, signal.SIGSTOP)
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
    if world.clones.execute(sessions, make_url(world.url).database) == [(0,)]:
        return True
    os.kill(pid, signal.SIGCONT)
    return False


# ------------------------------------------------------------------------------------------ signals
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SIGNALS = [
    (signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGINT), (signal.SIGHUP,), (signal.SIGINT,) * 3,
    (signal.SIGTERM, signal.SIGTERM),
]  # fmt: skip
GRACE_S = 1.0


@scenario(
    "SIGINT once, twice, three times; SIGTERM; SIGHUP; in start, feed, commit, end",
    dose=12,  # on each of the two
    soak=250,
    bound="graceful within grace + 1 s; forced within 1 s",
    databases=("postgresql", "sqlite"),
)
def signals(world: World) -> None:
    """A run that is interrupted again and again, and resumed each time, until nothing is left."""
    items = world.accounts(world.strikes * 12 + 40)
    is_open = False
    with Project(world, grace=GRACE_S) as project:
        for number in range(world.strikes):
            given = SIGNALS[number % len(SIGNALS)]
            is_open = is_open or (number > 0 and project.has_run())  # the first may come before that
            command = ("resume", "last") if is_open else ("run", JOB)
            program = project.start(*command, "-j", "2")
            where = world.chance.choice(["start", "feed", "commit"]) if number + 1 < world.strikes else "end"
            code = interrupt(world, project, program, given, where, len(items))
            assert code in (CODES[given[0]], 0 if where == "end" else None), (given, where, program.end().err)
        last = project.call("resume", "last")
        assert last.code == 0
        ledger = world.judge(items, run=project.newest_run())
        project.show_agrees(ledger)


def interrupt(world: World, project: Project, program: Program, given: tuple[signal.Signals, ...], where: str, total: int) -> int:
    """Send signals at that point of a run; returns its exit code. In "feed" an item hangs, so that grace has to end it."""
    before, sent, said = oracle.applied(world.url), 0.0, 0
    if where == "start":
        wait_until(lambda: program.is_over or program.helpers("forkserver"), 30.0, every_s=0.001)
    elif where == "feed":
        project.hold.touch()
        wait_until(lambda: program.is_over or list(project.hold.parent.glob("held-*")), 30.0, every_s=0.002)
    else:
        program.wait_applied(min(total - 1, total - 5 if where == "end" else before + world.chance.randrange(1, 8)))
    for one in given:
        if sent:  # the next one comes when the last was noticed: two at once are one to the kernel
            wait_until(lambda: program.is_over or program.said_bytes() > said, 10.0, every_s=0.002)  # noqa: B023
        said, sent = program.said_bytes(), time.monotonic()
        program.send(one)
        world.struck(one.name)
    ended = program.end()
    took = time.monotonic() - sent
    project.let_go()
    if where != "start":  # where Python is still importing, a signal waits for that
        is_forced = len(given) > 1
        world.within(took, 1.0 if is_forced else GRACE_S + 1.0, "forced end" if is_forced else "graceful end")
    return ended.code


@signals.control
def interrupted_pool(world: World) -> str:
    """A pool that is interrupted, and started again without a ledger."""
    items = world.accounts(ITEMS)
    for _ in range(2):
        with naive_fleet(world.url, items, lease_s=None) as first:
            wait_for_more(world, 5)
            os.kill(first, signal.SIGINT)
    assert verdict(world.url, items).doubled, "the control survived: the scenario proves nothing"
    return f"doubles {len(verdict(world.url, items).doubled)}"


# ------------------------------------------------------------------------------------------ cron
@scenario("clocks: cron fires while the last firing still runs, in any time zone", dose=10, bound="75 within 2 s")
def cron_overlap(world: World) -> None:
    """Every firing lives in another time zone, server and heartbeat included: none of them reads a local clock."""
    zones = ["Europe/Berlin", "Asia/Kolkata", "America/St_Johns", "Pacific/Kiritimati", "Pacific/Pago_Pago"]
    items = world.accounts(30)
    with Project(world) as project:
        project.hold.touch()
        first = project.start("run", JOB, "-j", "2", TZ="Europe/Berlin", PGTZ="America/New_York")
        wait_until(lambda: first.is_over or list(project.hold.parent.glob("held-*")), 30.0)
        firings = [project.start("run", JOB, "-j", "2", TZ=zones[n % len(zones)]) for n in range(min(world.strikes, 4))]
        firings += [project.start("resume", "last", TZ=zones[n % len(zones)]) for n in range(world.strikes - len(firings))]
        for firing in firings:
            ended = firing.end()
            world.struck("firings")
            assert ended.code == 75, ended.err
            assert str(first.pid) in ended.err, "the holder is not named"
        project.let_go()
        assert first.end().code == 0
        world.judge(items, run=project.newest_run())


@cron_overlap.control
def unlocked_firings(world: World) -> str:
    """Two firings of a program with a lock file that holds a local time."""
    items = world.accounts(ITEMS)
    lock = world.folder / "lock"

    def fire(zone: str) -> None:
        os.environ["TZ"] = zone
        time.tzset()
        here = time.strftime("%Y-%m-%d %H:%M")
        if lock.exists() and abs(_minutes(lock.read_text()) - _minutes(here)) < 30:
            sys.exit(75)
        lock.write_text(here)
        for item in items:
            oracle.naive_item(world.url, item)

    for zone in ("Europe/Berlin", "Asia/Kolkata"):
        process = FORK.Process(target=fire, args=(zone,))
        process.start()
        process.join()
    assert verdict(world.url, items).doubled, "the control survived: the scenario proves nothing"
    return f"doubles {len(verdict(world.url, items).doubled)}"


def _minutes(text: str) -> int:
    day, _, clock = text.partition(" ")
    hours, _, minutes = clock.partition(":")
    return int(day.replace("-", "")) * 24 * 60 + int(hours) * 60 + int(minutes)
