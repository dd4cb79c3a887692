"""What a run leaves about its time: every item is in the timeline, the histogram and a lane, also after a resume."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from batchrun import Skip, run_parallel
from batchrun.insight import Insight
from batchrun.ledger.insights import read_insight
from batchrun.ledger.schema import tables


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


def insight_of(url: str, run: str) -> Insight:
    engine = create_engine(url)
    try:
        found = read_insight(engine, tables(), run)
    finally:
        engine.dispose()
    assert found is not None
    return found


def some(session: Session, item: int) -> None:
    session.execute(text("SELECT 1"))
    if item == 3:
        raise ValueError("three")
    if item == 4:
        raise Skip("four")


def batch(session: Session, items: list[int]) -> None:
    for item in items:
        some(session, item)


def deadly(session: Session, item: int) -> None:
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "options", [{}, {"transaction": "chunk"}, {"read_only": True}, {"batched": True}, {"threads": 2}, {"workers": 0}], ids=str
)
def test_every_item_is_counted_once(url: str, options: dict[str, Any]) -> None:
    task = batch if options.get("batched") else some
    report = run_parallel(task, range(40), url, name="n", progress=False, **{"workers": 2, **options})
    found = insight_of(url, report.run)
    assert (report.done, report.failed, report.skipped) == (38, 1, 1)
    assert (sum(found.done), sum(found.failed)) == (38, 1)
    assert found.latency.items == 40
    assert sum(lane.items for lane in found.lanes) == 40
    assert found.errors == {"ValueError": 1}
    assert 0 < len(found.slowest) <= 5
    for lane in found.lanes:
        parts = lane.start_up_s + lane.waiting_s + lane.task_s + lane.commit_s
        assert parts == pytest.approx(lane.ended_s - lane.began_s, abs=0.01)
        assert sum(lane.busy) <= lane.ended_s - lane.began_s + 0.05


def test_a_death_is_marked_in_its_lane_and_a_resume_goes_on(url: str) -> None:
    report = run_parallel(deadly, range(10), url, name="n", workers=2, progress=False)
    assert report.quarantined == 1
    found = insight_of(url, report.run)
    assert sum(1 for lane in found.lanes if lane.died) == 3
    assert len([note for note in found.notes if note.level == "WARNING"]) >= 3
    assert found.errors == {"WorkerDied": 1}
    assert (sum(found.done), sum(found.failed)) == (9, 1)


def test_an_anonymous_run_keeps_none(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    assert run_parallel(some, [1], url, workers=0, progress=False).ok
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM sqlite_master")).scalar() == 0
    engine.dispose()
