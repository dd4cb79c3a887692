"""One measurement as plain data, and its clock: what is timed is the same for everybody.

    driver     Trial as JSON -> a program in a session of its own            one process for each measurement
    workers    each arrives at the barrier from the peer's own initializer; the last one takes the first reading, all go on
    program    has everything the call gives -> the second reading -> Measured as JSON

So the start of workers and imports are left out; connecting, the first compilation of a statement, dispatch, commits,
results on their way home and, for batchrun, the end of its workers are in.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

PROC = Path("/proc")
ARRIVAL_S = 90.0
"""So long a worker waits for the others: a peer that starts fewer than it was told must not hang the benchmark."""
LOOK_S = 0.0005


@dataclass(frozen=True)
class Trial:
    """What a program is to measure.

    peer, task: keys of ``peers.PEERS`` and ``work.TASKS``. items: how many. url: "" = no database. folder: where workers
    meet. postmaster: process id of the server; 0 = none. options: the peer's setting, such as its chunk size.
    """

    peer: str
    task: str
    items: int
    workers: int
    url: str
    folder: str
    postmaster: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> Self:
        return cls(**json.loads(text))

    def text(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Reading:
    """The clock and the CPU seconds spent so far; None where the system has no /proc."""

    clock_s: float
    client_s: float | None
    server_s: float | None


@dataclass(frozen=True)
class Measured:
    """What came out of a trial. more: figures that only this kind of trial has."""

    items: int
    seconds: float
    client_s: float | None
    server_s: float | None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.seconds

    @classmethod
    def between(cls, items: int, first: Reading, last: Reading) -> Self:
        return cls(
            items, last.clock_s - first.clock_s, _less(last.client_s, first.client_s), _less(last.server_s, first.server_s)
        )


def _less(last: float | None, first: float | None) -> float | None:
    return None if last is None or first is None else last - first


# ------------------------------------------------------------------------------------------------- the barrier
def arrive(folder: str, workers: int, session: int, postmaster: int) -> None:
    """Wait for the other workers; the last one takes the first reading and lets all go. Later ones pass at once."""
    place = Path(folder)
    (place / f"worker-{os.getpid()}").write_text(str(time.monotonic()))
    go = place / "go"
    if not go.exists() and len(list(place.glob("worker-*"))) >= workers and _is_first(place / "reading"):
        start_clock(folder, session, postmaster)
    late = time.monotonic() + ARRIVAL_S
    while not go.exists():
        if time.monotonic() > late:
            raise TimeoutError(f"{workers} workers were to be started, and after {ARRIVAL_S:g} s they are not there")
        time.sleep(LOOK_S)


def _is_first(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def start_clock(folder: str, session: int, postmaster: int) -> None:
    """Take the first reading; the barrier is open."""
    place = Path(folder)
    (place / "go.new").write_text(json.dumps(asdict(read_now(session, postmaster))))
    (place / "go.new").rename(place / "go")


def arrivals(folder: str) -> list[float]:
    """When each worker came to the barrier, in order."""
    return sorted(float(path.read_text()) for path in Path(folder).glob("worker-*"))


def stop_clock(trial: Trial) -> Measured:
    """Take the second reading, in the program."""
    last = read_now(os.getsid(0), trial.postmaster)
    first = Reading(**json.loads((Path(trial.folder) / "go").read_text()))
    return Measured.between(trial.items, first, last)


# ------------------------------------------------------------------------------------------------- CPU seconds
def read_now(session: int, postmaster: int) -> Reading:
    """The time, then the CPU seconds of all processes of a session, and of a server's processes."""
    clock_s = time.monotonic()
    if not PROC.is_dir():
        return Reading(clock_s, None, None)
    client = server = 0.0
    for stat in processes():
        if stat.session == session:
            client += stat.own_s + stat.reaped_s
        elif postmaster and stat.pid == postmaster:
            server += stat.own_s + stat.reaped_s
        elif postmaster and stat.parent == postmaster:
            server += stat.own_s
    return Reading(clock_s, client, server if postmaster else None)


@dataclass(frozen=True)
class ProcessStat:
    """A process in /proc. own_s, reaped_s: CPU seconds of itself, and of its children that it has waited for."""

    pid: int
    parent: int
    session: int
    own_s: float
    reaped_s: float


def processes() -> Iterator[ProcessStat]:
    """Every process there is, ended ones that nobody has waited for included."""
    tick = os.sysconf("SC_CLK_TCK")
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError):  # it may be gone by now
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                user, system, reaped_user, reaped_system = (int(fields[place]) / tick for place in range(11, 15))
                yield ProcessStat(int(folder.name), int(fields[1]), int(fields[3]), user + system, reaped_user + reaped_system)
