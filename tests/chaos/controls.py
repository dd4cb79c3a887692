"""The controls: what the same fault does to the pool that people write by hand, with a retry.

A control is one run of 40 items of 5 ms. "hangs" = nothing was settled for 3 s after the fault. The naive program is a
process of its own, in a process group that is killed at the end: its own ``terminate()`` may wait for ever for a lock that a
dead worker held.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from tests.chaos.world import World
from tests.support import oracle
from tests.support.databases import engine_for
from tests.support.oracle import verdict
from tests.support.waiting import wait_until

ITEMS = 40
HANGS_AFTER_S = 3.0
CLAIMED = 10
"""Items that a program of several claims at once."""

FORK = multiprocessing.get_context("fork")

Work = Callable[[str, int], Any]


def slow_item(url: str, item: int) -> int:
    """An item of 5 ms, committed by hand."""
    oracle.naive_item(url, item)
    time.sleep(0.005)  # work
    return item


def naive_program(
    news: Connection,
    url: str,
    items: range,
    work: Work,
    initializer: Callable[[], None] | None,
    method: str,
    workers: int,
) -> None:
    """``multiprocessing.Pool()`` with a retry: items that raised are tried once more, since that is what one writes.

    Sends (workers' pids, settled, failed) whenever that changes; ends when everything is settled.
    """
    os.setpgid(0, 0)
    pool: Any = multiprocessing.get_context(method).Pool(workers, initializer)
    futures = {item: pool.apply_async(work, (url, item)) for item in items}
    retried = False
    told = None
    while True:
        failed = [item for item, future in futures.items() if future.ready() and not future.successful()]
        settled = sum(future.ready() for future in futures.values())
        if settled == len(futures) and failed and not retried:
            retried = True
            futures |= {item: pool.apply_async(work, (url, item)) for item in failed}
            continue
        if (now := ([process.pid for process in pool._pool], settled, len(failed))) != told:
            news.send(now)
            told = now
        if settled == len(futures):
            os._exit(0)
        for future in itertools.islice((one for one in futures.values() if not one.ready()), 1):
            future.wait(0.002)


class NaivePool:
    """The program above, as a story strikes it."""

    def __init__(
        self,
        world: World,
        work: Work = slow_item,
        *,
        items: int = ITEMS,
        initializer: Callable[[], None] | None = None,
        method: str = "fork",
        workers: int = 2,
        url: str = "",
    ) -> None:
        """url: the way to the world's database, where something is in between."""
        self.world, self.items = world, world.accounts(items)
        self._ours, self._theirs = FORK.Pipe(duplex=False)
        given = (self._theirs, url or world.url, self.items, work, initializer, method, workers)
        self._process = FORK.Process(target=naive_program, args=given)
        self.pids: list[int] = []
        self._settled = 0

    def __enter__(self) -> NaivePool:
        self._process.start()
        self._theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join()
        self._ours.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def settled(self) -> int:
        """How many items the program knows to be settled."""
        with contextlib.suppress(EOFError):
            while self._ours.poll():
                self.pids, self._settled, _ = self._ours.recv()
        return self._settled

    def wait_for(self, settled: int) -> None:
        """Wait until so many items are settled; the pids of its workers are known then."""
        wait_until(lambda: self.settled >= settled, 20.0, every_s=0.001)

    @property
    def is_over(self) -> bool:
        """Has it ended?"""
        return not self._process.is_alive()

    def outcome(self) -> str:
        """Wait for the end or for a hang, and say what became of the items: "hangs, loses 3, doubles 1".

        Raises AssertionError when the naive pool has done everything once: the scenario would prove nothing.
        """
        hung = self._hangs()
        seen = verdict(self.world.url, self.items)
        said = ["hangs"] if hung else []
        said += [f"loses {len(seen.lost)}"] if seen.lost else []
        said += [f"doubles {len(seen.doubled)}"] if seen.doubled else []
        assert said, "the control survived: the scenario proves nothing"
        return ", ".join(said)

    def _hangs(self) -> bool:
        settled, since = self.settled, time.monotonic()

        def over() -> bool:
            nonlocal settled, since
            if self.settled != settled:
                settled, since = self.settled, time.monotonic()
            return not self._process.is_alive() or time.monotonic() - since > HANGS_AFTER_S

        wait_until(over, 60.0)
        return self._process.is_alive()


def naive_owner(url: str, items: range, lease_s: float | None) -> None:
    """A program of several that share the work: what nobody claims is claimed, done, and noted as done."""
    engine = engine_for(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS claims (item INTEGER PRIMARY KEY, at FLOAT, done BOOLEAN)")
    for first in range(items.start, items.stop, CLAIMED):
        claimed = items[first : first + CLAIMED]
        with engine.begin() as connection:
            found = connection.exec_driver_sql(f"SELECT at, done FROM claims WHERE item = {first}").first()
            if lease_s is not None and found and (found.done or time.time() - found.at < lease_s):
                continue
            connection.exec_driver_sql(f"DELETE FROM claims WHERE item = {first}")
            connection.exec_driver_sql(f"INSERT INTO claims VALUES ({first}, {time.time()}, FALSE)")
        for item in claimed:
            time.sleep(0.005)  # work
            oracle.naive_item(url, item)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE claims SET done = TRUE WHERE item = {first}")


@contextlib.contextmanager
def naive_fleet(url: str, items: range, *, lease_s: float | None) -> Iterator[int]:
    """One such program; its process id. lease_s: how long a claim counts; None = nobody looks at claims."""
    process = FORK.Process(target=naive_owner, args=(url, items, lease_s))
    process.start()
    try:
        yield process.pid or 0
    finally:
        process.kill()
        process.join()


@contextlib.contextmanager
def alone(program: Callable[..., Any], *given: Any) -> Iterator[tuple[int, Connection]]:
    """Run ``program(news, *given)`` as a process with a group of its own: (its pid, what it sends). The group is killed."""
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_in_a_group, args=(program, theirs, *given))
    process.start()
    theirs.close()
    assert process.pid is not None
    try:
        yield process.pid, ours
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        ours.close()


def _in_a_group(program: Callable[..., Any], *given: Any) -> None:
    os.setpgid(0, 0)
    program(*given)


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal. False when the process was gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
