"""What an item costs a worker, mode by mode, beside a plain Session: ``python -m benchmarks.hotpath [--profile MODE]``.

One process and one server of its own; rounds of all modes in turn, so that what else the machine does meets each alike.
CPU is that of the client, user and system; of the rounds the median and the least are shown. Calls and round trips, which
no noise reaches, are in tests/integration/test_cost.py.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import resource
import statistics
import time
from contextlib import ExitStack
from typing import Any

from sqlalchemy import __version__ as version

from tests.integration.test_cost import MODES, PEERS
from tests.postgres import Server
from tests.support import worker_side
from tests.support.worker_side import Plain, WorkerSide

ITEMS = range(1, 201)

Side = WorkerSide | Plain


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def sides_on(url: str, stack: ExitStack) -> dict[str, Side]:
    """Peers first, by the names of what they do."""
    made: dict[str, Side] = {f"plain {peer}": Plain(url, task, commits=commits) for peer, (task, commits) in PEERS.items()}
    made |= {mode: WorkerSide(url, how.task, **how.options) for mode, how in MODES.items()}
    for side in made.values():
        stack.enter_context(side)
    return made


def measured(side: Side) -> tuple[float, float]:
    """CPU and time of one order, in microseconds an item."""
    order: Any = side.order(ITEMS)
    gc.collect()
    used, began = cpu_s(), time.perf_counter()
    side.run(order)
    return (cpu_s() - used) / len(ITEMS) * 1e6, (time.perf_counter() - began) / len(ITEMS) * 1e6


def compare(sides: dict[str, Side], rounds: int) -> None:
    """Print a line a mode. The ratio is plain over ours, round by round: above 1 ours takes less."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            found[name].append(measured(side))
    print(f"{'':26}{'CPU us':>9}{'least':>9}{'time us':>9}{'least':>9}{'CPU ratio':>11}{'time ratio':>11}")
    for name, every in found.items():
        kept, plain = every[1:], found[f"plain {MODES[name].peer}" if name in MODES else name][1:]
        columns = list(zip(*kept, strict=True))
        ratios = [statistics.median(p[n] / o[n] for p, o in zip(plain, kept, strict=True)) for n in (0, 1)]
        numbers = [figure for column in columns for figure in (statistics.median(column), min(column))]
        print(f"{name:26}" + "".join(f"{figure:9.1f}" for figure in numbers) + "".join(f"{ratio:11.2f}" for ratio in ratios))


def profile(side: Side) -> None:
    """Print which functions an item calls, and how often: those of 400 items."""
    side.run(side.order(ITEMS))  # type: ignore[arg-type]
    orders: list[Any] = [side.order(ITEMS) for _ in range(2)]
    found = cProfile.Profile()
    found.enable()
    for order in orders:
        side.run(order)
    found.disable()
    pstats.Stats(found).sort_stats("tottime").print_stats(60)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hotpath", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", metavar="MODE", help=f"one of: {', '.join([*MODES, *(f'plain {peer}' for peer in PEERS)])}")
    parser.add_argument("--driver", choices=["psycopg2", "psycopg"], default="psycopg2")
    given = parser.parse_args()
    with Server() as server, ExitStack() as stack:
        url = server.url().replace("postgresql:", f"postgresql+{given.driver}:", 1)
        worker_side.create(url, ITEMS)
        sides = sides_on(url, stack)
        if given.profile:
            profile(sides[given.profile])
        else:
            print(f"SQLAlchemy {version}, {given.driver}; {given.rounds} rounds of {len(ITEMS)} items")
            compare(sides, given.rounds)


if __name__ == "__main__":
    main()
