"""The comparison on TPC-H: its arithmetic, what it counts, and that both programs do the same work rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from benchmarks.tpch.__main__ import Ran, rows, verdict_of
from jobs._models import Order
from tests.support import tpch
from tests.support.databases import engine_for

ROOT = Path(__file__).parents[2]


def test_the_ratio_is_of_each_round_and_judged_by_the_middle() -> None:
    found = verdict_of([Ran(10, 1, 1), Ran(30, 1, 1), Ran(30, 1, 1)], [Ran(5, 1, 1), Ran(10, 1, 1), Ran(10, 1, 1)])
    assert (found.found.middle, found.found.least) == (3.0, 2.0)
    assert found.word == "reached"


def test_the_table_has_orders_a_second_and_cpu_an_order() -> None:
    _, line = rows({"pool": [Ran(2.0, 1.0, 0.5)]}, 1000)
    assert line == ["pool", "2.0", "2.0 to 2.0", "500", "1,000", "500"]


def test_cpu_time_of_grandchildren_that_outlive_their_parent_is_counted() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    leaves = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {busy!r}])"
    command = [sys.executable, "-m", "benchmarks.tpch.timed", sys.executable, "-c", leaves]
    ran = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)
    assert json.loads(ran.stdout)["client_s"] >= 0.3


@pytest.mark.parametrize("way", ["each", "lists"])
def test_the_pool_program_computes_what_the_generator_did(tmp_path: Path, sqlite_url: str, way: str) -> None:
    tpch.load(sqlite_url, tpch.make(tmp_path, 0.001))
    engine = engine_for(sqlite_url)
    with Session(engine) as session:
        session.execute(delete(Order).where(Order.key > 800))  # a commit each: 200 are enough to be sure
        session.commit()
        subprocess.run([sys.executable, "-m", "benchmarks.tpch.pool", sqlite_url, "1", "10", way], cwd=ROOT, check=True)
        totals = session.execute(select(Order.total_cents, Order.recomputed_cents)).all()
    engine.dispose()
    assert len(totals) == 200
    assert all(total == recomputed for total, recomputed in totals)
