"""Standard streams that are gone, full or poor: the exit code follows the result all the same."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.chaos.programs import Ended, Program, Project
from tests.chaos.scenario import scenario
from tests.chaos.world import World
from tests.support.oracle import verdict
from tests.support.scripts import ROOT

TALKS = '''
"""A job that says much, and not all of it in ASCII."""

from __future__ import annotations

from sqlalchemy.orm import Session

from batchrun import Context, job
from tests.support import oracle

BAD = 3


@job(retries=0)
def talks(session: Session, item: int, ctx: Context) -> None:
    """Add one to an account, and say so; item 3 fails."""
    oracle.work(session, item, ctx.attempt)
    print("Käse", item, "\\N{SNOWMAN}", flush=True)
    ctx.logger.warning("Grüße von %s", item)
    if item == BAD:
        raise ValueError("Zürich \\udcff")


@talks.items
def items():
    return range(10)
'''
BAD = 3

GONE = (">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full")
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def judge(world: World, items: range, code: int) -> None:
    """The run came to its end: one item failed, so the exit code is 1, and a crash would have left the run open."""
    assert code == 1, code
    ledger = world.judge(items, run="talks", failed=1)
    assert ledger.of("failed") == {BAD}
    world.struck("poor streams")


def said_well(ended: Ended) -> None:
    """Where there is somewhere to say it: no traceback, the failed item, and the sum."""
    assert "Traceback" not in ended.err
    assert "Item 3 failed" in ended.err, ended.err
    assert ended.report["failed"] == 1


def on_terminal(project: Project, *arguments: str, **environment: str) -> tuple[int, str]:
    """The same on a pseudo-terminal: (exit code, what it showed)."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "batchrun", *arguments],
        cwd=project.world.folder / "project",
        env={**os.environ, "PYTHONPATH": str(ROOT), "CHAOS_URL": project.world.url, **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    return process.wait(), shown.decode()


@scenario("a standard stream is gone or poor", dose=1, bound="the exit code follows the result", databases=("sqlite",))
def streams(world: World) -> None:
    """Stdout or stderr closed or full, all three closed; no terminal, a dumb one; a locale that knows ASCII alone."""
    with Project(world) as project:
        (world.folder / "project" / "jobs" / "talking.py").write_text(TALKS)
        for _ in range(world.strikes):
            for redirected in GONE:
                items = world.accounts(10)
                program: Program = project.start("run", "talks", "-j", "1", redirected=redirected)
                judge(world, items, program.end().code)
            items = world.accounts(10)
            ended = project.start("run", "talks", "-j", "1", **ASCII).end()
            judge(world, items, ended.code)
            said_well(ended)
            items = world.accounts(10)
            code, shown = on_terminal(project, "run", "talks", "-j", "1", TERM="dumb", COLUMNS="80")
            judge(world, items, code)
            assert "10 planned = 9 done + 1 failed" in shown


NAIVE = """
import sys
from tests.support import oracle

for item in range(int(sys.argv[2])):
    oracle.naive_item(sys.argv[1], item)
    print("done:", item, flush=True)
"""


@streams.control
def _(world: World) -> str:
    items = world.accounts(40)
    with Path("/dev/full").open("w") as full:
        code = subprocess.run(
            [sys.executable, "-c", NAIVE, world.url, str(len(items))], cwd=ROOT, stdout=full, stderr=subprocess.DEVNULL
        ).returncode
    lost = len(verdict(world.url, items).lost)
    assert lost, "the control survived: the scenario proves nothing"
    return f"loses {lost}, exit code {code}"
