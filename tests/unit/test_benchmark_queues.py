"""What a queue's worker runs for one item, counted; and that what is missing for a peer is named."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, insert, select

from benchmarks.pages import put
from benchmarks.speed.driver import missing
from benchmarks.speed.peers import PEERS
from benchmarks.speed.queues.job import TRIAL
from benchmarks.speed.queues.run import batches
from benchmarks.speed.trial import Trial
from benchmarks.speed.work import Account, Base
from benchmarks.speed.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]
WORKER = """
from benchmarks.speed.queues import job
job.perform(0)
job.perform_many([1, 2])
print(job.workers_there(), job.counted("warmed"), job.counted("done"))
"""


def test_a_warm_up_only_makes_the_process_ready_and_items_are_counted_when_committed(tmp_path: Path, sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(Account), [{"id": key, "owner": "", "balance": 0, "note": ""} for key in (1, 2)])
    trial = Trial("rq", "orm_write", 2, 1, sqlite_url, str(tmp_path))
    environment = {**os.environ, TRIAL: trial.text()}
    ran = subprocess.run([sys.executable, "-c", WORKER], cwd=ROOT, env=environment, text=True, capture_output=True)
    assert ran.stdout.split() == ["1", "1", "2"], ran.stderr
    with engine.connect() as connection:
        assert connection.scalar(select(func.sum(Account.balance))) == 2
    engine.dispose()


def test_batches_leave_nothing_out() -> None:
    assert batches([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


def test_a_peer_that_is_missing_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = missing(["pool", "loky", "celery", "pgbench"])
    assert "pool" not in found
    assert "package loky is not installed (extra: benchmarks)" in found["loky"]
    assert "package celery is not installed (extra: benchmarks-queues)" in found["celery"]
    assert "PATH" in found["pgbench"]


def test_a_queue_without_its_broker_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "redis-server, is not on PATH" in missing(["celery"])["celery"]


def test_every_lane_has_a_peer_that_is_known() -> None:
    assert {lane.peer for workload in WORKLOADS.values() for lane in workload.lanes} <= set(PEERS)


def test_a_page_has_its_old_table_replaced_completely(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text((ROOT / "docs" / "benchmarks.md").read_text())
    for mark in ("benchmarks", "plots", "tpch"):
        put(page, mark, f"stale figures of {mark}\n\n| a |\n")
        put(page, mark, f"new {mark}\n")
        assert f"<!-- {mark} -->\n\nnew {mark}\n\n<!-- end of {mark} -->" in page.read_text()
    assert "stale figures" not in page.read_text()
