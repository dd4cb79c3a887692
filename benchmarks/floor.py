"""What a parent in Python can do at most with 1 KiB each way, ledger, deaths and order left out: ``python -m benchmarks.floor``.

    executor        ProcessPoolExecutor.map, chunks of 500: the peer
    pipes           pickled lists of items through a pipe to each worker, and their values back through it
    shared memory   the same pickles in memory that both sides have mapped, and only their place and length through the pipe

Two workers, items a second from the moment when both are there until the parent holds every value; medians of the rounds.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import pickle
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any

WORKERS, CHUNK, ITEMS = 2, 250, 40_000
SLOTS, SLOT = 3, 1 << 19
_PLACE = struct.Struct("!qq")


def same(item: bytes) -> bytes:
    """1 KiB there, 1 KiB back."""
    return item


class Pipes:
    """How a pickle crosses: as a message. ahead: chunks at a worker; with two, both sides could wait for the other to read."""

    ahead = 1

    def __init__(self, memory: mmap.mmap, base: int) -> None:
        """memory, base: not needed here."""

    def send(self, end: Connection, chunk: int, data: bytes) -> None:
        end.send_bytes(data)

    def receive(self, end: Connection) -> tuple[int, Any]:
        return -1, pickle.loads(end.recv_bytes())  # noqa: S301 - our own


class Shared:
    """How a pickle crosses: it stays where it is. base: where this side's slots begin; the other side's are behind or before."""

    ahead = 2

    def __init__(self, memory: mmap.mmap, base: int) -> None:
        self._memory, self._view, self._base = memory, memoryview(memory), base

    def send(self, end: Connection, chunk: int, data: bytes) -> None:
        at = self._base + chunk % SLOTS * SLOT
        self._view[at : at + len(data)] = data
        end.send_bytes(_PLACE.pack(at, len(data)))

    def receive(self, end: Connection) -> tuple[int, Any]:
        at, size = _PLACE.unpack(end.recv_bytes())
        return at, pickle.loads(self._view[at : at + size])  # noqa: S301 - our own


Way = type[Pipes] | type[Shared]


def work(way: Way, end: Connection, memory: mmap.mmap) -> None:
    """A worker: values of chunks, until there is none."""
    crossing, chunk = way(memory, SLOTS * SLOT), 0
    end.send_bytes(b"ready")
    while True:
        _, items = crossing.receive(end)
        if items is None:
            return
        crossing.send(end, chunk, pickle.dumps([same(item) for item in items], protocol=pickle.HIGHEST_PROTOCOL))
        chunk += 1


def through(way: Way, items: list[bytes]) -> float:
    """Items a second of a parent that does nothing else."""
    context = multiprocessing.get_context("fork")
    ends: dict[Connection, tuple[Pipes | Shared, Iterator[int]]] = {}
    processes = []
    for _ in range(WORKERS):
        memory = mmap.mmap(-1, 2 * SLOTS * SLOT)
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(way, theirs, memory)))
        processes[-1].start()
        ends[ours] = way(memory, 0), iter(range(1 << 30))
    for end in ends:
        end.recv_bytes()
    began = time.perf_counter()
    got = _exchange(ends, items)
    seconds = time.perf_counter() - began
    assert got == len(items)
    for end, (crossing, numbers) in ends.items():
        crossing.send(end, next(numbers), pickle.dumps(None))
    for process in processes:
        process.join()
    return len(items) / seconds


def _exchange(ends: dict[Connection, tuple[Pipes | Shared, Iterator[int]]], items: list[bytes]) -> int:
    results: list[bytes] = []
    starts = iter(range(0, len(items), CHUNK))

    def hand_over(end: Connection) -> None:
        if (start := next(starts, None)) is not None:
            crossing, numbers = ends[end]
            crossing.send(end, next(numbers), pickle.dumps(items[start : start + CHUNK], protocol=pickle.HIGHEST_PROTOCOL))

    for end, (crossing, _) in ends.items():
        for _ in range(crossing.ahead):
            hand_over(end)
    while len(results) < len(items):
        for ready in wait(list(ends)):
            assert isinstance(ready, Connection)
            results += ends[ready][0].receive(ready)[1]
            hand_over(ready)
    return len(results)


def by_executor(items: list[bytes]) -> float:
    with ProcessPoolExecutor(WORKERS) as pool:
        list(pool.map(same, items[: 2 * WORKERS]))
        began = time.perf_counter()
        got = list(pool.map(same, items, chunksize=500))
        seconds = time.perf_counter() - began
    assert len(got) == len(items)
    return len(items) / seconds


def main() -> None:
    """Measure in turn, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    rounds = parser.parse_args().rounds
    items = [f"{item:08d}".encode() * 128 for item in range(ITEMS)]
    ways: dict[str, Callable[[], float]] = {
        "executor": lambda: by_executor(items),
        "pipes": lambda: through(Pipes, items),
        "shared memory": lambda: through(Shared, items),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            found[name].append(run())
    for name, rates in found.items():
        ratio = statistics.median(rate / peer for rate, peer in zip(rates, found["executor"], strict=True))
        print(f"{name:14} {statistics.median(rates):>9,.0f} items/s   {ratio:.2f} x the executor")


if __name__ == "__main__":
    main()
