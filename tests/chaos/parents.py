"""Parents are killed, and their runs are resumed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.chaos.controls import slow_item
from tests.chaos.programs import Project
from tests.chaos.scenario import scenario
from tests.chaos.world import World
from tests.support import leaks, oracle
from tests.support.oracle import verdict
from tests.support.waiting import wait_until


@scenario(
    "kill -9 the parent, resume at once",
    dose=8,  # on each of the two
    soak=150,
    bound="orphans gone in 2 s; only the remainder runs",
    databases=("postgresql", "sqlite"),
)
def parent(world: World) -> None:
    """The parent dies again and again, and the next one starts at once, while workers of the last may still be alive."""
    per_kill = 20
    items = world.accounts((world.strikes + 1) * per_kill * 2)
    with Project(world) as project:
        program = project.start("run", "add_one", "-j", "2")
        for _ in range(world.strikes):
            applied = oracle.applied(world.url)
            program.wait_applied(applied + world.chance.randrange(1, per_kill))
            orphans = program.workers()
            program.kill()
            died = time.monotonic()
            world.struck("parent kills")
            program.end()
            following = project.start("resume", "last", "-j", "2")
            wait_until(lambda: not [pid for pid in orphans if is_alive(pid)], 10.0, every_s=0.002)  # noqa: B023
            world.within(time.monotonic() - died, 2.0, "end of the orphans")
            program = following
        ended = program.end()
        assert (ended.code, ended.report["status"]) == (0, "done"), ended.err
        ledger = world.judge(items, run=ended.run)
        project.show_agrees(ledger, ended.run)


def is_alive(pid: int) -> bool:
    """A zombie is dead: only nobody has looked at it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def naive_parent(url: str, items: Any, done: Path) -> None:
    """What is done goes into a file now and then, and the next start leaves that out."""
    known = set(map(int, done.read_text().split())) if done.exists() else set()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        todo = [item for item in items if item not in known]
        for item in pool.imap_unordered(_slow, [(url, item) for item in todo]):
            known.add(item)
            if len(known) % 10 == 0:
                done.write_text(" ".join(map(str, known)))


def _slow(given: tuple[str, int]) -> int:
    return slow_item(*given)


@parent.control
def _(world: World) -> str:
    items = world.accounts(40)
    fork = multiprocessing.get_context("fork")
    for last in (False, True):
        process = fork.Process(target=_own_group, args=(world.url, items, world.folder / "done"))
        process.start()
        if not last:
            wait_until(lambda: oracle.applied(world.url) % 10 in (4, 5, 6), 20.0, every_s=0.001)
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    leaks.check_processes([world.server.pid])
    seen = verdict(world.url, items)
    assert seen.doubled or seen.lost, "the control survived: the scenario proves nothing"
    return f"doubles {len(seen.doubled)}"


def _own_group(*given: Any) -> None:
    os.setpgid(0, 0)
    naive_parent(*given)
