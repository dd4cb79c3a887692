"""Two plots of the ORM read and update: throughput against workers, and against the network's round trip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.speed.driver import Bench
from benchmarks.speed.figures import Spread
from benchmarks.speed.workloads import WORKLOADS, Lane, Workload, ours

BY_WORKERS, BY_ROUND_TRIP = "benchmarks-workers.svg", "benchmarks-round-trip.svg"
WORKERS = (1, 2, 4, 8)
ROUND_TRIPS_MS = (0.0, 0.5, 1.0, 2.0, 5.0)
LANES = (
    Lane("pool", "pool", "mp.Pool, chunk 20", options={"chunk": 20}),
    ours("ours-named", "batchrun, exactly once", name=True),
    ours("ours-chunk", "batchrun, chunk, exactly once", name=True, transaction="chunk"),
)
COLOURS = ("#e0763a", "#3b8fd6", "#2fa36b")
INK = "#8a8f98"
"""Readable on white and on black; there is no background of its own."""


@dataclass(frozen=True)
class Point:
    """What a lane reached at one place of the axis, over the rounds."""

    lane: str
    at: float
    rates: Spread


def against_workers(bench: Bench) -> list[Point]:
    base = replace(WORKLOADS["orm-write"], items=int(4_000 * bench.share))
    return _points(bench, [(float(count), replace(base, workers=count)) for count in WORKERS])


def against_round_trips(bench: Bench) -> list[Point]:
    base = replace(WORKLOADS["orm-write"], items=int(1_000 * bench.share))
    return _points(bench, [(delay, replace(base, round_trip_ms=delay)) for delay in ROUND_TRIPS_MS])


def _points(bench: Bench, places: Sequence[tuple[float, Workload]]) -> list[Point]:
    """Round after round, every place, every lane in turn."""
    found: dict[tuple[str, float], list[float]] = {}
    for number in range(1, bench.rounds + 1):
        for at, workload in places:
            for lane in LANES:
                rate = bench.trial(workload, lane, lane.options).rate
                found.setdefault((lane.key, at), []).append(rate)
                bench.say(f"plots      {lane.key:15} at {at:g}, round {number}: {rate:,.0f} items/s")
    return [Point(lane, at, Spread.of(rates)) for (lane, at), rates in found.items()]


def draw(points: Sequence[Point], label: str, file: Path) -> None:
    """One SVG: a line for each lane, with the spread of its rounds."""
    matplotlib = import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "batchrun", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK}
        | {"xtick.color": INK, "ytick.color": INK, "font.size": 11}
    )
    figure, axes = import_module("matplotlib.pyplot").subplots(figsize=(7.2, 4.0))
    for lane, colour in zip(LANES, COLOURS, strict=True):
        _line(axes, [point for point in points if point.lane == lane.key], lane.title, colour)
    axes.set_xlabel(label)
    axes.set_ylabel("items/s")
    axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({point.at for point in points}))
    axes.grid(alpha=0.25, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, labelcolor=INK)
    figure.tight_layout()
    figure.savefig(file, transparent=True, metadata={"Date": None})


def _line(axes: Any, points: Sequence[Point], title: str, colour: str) -> None:
    at = [point.at for point in points]
    axes.plot(at, [point.rates.middle for point in points], marker="o", color=colour, label=title, linewidth=2)
    axes.fill_between(
        at, [point.rates.least for point in points], [point.rates.greatest for point in points], color=colour, alpha=0.2
    )


def make(bench: Bench, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Measure and draw both. Returns the points as data."""
    import_module("matplotlib")  # before half an hour of measuring, not after
    by_workers, by_round_trips = against_workers(bench), against_round_trips(bench)
    draw(by_workers, "workers", folder / BY_WORKERS)
    draw(by_round_trips, "round trip of the network, ms", folder / BY_ROUND_TRIP)
    return {
        "workers": [asdict(point) for point in by_workers],
        "round_trip_ms": [asdict(point) for point in by_round_trips],
    }
