"""The example jobs, run as jobs: right by an independent statement, and still right when a worker and the parent are killed."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.support import tpch
from tests.support.databases import engine_for
from tests.support.effects import scalar
from tests.support.scripts import ROOT

DRIVER = """
import json, sys
from pathlib import Path
from batchrun.api import Place, open_reading, resume_job, start_job
from batchrun.events import Progressed
from batchrun.loading import load_job
from batchrun.options import RunOptions, with_options
from batchrun.parameters import parse_params
from batchrun.plans import StopRequest

command, name, url, given, params = sys.argv[1:]
given = json.loads(given)
stop, stop_after, hold_at = StopRequest(), given.pop("stop_after", None), given.pop("hold_at", [])

def watch(event):
    if not isinstance(event, Progressed):
        return
    if stop_after is not None and event.counts.done >= stop_after and not stop.level:
        stop.request("enough")
    if hold_at and event.counts.done >= hold_at[0]:  # the parent stands still, and its workers soon have nothing to do
        hold_at.pop(0)
        print("held", flush=True)
        sys.stdin.readline()

folder = Path.cwd()
job = load_job(folder, name)
options = with_options(with_options(RunOptions(), job.options), given)
place = Place(url, folder)
if command == "run":
    report = start_job(job, parse_params(job, json.loads(params)), options, place, observers=[watch], stop=stop)
else:
    with open_reading(place) as reading:
        run = reading.newest_unfinished()
    report = resume_job(job, run, options, place)
print(json.dumps({"status": report.status, "planned": report.planned, "done": report.done, "pending": report.pending,
                  "workers": report.workers, "guarantee": report.guarantee, "retries": report.retries, "note": report.note}))
"""
ROLLUP = """
    SELECT count(*) FROM (
        SELECT origin, day, count(*) AS n, sum(CASE WHEN departure_delay IS NULL THEN 1 ELSE 0 END) AS gone,
               max(departure_delay) AS worst, sum(departure_delay) * 1.0 / count(departure_delay) AS mean
        FROM flights GROUP BY origin, day
    ) AS wanted FULL JOIN airport_days AS made ON made.origin = wanted.origin AND made.day = wanted.day
    WHERE made.origin IS NULL OR wanted.origin IS NULL OR n <> made.flights OR gone <> made.cancelled
       OR worst <> made.max_delay OR abs(mean - made.mean_delay) > 0.000001
"""
FLIGHTS = ROOT / "jobs" / "data" / "flights-2013-01.csv.gz"
TOTALS = """
    SELECT count(*) FROM orders LEFT JOIN (
        SELECT l_orderkey, sum(l_extendedprice_cents * (100 - l_discount_percent) / 100 * (100 + l_tax_percent) / 100) AS cents
        FROM lineitem GROUP BY l_orderkey
    ) AS lines ON l_orderkey = o_orderkey
    WHERE recomputed_cents IS NULL OR recomputed_cents <> cents OR recomputed_cents <> o_totalprice_cents
"""


@dataclass(frozen=True)
class Example:
    """A job. progress: how far it is. table: what it writes to. total: what ``progress`` is at the end. file: what it reads."""

    name: str
    progress: str
    table: str
    total: int
    file: str = ""

    @property
    def params(self) -> dict[str, str]:
        return {"file": self.file} if self.file else {}


IMPORT = Example("import_flights", "SELECT count(*) FROM flights", "flights", 27_004)
PART = Example(IMPORT.name, IMPORT.progress, IMPORT.table, 2_251, "part.csv")
"""Each twelfth line of the file, from every airport and day: for what does not depend on how many lines there are."""
ROLL_UP = Example("rollup_airport_days", "SELECT count(*) FROM airport_days", "airport_days", 93)
RECOMPUTE = Example("recompute_order_totals", "SELECT count(*) FROM orders WHERE recomputed_cents IS NOT NULL", "orders", 1500)
RECOMPUTE_EACH = Example("recompute_each_order_total", RECOMPUTE.progress, RECOMPUTE.table, RECOMPUTE.total)


# ------------------------------------------------------------------------------------------------------- the project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's folder: config.toml, jobs, and a driver that starts and resumes them."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "config.toml", folder)
    with gzip.open(FLIGHTS, "rt") as lines:
        header, *rest = lines
    (folder / PART.file).write_text("".join([header, *rest[::12]]))
    (folder / "driver.py").write_text(DRIVER)
    return folder


@pytest.fixture(scope="module")
def tpch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tpch.make(tmp_path_factory.mktemp("tpch"), scale=0.001)


def start(project: Path, command: str, job: Example, url: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "driver.py", command, job.name, url, json.dumps(options), json.dumps(job.params)],
        cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a driver; its report."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    report: dict[str, Any] = json.loads(out)
    return report


def run(project: Path, job: Example, url: str, **options: Any) -> dict[str, Any]:
    return end(start(project, "run", job, url, **options))


# -------------------------------------------------------------------------------------------------------- the answers


def check_import(url: str, total: int = IMPORT.total) -> None:
    """Each line of the file, or of the part of it, is there once: counted by airport, day, carrier and number, and summed up."""
    with gzip.open(FLIGHTS, "rt") as lines:
        rows = list(csv.DictReader(lines))
    rows = rows if total == IMPORT.total else rows[::12]
    assert len(rows) == total
    wanted = Counter((row["origin"], int(row["day"]), row["carrier"], int(row["flight"])) for row in rows)
    with engine_for(url).connect() as connection:
        found = connection.execute(text("SELECT origin, day, carrier, number, count(*) FROM flights GROUP BY 1, 2, 3, 4"))
        made = Counter({(origin, as_date(day).day, carrier, number): n for origin, day, carrier, number, n in found})
    assert made == wanted
    assert scalar(url, "SELECT sum(distance) FROM flights") == sum(int(row["distance"]) for row in rows)


def as_date(found: Any) -> date:
    return date.fromisoformat(found) if isinstance(found, str) else found


def check_rollup(url: str) -> None:
    assert scalar(url, ROLLUP) == 0


def check_totals(url: str) -> None:
    assert scalar(url, TOTALS) == 0


def check(url: str, job: Example) -> None:
    if job.name == IMPORT.name:
        check_import(url, job.total)
    else:
        {ROLL_UP.table: check_rollup, RECOMPUTE.table: check_totals}[job.table](url)


@pytest.mark.parametrize(
    ("database", "workers", "method", "jobs"),
    [
        ("sqlite_url", 1, "spawn", [IMPORT, ROLL_UP]),
        ("pg_url", 2, "fork", [PART, RECOMPUTE]),
        ("psycopg_url", 4, "forkserver", [PART, ROLL_UP]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_job_gives_the_right_answer(
    project: Path,
    tpch_folder: Path,
    request: pytest.FixtureRequest,
    database: str,
    workers: int,
    method: str,
    jobs: list[Example],
) -> None:
    """Each driver, start method and job; the kills below end with the answers of the other pairs of a job and a database."""
    url = request.getfixturevalue(database)
    options = {"workers": workers, "start_method": method}
    for job in jobs:
        if job.table == RECOMPUTE.table:
            tpch.load(url, tpch_folder)
            with pytest.raises(AssertionError):  # the statement sees what is not recomputed yet
                check_totals(url)
        report = run(project, job, url, **options)
        assert (report["status"], report["done"], report["pending"]) == ("done", job.total, 0)
        assert report["workers"] == workers
        assert report["guarantee"] == "exactly-once"
        check(url, job)


def test_a_job_that_was_asked_to_stop_is_finished_by_a_resume(project: Path, sqlite_url: str) -> None:
    report = run(project, PART, sqlite_url, workers=2, stop_after=800)
    assert (report["status"], report["note"]) == ("interrupted", "enough")
    assert 800 <= scalar(sqlite_url, PART.progress) < PART.total
    assert end(start(project, "resume", PART, sqlite_url, workers=1))["done"] == PART.total
    check_import(sqlite_url, PART.total)


# ------------------------------------------------------------------------------------------------------------- kills


@contextmanager
def frozen(url: str, table: str) -> Iterator[None]:
    """Nobody writes to the table meanwhile, so that what is killed is killed in the middle."""
    engine = engine_for(url)
    with engine.connect() as connection:
        if url.startswith("sqlite"):
            connection.exec_driver_sql("PRAGMA busy_timeout = 30000")
            connection.commit()
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"LOCK TABLE {table} IN SHARE MODE")
        yield
        connection.rollback()


def so_far(url: str, job: Example) -> int:
    try:
        return int(scalar(url, job.progress))
    except Exception:  # the table is not there yet
        return 0


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The workers of a driver: its grandchildren, below the fork server."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state not in "ZX":
                parents[int(folder.name)] = int(parent)
    return sorted(pid for pid, parent in parents.items() if parents.get(parent) == process.pid)


HOLD_AT = [1, 8]
"""Items done when the parent is held: so early that chunks are still small, and most of the work lies ahead."""


def held(process: subprocess.Popen[str]) -> None:
    """Return when the parent stands still."""
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n", process.communicate()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    print(file=process.stdin, flush=True)


def killed_twice_and_resumed(project: Path, job: Example, url: str, chance: random.Random) -> None:
    """A random worker dies in the middle, later the parent; a resume at once does the rest."""
    process = start(project, "run", job, url, workers=2, hold_at=HOLD_AT)
    try:
        held(process)
        with frozen(url, job.table):
            first = so_far(url, job)
            assert 0 < first < job.total
            go_on(process)
            os.kill(chance.choice(workers_of(process)), signal.SIGKILL)
        held(process)
        with frozen(url, job.table):
            reached = so_far(url, job)
            assert first < reached < job.total
            process.kill()
            process.wait()
    finally:
        process.kill()
        process.communicate()
    report = end(start(project, "resume", job, url, workers=2))
    assert (report["status"], report["done"], report["pending"]) == ("done", report["planned"], 0)
    assert so_far(url, job) == job.total


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="workers are found by /proc, which is not here")
@pytest.mark.parametrize(
    ("database_url", "jobs"),
    [("sqlite", [PART, RECOMPUTE_EACH]), ("postgresql", [PART, ROLL_UP])],
    indirect=["database_url"],
    ids=["sqlite", "postgresql"],
)
def test_nothing_is_lost_or_doubled_when_a_worker_and_then_the_parent_are_killed(
    project: Path, tpch_folder: Path, database_url: str, jobs: list[Example]
) -> None:
    """Batched, item by item and chunk by chunk; each of the three on both databases: test_crash_points.py."""
    chance = random.Random(20260228)
    for job in jobs:
        if job.table == RECOMPUTE.table:
            tpch.load(database_url, tpch_folder)
        killed_twice_and_resumed(project, job, database_url, chance)
        check(database_url, job)
