"""How long batchrun takes to start, beside what no program of its kind can do without: ``python -m benchmarks.startup``.

    help         batchrun --help                                        python -c "import typer"
    first item   from the start of batchrun run JOB, of a small job     python -c "import sqlalchemy.orm, psycopg2"
                 on SQLite, to the first line of its task
    whole run    the same to the end of the command                     the same
    worker       from the launch of a worker after the first to its     python -c pass
                 being ready, as it replaces one that died; also with
                 a connection made, and where the job takes 0.3 s to
                 import

Each round does everything once, so that a busy machine is busy for all; what is compared is of one round, and the median
of the rounds is shown. Bytecode is written before, as pip writes it when it installs. Needs the extra ``dev``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
JOB = '''
"""A small job."""
import time
from pathlib import Path

from sqlalchemy import create_engine, text

from batchrun import job

BEGAN = Path(__file__).parents[1] / "began"


@job()
def work(session, item: int) -> None:
    if not BEGAN.exists():
        BEGAN.write_text(str(time.monotonic()))
    session.execute(text("SELECT 1"))


@work.items
def items():
    return range(8)


def connect(url):
    create_engine(url).connect()
'''
HEAVY = """
import time
until = time.process_time() + 0.3
while time.process_time() < until:
    pass
"""
STARTS = 6
"""Workers that one process starts for one measurement; the first, for which a fork server is started, does not count."""


@dataclass(frozen=True)
class Measured:
    """Seconds on the clock and of the processor (None: not measured)."""

    wall_s: float
    cpu_s: float | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table: medians. limit: of the ratio, or of milliseconds for a worker."""

    name: str
    wall_ms: float
    cpu_ms: float | None
    beside: str
    wall_ratio: float
    cpu_ratio: float | None
    limit: str


# ---------------------------------------------------------------------------------------------------- measuring
def command(*arguments: str, cwd: Path = ROOT) -> Measured:
    """Run a command to its end; the processor's time is that of itself, without workers."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(arguments, cwd=cwd, env=environment(), check=True, stdin=subprocess.DEVNULL, capture_output=True)
    wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Measured(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BATCHRUN_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, "PYTHONPATH": str(ROOT)}


def batchrun(*arguments: str) -> list[str]:
    script = Path(sys.executable).with_name("batchrun")
    return [str(script), *arguments] if script.exists() else [sys.executable, "-m", "batchrun", *arguments]


def run_of_a_job(folder: Path) -> tuple[Measured, Measured]:
    """(until its first item, until its end)."""
    for path in [*folder.glob("batchrun.db*"), folder / "began"]:
        path.unlink(missing_ok=True)
    began = time.monotonic()
    whole = command(*batchrun("run", "work", "-j", "2"), cwd=folder)
    return Measured(float((folder / "began").read_text()) - began), whole


def worker_start(folder: Path, kind: str, url: str, *, connects: bool = False) -> Measured:
    """The median of some workers' starts in one process of its own."""
    code = f"from benchmarks.startup import start_workers; start_workers({str(folder)!r}, {kind!r}, {url!r}, {connects})"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), check=True, stdin=subprocess.DEVNULL, capture_output=True
    ).stdout  # fmt: skip
    return Measured(statistics.median(json.loads(told)))


def start_workers(folder: str, kind: str, url: str, connects: bool) -> None:
    """What that process does. kind: "copy", the fork server of a command, or "interpreter", that of ``run_parallel``."""
    from batchrun.database.engines import spec_of
    from batchrun.execution.packing import pack_work
    from batchrun.execution.preloading import fork_server_from_here, what_is_open
    from batchrun.execution.processes import Launcher
    from batchrun.execution.work import Work
    from batchrun.loading import load_job
    from batchrun.options import RunOptions
    from batchrun.tasks import task_shape

    before = what_is_open()
    job = load_job(Path(folder), "work")
    work = Work("benchmark0", "work", job.task, task_shape(job.task, has_session=True), RunOptions(), spec_of(url))
    if connects:
        work.initializer = Connecting(url)
    if kind == "copy":
        assert fork_server_from_here(work.drivers, before)
    launcher = Launcher(None, folder, pack_work(work), preload=work.drivers)
    print(json.dumps([one_start(launcher, number) for number in range(STARTS)][1:]))


def one_start(launcher: object, number: int) -> float:
    """Seconds until a worker is ready; it is killed then."""
    import pickle

    from batchrun.execution.orders import Ready
    from batchrun.execution.processes import Launcher, claims_pipe, worker_pipe

    assert isinstance(launcher, Launcher)
    ours, theirs = worker_pipe()
    offers, claims = claims_pipe()
    began = time.perf_counter()
    process = launcher.launch(theirs, claims, None, number)
    theirs.close()
    claims.close()
    while not isinstance(pickle.loads(ours.recv_bytes()), Ready):  # noqa: S301 - of a worker of ours
        continue
    took = time.perf_counter() - began
    process.kill()
    process.close()
    offers.close()
    return took


class Connecting:
    """An initializer that makes a connection of its own, as an item would."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self) -> None:
        from jobs.one import connect  # type: ignore[import-not-found, import-untyped, unused-ignore]

        connect(self.url)


# ---------------------------------------------------------------------------------------------------- the rounds
@contextmanager
def projects() -> Iterator[tuple[Path, Path]]:
    """A project with a small job, and one whose job takes long to import."""
    with tempfile.TemporaryDirectory() as home:
        made = []
        for name, top in (("small", ""), ("heavy", "import heavy\n")):
            folder = Path(home) / name
            (folder / "jobs").mkdir(parents=True)
            (folder / "config.toml").touch()
            (folder / "heavy.py").write_text(HEAVY)
            (folder / "jobs" / "one.py").write_text(JOB.replace("import time\n", f"import time\n{top}", 1))
            made.append(folder)
        yield made[0], made[1]


def one_round(small: Path, heavy: Path, server: str | None) -> dict[str, Measured]:
    sqlite = f"sqlite:///{small / 'other.db'}"
    measures: dict[str, Callable[[], Measured]] = {
        "pass": lambda: command(sys.executable, "-c", "pass"),
        "typer": lambda: command(sys.executable, "-c", "import typer"),
        "help": lambda: command(*batchrun("--help")),
        "sqlalchemy": lambda: command(sys.executable, "-c", "import sqlalchemy.orm, psycopg2"),
        "worker of a command": lambda: worker_start(small, "copy", sqlite),
        "worker of run_parallel": lambda: worker_start(small, "interpreter", sqlite),
        "worker, connected to SQLite": lambda: worker_start(small, "copy", sqlite, connects=True),
        "worker of a command, job of 0.3 s": lambda: worker_start(heavy, "copy", sqlite),
        "worker of run_parallel, job of 0.3 s": lambda: worker_start(heavy, "interpreter", sqlite),
    }
    if server:
        measures["worker, connected to PostgreSQL"] = lambda: worker_start(small, "copy", server, connects=True)
    found = {name: measure() for name, measure in measures.items()}
    found["first item"], found["whole run"] = run_of_a_job(small)
    return found


def table(rounds: list[dict[str, Measured]]) -> list[Row]:
    beside = {"help": ("typer", "2 x"), "first item": ("sqlalchemy", "2 x"), "whole run": ("sqlalchemy", "")}
    rows = []
    for name in ["help", "first item", "whole run", *(name for name in rounds[0] if name.startswith("worker"))]:
        other, limit = beside.get(name, ("pass", "40 ms" if "0.3 s" not in name or "command" in name else ""))
        pairs = [(one[name], one[other]) for one in rounds]
        cpus = [(a.cpu_s, b.cpu_s) for a, b in pairs if a.cpu_s and b.cpu_s]
        rows.append(
            Row(
                name,
                1000 * statistics.median(a.wall_s for a, _ in pairs),
                1000 * statistics.median(a for a, _ in cpus) if cpus else None,
                other,
                statistics.median(a.wall_s / b.wall_s for a, b in pairs),
                statistics.median(a / b for a, b in cpus) if cpus else None,
                limit,
            )
        )
    return rows


def as_text(rows: list[Row]) -> str:
    head = f"{'':38} {'wall ms':>8} {'cpu ms':>8}  {'beside':10} {'x wall':>7} {'x cpu':>7}  limit"
    lines = [
        f"{row.name:38} {row.wall_ms:8.0f} {number(row.cpu_ms, 0):>8}  {row.beside:10} {row.wall_ratio:7.2f} "
        f"{number(row.cpu_ratio, 2):>7}  {row.limit}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main() -> None:
    """Measure, and print a table, or with --json every number."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=7, help="at least 5 (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there as well")
    parser.add_argument("--no-postgres", action="store_true", help="start no server; leave its line out")
    given = parser.parse_args()
    if given.rounds < 5:
        parser.error("--rounds: at least 5")
    with ExitStack() as stack:
        small, heavy = stack.enter_context(projects())
        server = None
        if not given.no_postgres:
            from tests.postgres import Server

            server = stack.enter_context(Server()).url().replace("postgresql://", "postgresql+psycopg2://")
        one_round(small, heavy, server)  # writes bytecode, and fills the system's caches
        rounds = [one_round(small, heavy, server) for _ in range(given.rounds)]
    rows = table(rounds)
    print(
        f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores, {given.rounds} rounds\n{as_text(rows)}"
    )
    if given.json:
        data = {"rows": [asdict(row) for row in rows], "rounds": [{k: asdict(v) for k, v in one.items()} for one in rounds]}
        given.json.write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
