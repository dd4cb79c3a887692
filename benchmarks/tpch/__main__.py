"""Recompute TPC-H's order totals by a hand-written pool and by ``batchrun run``, in turn: ``python -m benchmarks.tpch``.

It starts a PostgreSQL of its own (fsync on) and loads orders and lines by the jobs in jobs/load_tpch.py. Each program is
timed as a whole, as who starts it waits for it. Before each the table is as it was after loading; after each every total
must be right: TPC-H's own, to the cent. Needs the extra ``dev``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.pages import columns, grid, put
from benchmarks.speed import server
from benchmarks.speed.figures import Spread, Verdict
from benchmarks.speed.table import facts_line, facts_of
from benchmarks.speed.trial import read_now
from tests.postgres import Server
from tests.support import tpch

ROOT = Path(__file__).parents[2]
AT_LEAST = 2.5
"""How many times as quick as the pool batchrun is to be."""
POOL = "multiprocessing.Pool, an order a call, a commit an order"
EACH = "batchrun run, an order a call, exactly once"
OURS = "batchrun run, a list a call, exactly once"
LISTS = "multiprocessing.Pool, a list a call, a commit a list"
RESET = (
    "UPDATE orders SET recomputed_cents = NULL WHERE recomputed_cents IS NOT NULL",
    "VACUUM FULL ANALYZE orders",
    "CHECKPOINT",
)
RIGHT = "SELECT count(*), count(*) FILTER (WHERE recomputed_cents = o_totalprice_cents) FROM orders"


@dataclass(frozen=True)
class Ran:
    """One program's run: seconds from its start to its end, and CPU seconds of its processes and of the server's."""

    seconds: float
    client_s: float
    server_s: float


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpch", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--scale", type=float, default=0.1, help="0.1 = 150,000 orders, 600,572 lines (default)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="of both (default: %(default)s)")
    parser.add_argument("--chunk", type=int, default=100, help="orders the pool deals at a time (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there as well")
    parser.add_argument("--docs", action="store_true", help="put the table into docs/benchmarks.md")
    return parser.parse_args()


def load(started: Server, scale: float) -> int:
    """Make the data and load it. Returns the number of orders."""
    with tempfile.TemporaryDirectory(prefix="tpch-") as folder:
        tpch.make(Path(folder), scale)
        for job, file in (("load_orders", "orders.csv"), ("load_line_items", "lineitem.csv")):
            subprocess.run(batchrun(started, job, f"file={Path(folder) / file}"), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    with server.connected(started) as cursor:
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("SELECT count(*) FROM orders")
        return int(cursor.fetchone()[0])


def batchrun(started: Server, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "batchrun", "run", *arguments, "--database-url", server.url_of(started), "-q"]


def timed(started: Server, command: list[str], orders: int) -> Ran:
    """Reset, run and check. Ends this program when a total is wrong: a wrong answer has no speed."""
    with server.connected(started) as cursor:
        for statement in RESET:
            cursor.execute(statement)
    before = read_now(0, started.pid or 0)
    ran = subprocess.run([sys.executable, "-m", "benchmarks.tpch.timed", *command], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    after = read_now(0, started.pid or 0)
    with server.connected(started) as cursor:
        cursor.execute(RIGHT)
        found = cursor.fetchone()
    if found != (orders, orders):
        sys.exit(f"{command[1:4]}: of {orders} orders {found[1]} have the right total")
    return Ran(**json.loads(ran.stdout), server_s=(after.server_s or 0.0) - (before.server_s or 0.0))


def rows(found: dict[str, list[Ran]], orders: int) -> list[list[str]]:
    """A row for each program; the first row is the head."""
    lines = [["program", "seconds", "spread", "orders/s", "client µs an order", "server µs an order"]]
    for name, ran in found.items():
        seconds = Spread.of([one.seconds for one in ran])
        cpu = [Spread.of([getattr(one, what) for one in ran]).middle / orders * 1e6 for what in ("client_s", "server_s")]
        spread = f"{seconds.least:.1f} to {seconds.greatest:.1f}"
        speed = f"{orders / seconds.middle:,.0f}"
        lines.append([name, f"{seconds.middle:.1f}", spread, speed, *(f"{microseconds:,.0f}" for microseconds in cpu)])
    return lines


def ratio_of(slow: list[Ran], quick: list[Ran]) -> Spread:
    return Spread.of([one.seconds / other.seconds for one, other in zip(slow, quick, strict=True)])


def verdict_of(pool: list[Ran], ours: list[Ran]) -> Verdict:
    ratio = ratio_of(pool, ours)
    return Verdict("batchrun", f"≥ {AT_LEAST:g} x the pool", "pool", ratio, at_least=AT_LEAST)


def main() -> None:
    """Load, run both in turn, and print what came of it."""
    given = arguments()
    started = server.started()
    try:
        orders = load(started, given.scale)
        workers, url = str(given.workers), server.url_of(started)
        pool = [sys.executable, "-m", "benchmarks.tpch.pool", url, workers, str(given.chunk)]
        commands = {
            POOL: [*pool, "each"],
            EACH: batchrun(started, "recompute_each_order_total", "-j", workers),
            OURS: batchrun(started, "recompute_order_totals", "-j", workers),
            LISTS: [*pool, "lists"],
        }
        found: dict[str, list[Ran]] = {name: [] for name in commands}
        for number in range(1, given.rounds + 1):
            for name, command in commands.items():
                found[name].append(timed(started, command, orders))
                print(f"round {number}: {name:40} {found[name][-1].seconds:7.1f} s", file=sys.stderr, flush=True)
    finally:
        started.close()
    report(given, found, orders)


def report(given: argparse.Namespace, found: dict[str, list[Ran]], orders: int) -> None:
    verdict = verdict_of(found[POOL], found[OURS])
    facts: dict[str, Any] = {**facts_of([], given.workers, given.rounds), "scale": given.scale, "orders": orders}
    ratio = f"{verdict.found.middle:.2f} ({verdict.found.least:.2f} to {verdict.found.greatest:.2f})"
    said = (
        f"batchrun is {ratio} times as quick as the pool; to reach: {verdict.wanted}: {verdict.word}. With the same objects and "
        f"statements it is {ratio_of(found[POOL], found[EACH]).middle:.2f} times as quick an order at a time, and "
        f"{ratio_of(found[LISTS], found[OURS]).middle:.2f} times with lists by hand as well"
    )
    print(columns(rows(found, orders)), said, f"{orders:,} orders. {facts_line(facts)}.", sep="\n")
    if given.json:
        runs = {name: [asdict(one) for one in ran] for name, ran in found.items()}
        data = {"schema": 1, "facts": facts, "runs": runs, "ratio": asdict(verdict.found), "verdict": verdict.word}
        given.json.write_text(json.dumps(data, indent=1) + "\n")
    if given.docs:
        page = ROOT / "docs" / "benchmarks.md"
        put(page, "tpch", f"{grid(rows(found, orders))}\n{said}.\n\n{orders:,} orders. {facts_line(facts)}.\n")


if __name__ == "__main__":
    main()
