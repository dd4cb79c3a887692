"""The same faults on batchrun and its peers: ``python -m benchmarks.faults``. Needs the extras ``dev`` and ``benchmarks``.

Each case is 400 items on 4 workers: an UPDATE, an INSERT and 5 ms, in a Session and a transaction of its own, on an
engine that each worker process makes for itself. The database judges: an item is lost, doubled or applied once.
Each peer is used as its documentation says, with its best setting (``peers.py``, printed below the table), and by a
sensible user: what failed is submitted again, once, after 2 s; a program that was killed is started again and leaves
out what its file of done items says. "Hangs" means that nothing was settled after the fault for 8 s in which the program
was idle, or for 30 s in any case.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import random
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue

from benchmarks.faults.cases import FAULTS
from benchmarks.faults.driver import ROOT, run_case
from benchmarks.faults.judge import Result
from benchmarks.faults.peers import PEERS
from benchmarks.faults.table import as_data, as_markdown, as_text, cell_of, put, read_cells
from tests.postgres import Server, running

TITLES = {name: peer.title for name, peer in PEERS.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--peers", default=",".join(PEERS), help="some of %(default)s")
    parser.add_argument("--faults", default=",".join(FAULTS), help="some of %(default)s")
    parser.add_argument("--items", type=int, default=400, help="items of a case (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the item at which it happens (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there as well")
    parser.add_argument("--render", type=Path, nargs="+", metavar="FILE", help="run nothing; show what --json wrote")
    parser.add_argument("--docs", action="store_true", help="put the table into docs/faults.md and README.md")
    given = parser.parse_args()
    for name, known in (("peers", PEERS), ("faults", FAULTS)):
        chosen = getattr(given, name).split(",")
        if unknown := set(chosen) - set(known):
            parser.error(f"--{name}: {', '.join(sorted(unknown))} is not known; there are {', '.join(known)}")
        setattr(given, name, chosen)
    if given.items < 40:
        parser.error("--items: at least 40, or the fault comes before every worker has had one")
    return given


def versions() -> str:
    packages = [peer.package for peer in PEERS.values() if peer.package]
    found = [f"{package} {importlib.metadata.version(package)}" for package in [*packages, "SQLAlchemy", "psycopg2-binary"]]
    return ", ".join([f"Python {platform.python_version()}", *found, platform.system()])


def run_all(given: argparse.Namespace) -> list[Result]:
    """Every case, ``--jobs`` at a time, each with a server of its own; in the table's order."""
    with ExitStack() as stack:
        servers: SimpleQueue[Server] = SimpleQueue()
        for _ in range(given.jobs):  # by this thread: a server ends with the thread that started it
            server = stack.enter_context(running())
            if not isinstance(server, Server):
                sys.exit("The faults stop the server, so it must be one of our own: unset BATCHRUN_TEST_POSTGRES_URL.")
            servers.put(server)
        threads = ThreadPoolExecutor(given.jobs)
        stack.callback(threads.shutdown, cancel_futures=True)
        cases = [threads.submit(run_one, given, servers, fault, peer) for fault in given.faults for peer in given.peers]
        return [case.result() for case in cases]


def run_one(given: argparse.Namespace, servers: SimpleQueue[Server], fault: str, peer: str) -> Result:
    # The same item for every peer, in the second quarter: every worker is busy by then, and much is left to lose.
    guilty = given.items // 4 + random.Random(f"{given.seed} {fault}").randrange(given.items // 4)
    server = servers.get()
    try:
        result = run_case(server, peer, fault, given.items, guilty, given.seed)
    finally:
        servers.put(server)
    seen = result.seen
    line = f"{fault:12} {peer:9} {result.judgement.word:40} {seen.seconds:5.1f} s  {seen.ending[:150]}"
    print(line, file=sys.stderr, flush=True)
    return result


def main() -> None:
    """Run what is asked for and print the table."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended also then
    given = arguments()
    if given.render:
        cells, facts = read_cells(given.render)
    else:
        results = run_all(given)
        cells = [cell_of(result) for result in results]
        facts = f"{versions()}; {datetime.now(UTC):%Y-%m-%d}; {given.items} items, seed {given.seed}"
        if given.json:
            given.json.write_text(
                json.dumps({"facts": facts, "results": [as_data(result) for result in results]}, indent=1) + "\n"
            )
    print(as_text(cells, TITLES), as_markdown(cells, TITLES), facts, sep="\n")
    for peer in given.peers:
        print(f"- {PEERS[peer].title}: {PEERS[peer].setting}")
    if given.docs:
        put(ROOT / "docs" / "faults.md", f"{as_markdown(cells, TITLES)}\n{facts}.\n")
        put(ROOT / "README.md", as_markdown(cells, TITLES, is_brief=True))


if __name__ == "__main__":
    main()
