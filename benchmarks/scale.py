"""Does a run of ten million items cost what a run of one million costs, ten times? ``python -m benchmarks.scale``.

    server of its own -> a table or a file of so many items
    1. one run from its first item to its last: time an item and the parent's memory, million by million
    2. another one, killed (kill -9 of the parent) near its end, and resumed: seconds until its first new item
    then the ledger's size, VACUUMed, and what the tasks left in the database, against what it must be

The task takes a list and sends one statement, so that the parent, the source and the ledger are what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, column, create_engine, select, table, text
from sqlalchemy.orm import Session

from batchrun import job, keyset, lines
from batchrun.api import Place, resume_job, start_job
from batchrun.events import Event, Progressed, RunOpened
from batchrun.jobs import job_of
from batchrun.options import RunOptions, with_options
from tests.postgres import Server

ROOT = Path(__file__).parents[1]
STEPS = 10
KILLED_AT = 0.95
SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "1GB",
    "autovacuum_naptime": "10s",
}
LEDGER = ("run", "chunk", "payload", "item", "meta")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CLOCKS = ("at", "cpu", "server")


# ----------------------------------------------------------------------------------------------- what the workers do


@job(batched=True)
def add(session: Session, items: list[Any]) -> None:
    """Leave one row for a list: how many items, and their sum."""
    row = {"items": len(items), "total": sum(map(int, items))}
    session.execute(text("INSERT INTO scale_done (items, total) VALUES (:items, :total)"), row)


@add.items
def given(source: str, path: str) -> Any:
    """The items: the keys of a table, or the lines of a file."""
    return lines(path) if source == "file" else keyset(select(column("id")).select_from(table("scale_item", column("id"))))


# ------------------------------------------------------------------------------------------------------- the parent


def carry_out(url: str, source: str, path: str, items: int, workers: int, run: str) -> None:
    """One parent process. It prints what it sees: settled items, seconds and its memory, at each step, as JSON lines."""
    known = job_of(add)
    assert known is not None
    options = with_options(with_options(RunOptions(), known.options), {"workers": workers})
    place, watch = Place(url, ROOT), _Watch(max(1, items // STEPS))
    params = {"source": source, "path": path}
    if run:
        resume_job(known, run, options, place, observers=[watch])
    else:
        start_job(known, params, options, place, observers=[watch])


class _Watch:
    """An observer that tells of the opening, of the first item that is settled anew, and of every step from there."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._known = self._next = 0
        self._is_first = True

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunOpened):
            self._known = event.counts.settled
            self._next = (self._known // self._step + 1) * self._step
            self._say("opened", self._known, run=event.run)
        elif isinstance(event, Progressed):
            settled = event.counts.settled
            if self._is_first and settled > self._known:
                self._is_first = False
                self._say("first", settled)
            if settled >= self._next:
                self._next += self._step
                self._say("step", settled)

    def _say(self, what: str, settled: int, **more: Any) -> None:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
        seen = {"what": what, "settled": settled, "at": time.time(), "cpu": time.process_time(), "rss": resident}
        print(json.dumps(seen | more), flush=True)


# ---------------------------------------------------------------------------------------------------- the measurer


@dataclass
class Step:
    """A tenth of the items: nanoseconds an item, those of them that the parent and the server computed, and the parent's
    resident bytes at its end.
    """

    settled: int
    ns_per_item: float
    parent_ns: float
    server_ns: float
    rss: int


@dataclass
class Found:
    """What was measured for one source. ledger: bytes by table after VACUUM. resumed_s: from the start of the process that
    resumes to its first new item, imports included.
    """

    source: str
    items: int
    steps: list[Step] = field(default_factory=list)
    chunks: int = 0
    ledger: dict[str, int] = field(default_factory=dict)
    full: int = 0
    resumed_s: float = 0.0
    opened_s: float = 0.0
    show_s: float = 0.0
    exact: bool = False

    @property
    def drift(self) -> float:
        """How much longer an item of the last step took than one of the first full one."""
        return self.steps[-1].ns_per_item / self.steps[0].ns_per_item - 1

    @property
    def growth(self) -> int:
        return max(step.rss for step in self.steps) - self.steps[0].rss


class Parent:
    """A process that carries a run out, and what it says."""

    def __init__(self, url: str, source: str, path: str, items: int, workers: int, run: str = "") -> None:
        code = "import sys; from benchmarks.scale import carry_out; a = sys.argv; carry_out(*a[1:4], int(a[4]), int(a[5]), a[6])"
        command = [sys.executable, "-c", code, url, source, path, str(items), str(workers), run]
        self.began = time.time()
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)

    def kill(self) -> None:
        """As the out-of-memory killer would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def end(self) -> None:
        """Let it come to its end. Raises RuntimeError when that is a bad one."""
        if code := self._process.wait():
            raise RuntimeError(f"the parent ended with {code}")


def measure(server: Server, source: str, items: int, workers: int, folder: Path, tell: Callable[[str], None]) -> Found:
    """Both runs of one source in a database of its own."""
    name = f"scale_{source}"
    with create_engine(server.url(), isolation_level="AUTOCOMMIT").connect() as admin:
        admin.exec_driver_sql(f"DROP DATABASE IF EXISTS {name}")
        admin.exec_driver_sql(f"CREATE DATABASE {name}")
    url = server.url(name)
    engine = create_engine(url)
    path = make(engine, source, items, folder)
    found = Found(source, items)
    tell(f"{source}: {items:,} items are there; the first run begins")
    found.steps = _uninterrupted(Parent(url, source, path, items, workers), server, tell)
    _weigh(engine, found)
    tell(f"{source}: the second run begins, and is killed near its end")
    _interrupted(url, source, path, items, workers, found)
    found.exact = _is_exact(engine, items, runs=2)
    engine.dispose()
    return found


def make(engine: Engine, source: str, items: int, folder: Path) -> str:
    """The table or the file; returns the file's path."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE scale_done (items bigint, total numeric)"))
        if source == "keyset":
            connection.execute(text("CREATE TABLE scale_item (id bigint PRIMARY KEY)"))
            connection.execute(text("INSERT INTO scale_item SELECT generate_series(1, :n)"), {"n": items})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
    path = folder / "items.txt"
    if source == "file":
        with path.open("w") as file:
            file.writelines(f"{number}\n" for number in range(1, items + 1))
    return str(path)


def _uninterrupted(parent: Parent, server: Server, tell: Callable[[str], None]) -> list[Step]:
    steps: list[Step] = []
    before: dict[str, Any] = {}
    for line in parent.lines():
        line["server"] = cpu_of(server)
        if line["what"] == "step":
            took = {name: (line[name] - before[name]) / (line["settled"] - before["settled"]) * 1e9 for name in _CLOCKS}
            steps.append(Step(line["settled"], took["at"], took["cpu"], took["server"], line["rss"]))
            tell(f"  {_shown(steps[-1])}")
        if line["what"] in ("first", "step"):
            before = line
    parent.end()
    return steps


def cpu_of(server: Server) -> float:
    """Seconds that the server's processes have computed: those that are there, and those that ended."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended; its parent has its time
        if server.pid in (int(stat.parent.name), int(fields[1])):
            own = 4 if int(stat.parent.name) == server.pid else 2
            total += sum(map(int, fields[11 : 11 + own]))
    return total / os.sysconf("SC_CLK_TCK")


def _shown(step: Step) -> str:
    return (
        f"{step.settled:>12,} {step.ns_per_item:>12,.0f} {step.parent_ns:>10,.0f} {step.server_ns:>10,.0f} "
        f"{step.rss / 1e6:>10.1f}"
    )


def _interrupted(url: str, source: str, path: str, items: int, workers: int, found: Found) -> None:
    parent, run = Parent(url, source, path, items, workers), ""
    for line in parent.lines():
        run = line.get("run", run)
        if line["settled"] >= items * KILLED_AT - items // STEPS:
            break
    parent.kill()
    again = Parent(url, source, path, items, workers, run)
    for line in again.lines():
        if line["what"] == "opened":
            found.opened_s = line["at"] - again.began
        if line["what"] == "first":
            found.resumed_s = line["at"] - again.began
    again.end()
    began = time.monotonic()
    command = [sys.executable, "-m", "batchrun", "show", run, "--json", "--database-url", url]
    shown = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    found.show_s = time.monotonic() - began
    if (shown["done"], shown["pending"]) != (items, 0):
        raise RuntimeError(f"the resumed run of {source} says {shown}")


def _weigh(engine: Engine, found: Found) -> None:
    sizes = text("SELECT pg_total_relation_size(cast(:name AS regclass))")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        names = [f"batchrun_{name}" for name in LEDGER]
        for name in names:
            connection.exec_driver_sql(f"VACUUM {name}")
            found.ledger[name] = int(connection.execute(sizes, {"name": name}).scalar_one())
        found.chunks = int(connection.execute(text("SELECT count(*) FROM batchrun_chunk")).scalar_one())
        for name in names:
            connection.exec_driver_sql(f"VACUUM FULL {name}")
            found.full += int(connection.execute(sizes, {"name": name}).scalar_one())


def _is_exact(engine: Engine, items: int, runs: int) -> bool:
    """Do the effects of all runs add up, item by item?"""
    with engine.connect() as connection:
        count, total = connection.execute(text("SELECT sum(items), sum(total) FROM scale_done")).one()
    return (int(count), int(total)) == (runs * items, runs * items * (items + 1) // 2)


def as_text(found: Sequence[Found]) -> str:
    """The tables."""
    return "\n".join(line for one in found for line in _lines(one))


def _lines(one: Found) -> Iterator[str]:
    size = sum(one.ledger.values())
    yield f"{one.source}: {one.items:,} items in {one.chunks:,} chunks"
    yield f"  {'settled':>12} {'ns an item':>12} {'parent ns':>10} {'server ns':>10} {'parent MB':>10}"
    yield from (f"  {_shown(step)}" for step in one.steps)
    yield f"  the last step took {one.drift:+.1%} beside the first; the parent grew by {one.growth / 1e6:.1f} MB at most"
    in_all = f"{size / one.items:.2f} bytes an item, {size / max(1, one.chunks):.0f} a chunk"
    yield f"  ledger after VACUUM: {in_all}; after VACUUM FULL: {one.full / one.items:.2f} bytes an item"
    yield f"  kill -9 and resume: opened after {one.opened_s:.2f} s, first new item after {one.resumed_s:.2f} s, imports included"
    yield f"  batchrun show: {one.show_s:.2f} s; effects: {'each exactly once' if one.exact else 'WRONG'}"


def main() -> None:
    """Run what is asked for and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--items", type=int, default=10_000_000, help="default: %(default)s")
    parser.add_argument("--source", choices=("keyset", "file", "both"), default="both", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there as well")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended also then
    sources = ("keyset", "file") if given.source == "both" else (given.source,)
    server = Server(**SETTINGS).start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = [measure(server, one, given.items, given.workers, Path(folder), print) for one in sources]
    finally:
        server.close()
    print(as_text(found))
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    if not all(one.exact for one in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
