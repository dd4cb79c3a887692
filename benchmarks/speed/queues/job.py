"""What a queue's worker runs for one item, in whatever process that is; it finds its trial in the environment.

item 0    only makes this process ready: an engine, and a file that says it is there
item n    the task in a Session with a commit, and a byte more in this process's file, so that the program can count
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import create_engine

from benchmarks.speed import work
from benchmarks.speed.trial import Trial

TRIAL, BROKER = "BENCHMARK_TRIAL", "BENCHMARK_BROKER"
"""Environment variables: the trial as text, and the URL of the broker."""
WARM_S = 0.02


@functools.cache
def trial() -> Trial:
    return Trial.read(os.environ[TRIAL])


@functools.cache
def start() -> tuple[int, int]:
    """Make this process ready, once. Returns the files it counts in: warm-ups, and items."""
    given = trial()
    work.TASK, work.ENGINE = work.TASKS[given.task], create_engine(given.url)
    files = [os.open(Path(given.folder) / f"{kind}-{os.getpid()}", os.O_CREAT | os.O_WRONLY | os.O_APPEND) for kind in KINDS]
    (Path(given.folder) / f"worker-{os.getpid()}").write_text(str(time.monotonic()))
    return files[0], files[1]


KINDS = ("warmed", "done")


def perform(item: int) -> None:
    """One item."""
    warmed, done = start()
    if item:
        work.committed(item)
        os.write(done, b".")
    else:
        time.sleep(WARM_S)
        os.write(warmed, b".")


def perform_many(items: Iterable[int]) -> None:
    """A batch of items, for those that are told to batch."""
    for item in items:
        perform(item)


def counted(kind: str) -> int:
    """How many warm-ups or items there were, in all processes."""
    return sum(path.stat().st_size for path in Path(trial().folder).glob(f"{kind}-*"))


def workers_there() -> int:
    return len(list(Path(trial().folder).glob("worker-*")))
