"""How fast batchrun is beside its peers: ``python -m benchmarks``. Needs the extras ``dev`` and ``benchmarks``.

It starts a PostgreSQL of its own (fsync on), searches each peer's best setting, and then measures every way of a workload
in turn, round after round. Each measurement is a process of its own. Timed is, for everybody, from the moment when all
workers have run their initializer to the moment when the caller has everything. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from benchmarks.pages import put
from benchmarks.speed.driver import ROOT, Bench, missing
from benchmarks.speed.peers import PEERS
from benchmarks.speed.table import as_data, as_markdown, as_text, facts_line, facts_of
from benchmarks.speed.workloads import WORKLOADS


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--only", default=",".join(WORKLOADS), metavar="WORKLOADS", help="some of %(default)s")
    parser.add_argument("--peers", default=",".join(PEERS), help="some of %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes of everybody (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few items, one round, no search: does it work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there as well")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there as well")
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
    absent = missing(given.peers)
    peers = [peer for peer in given.peers if peer not in absent]
    bench = Bench(given.workers, given.rounds, peers, given.quick)
    try:
        outcomes = [bench.run(WORKLOADS[key]) for key in given.only]
    finally:
        bench.close()
    facts = facts_of(peers, given.workers, given.rounds)
    print(as_text(outcomes), facts_line(facts), sep="\n")
    if given.quick:
        print("--quick shows that it works. Its figures say nothing: what is done once is most of what it measures.")
    for line in [*absent.values(), *(trouble for outcome in outcomes for trouble in outcome.troubles)]:
        print(f"not measured: {line}")
    markdown = f"{as_markdown(outcomes)}{facts_line(facts)}.\n"
    if given.docs:
        put(ROOT / "docs" / "benchmarks.md", "benchmarks", markdown)
    if given.json:
        given.json.write_text(json.dumps(as_data(outcomes, facts), indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(markdown)
    if any(outcome.troubles for outcome in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
