"""``python -m tests.chaos --dose 1``: the table of faults, played. ``--minutes 60``: the soak. Both print their figures.

--dose F      every scenario at this size (default 1), bounds on time at their own length
--minutes M   scenarios of the soak, again and again, the one that lags most behind its share first
--only TEXT   scenarios whose name contains it; may be repeated
--seed N      the same seed plays the same chances
--controls    also what the same faults do to a naive pool
--json FILE   the figures as JSON; --markdown FILE as a table

Ctrl-C ends a soak after the scenario that is being played.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from tests.chaos import stories
from tests.chaos.figures import Line, markdown, totals
from tests.chaos.scenario import Scenario
from tests.chaos.world import World
from tests.postgres import Server
from tests.support import leaks
from tests.support.databases import Clones


class Stage:
    """A server, and a fresh world on it for each play."""

    def __init__(self, stack: ExitStack, seed: int) -> None:
        leaks.mark()
        self.server = stack.enter_context(Server())
        self.clones = Clones(self.server)
        stack.callback(self.clones.close)
        self.seed = seed

    @contextmanager
    def world(
        self, scenario: Scenario, database: str, factor: float, slack: float, seed: int, *, is_soak: bool = False
    ) -> Iterator[World]:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="batchrun-chaos-")))
            stack.callback(self.server.start)
            name = stack.enter_context(self.clones.clone()) if database != "sqlite" else ""
            urls = {
                "sqlite": f"sqlite:///{folder / 'test.db'}",
                "postgresql": self.server.url(name),
                "psycopg3": self.server.url(name).replace("postgresql:", "postgresql+psycopg:", 1),
            }
            url = stories.with_password(urls[database])
            yield World(scenario, database, url, factor, slack, seed, folder, self.server, self.clones, is_soak)

    def play(self, line: Line, factor: float, slack: float, seed: int, *, is_soak: bool = False) -> None:
        """Play a scenario once and add its figures to the line."""
        began = time.monotonic()
        with self.world(line.scenario, line.database, factor, slack, seed, is_soak=is_soak) as world:
            try:
                line.scenario.story(world)
                leaks.check_processes([self.server.pid])
            except Exception as error:
                line.failures.append(f"seed {seed}: {type(error).__name__}: {error}")
                print(f"FAILED {line.scenario.name} on {line.database}, seed {seed}", file=sys.stderr)
                traceback.print_exc()
            line.add(world.figures, time.monotonic() - began)

    def control(self, line: Line) -> None:
        if line.scenario.against is None:
            return
        with self.world(line.scenario, line.database, 0.2, 3.0, self.seed) as world:
            try:
                line.control = line.scenario.against(world)
            except AssertionError as error:
                line.failures.append(f"control: {error}")
                print(f"FAILED control of {line.scenario.name}: {error}", file=sys.stderr)


def lines(only: list[str]) -> list[Line]:
    """A line for each scenario on each of its databases, without those whose program is missing."""
    found = []
    for one in stories.ALL.values():
        if only and not any(part in one.name for part in only):
            continue
        if one.needs and not shutil.which(one.needs):
            print(f"{one.name}: {one.needs} is not on PATH; not played")
            continue
        found += [Line(one, database) for database in one.databases]
    return found


def table(stage: Stage, todo: list[Line], factor: float, *, controls: bool) -> None:
    """Every scenario once, at its own bounds."""
    for line in todo:
        stage.play(line, factor, 1.0, stage.seed)
        if controls and line.database == line.scenario.databases[0]:
            stage.control(line)
        print(line.text(), flush=True)


def soak(stage: Stage, todo: list[Line], minutes: float, factor: float) -> None:
    """Play for so long, always the line that is furthest behind its share of the soak."""
    chance, until = random.Random(stage.seed), time.monotonic() + minutes * 60
    todo[:] = [line for line in todo if line.scenario.soak]

    def enough(number: int, frame: FrameType | None) -> None:
        nonlocal until
        until = 0.0

    signal.signal(signal.SIGINT, enough)
    while time.monotonic() < until:
        line = min(todo, key=lambda one: (one.plays * one.scenario.strikes(factor) / one.scenario.soak, one.scenario.name))
        stage.play(line, factor, 3.0, chance.randrange(10**9), is_soak=True)
    for line in todo:
        print(line.text())


def main() -> int:
    """Play, print, and exit with 1 when anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dose", type=float, default=1.0)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CHAOS_SEED", "20261123")))
    parser.add_argument("--controls", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    todo = lines(given.only)
    with ExitStack() as stack:
        stage = Stage(stack, given.seed)
        print(f"seed {given.seed}, PostgreSQL of our own on port {stage.server.port}", flush=True)
        if given.minutes:
            soak(stage, todo, given.minutes, given.dose)
        else:
            table(stage, todo, given.dose, controls=given.controls)
    print(totals(todo))
    if given.markdown:
        given.markdown.write_text(markdown(todo))
    if given.json:
        given.json.write_text(json.dumps({"seed": given.seed, "lines": [line.json() for line in todo]}, indent=1))
    return 1 if any(line.failures for line in todo) else 0


if __name__ == "__main__":
    raise SystemExit(main())
