"""How fast batchrun is beside its peers: ``python -m benchmarks``. Needs the extras ``dev`` and ``benchmarks``.

It starts a PostgreSQL of its own (fsync on), searches each peer's best setting, and then measures every way of a workload
in turn, round after round. Each measurement is a process of its own. Timed is, for everybody, from the moment when all
workers have run their initializer to the moment when the caller has everything. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import put
from benchmarks.speed.driver import ROOT, Bench, Outcome, missing
from benchmarks.speed.peers import PEERS
from benchmarks.speed.plots import BY_ROUND_TRIP, BY_WORKERS, make
from benchmarks.speed.table import as_data, as_markdown, as_text, facts_line, facts_of, read_outcomes
from benchmarks.speed.workloads import WORKLOADS

PICTURES = f"![Throughput against workers]({BY_WORKERS})\n\n![Throughput against the network's round trip]({BY_ROUND_TRIP})\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--only", default=",".join(WORKLOADS), metavar="WORKLOADS", help="some of %(default)s")
    parser.add_argument("--peers", default=",".join(PEERS), help="some of %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes of everybody (default: %(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="of each workload's items (default: all)")
    parser.add_argument("--quick", action="store_true", help="few items, one round, no search: does it work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there as well")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there as well")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="measure for the two plots, and nothing else")
    parser.add_argument("--render", type=Path, nargs="+", metavar="FILE", help="run nothing; show what --json wrote")
    given = parser.parse_args()
    for name, known in (("only", WORKLOADS), ("peers", PEERS)):
        chosen = getattr(given, name).split(",")
        if unknown := set(chosen) - set(known):
            parser.error(f"--{name}: {', '.join(sorted(unknown))} is not known; there are {', '.join(known)}")
        setattr(given, name, chosen)
    if given.quick:
        given.rounds = 1
    return given


def main() -> None:
    """Run what is asked for and print the tables."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended also then
    given = arguments()
    if given.render:
        outcomes, facts = read_outcomes(given.render)
        report(given, outcomes, facts, [])
        return
    absent = missing(given.peers)
    peers = [peer for peer in given.peers if peer not in absent]
    bench = Bench(given.workers, given.rounds, peers, given.quick, given.share)
    with contextlib.closing(bench):
        if given.plots:
            plot(given, bench)
            return
        outcomes, was_stopped = carry_out(given, bench)
    facts = facts_of(peers, given.workers, given.rounds, given.share)
    report(given, outcomes, facts, list(absent.values()))
    if was_stopped:
        sys.exit("Stopped: the tables are of what was measured until then.")
    if any(outcome.troubles for outcome in outcomes):
        sys.exit(1)


def carry_out(given: argparse.Namespace, bench: Bench) -> tuple[list[Outcome], bool]:
    """Every workload that is asked for, or as far as it came when it was stopped; --json is written after each."""
    outcomes: list[Outcome] = []
    try:
        for key in given.only:
            outcomes.append(Outcome(WORKLOADS[key]))
            bench.run(outcomes[-1])
            facts = facts_of(bench.peers, given.workers, given.rounds, given.share)
            write(given.json, json.dumps(as_data(outcomes, facts), indent=1) + "\n")
    except KeyboardInterrupt:
        return outcomes, True
    return outcomes, False


def plot(given: argparse.Namespace, bench: Bench) -> None:
    """Measure and draw, and put what the plots were made with under them."""
    points = make(bench, given.plots)
    facts = facts_of(["pool", "batchrun"], given.workers, given.rounds, given.share)
    print(facts_line(facts))
    write(given.json, json.dumps({"schema": 1, "facts": facts, "plots": points}, indent=1) + "\n")
    if given.docs:
        put(ROOT / "docs" / "benchmarks.md", "plots", f"{PICTURES}\n{facts_line(facts)}.\n")


def report(given: argparse.Namespace, outcomes: Sequence[Outcome], facts: dict[str, Any], absent: Sequence[str]) -> None:
    """Print the tables and write the files that are asked for."""
    print(as_text(outcomes), facts_line(facts), sep="\n")
    if given.quick:
        print("--quick shows that it works. Its figures say nothing: what is done once is most of what it measures.")
    for line in [*absent, *(trouble for outcome in outcomes for trouble in outcome.troubles)]:
        print(f"not measured: {line}")
    markdown = f"{as_markdown(outcomes)}{facts_line(facts)}.\n"
    if given.docs:
        put(ROOT / "docs" / "benchmarks.md", "benchmarks", markdown)
    write(given.json, json.dumps(as_data(outcomes, facts), indent=1) + "\n")
    write(given.markdown, markdown)


def write(file: Path | None, content: str) -> None:
    if file:
        file.write_text(content)


if __name__ == "__main__":
    main()
