"""The owner of a run: its lease, its heartbeat, who is named to those who come too late, and what a woken owner may do."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from batchrun import iter_parallel, run_parallel
from batchrun.errors import AlreadyRunning
from batchrun.heartbeat import Heartbeat
from batchrun.ledger import liveness
from tests.support import scripts
from tests.support.databases import engine_for
from tests.support.effects import effect, effects, make, once, scalar
from tests.support.waiting import wait_until

OWNER = """
    import os, sys, time
    from pathlib import Path
    from batchrun import run_parallel
    from batchrun.errors import AlreadyRunning
    from tests.support.effects import effect
    def task(session, item):
        effect(session, item)
        Path("begun").touch()
        while not Path("go").exists():
            time.sleep(0.01)  # work
    Path(f"ready-{os.getpid()}").touch()
    while len(sys.argv) > 2 and not Path("start").exists():
        time.sleep(0.001)  # work
    began = time.monotonic()
    try:
        print("done", run_parallel(task, range(6), sys.argv[1], workers=1, name="owned", start_method="fork").done)
    except AlreadyRunning as error:
        print(error.exit_code, round(time.monotonic() - began, 3), error)
"""


def quickly(session: Session, item: int) -> None:
    effect(session, item)


def run(url: str) -> Any:
    return run_parallel(quickly, range(6), url, workers=0, name="owned", accept_changes=True)


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> float:
    """For those who ask whether another owner lives."""
    monkeypatch.setattr(liveness, "LEASE_S", 1.0)
    return 1.0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts OWNER with arguments; none of them outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def make_one(*arguments: str) -> subprocess.Popen[str]:
        started.append(scripts.start(tmp_path, OWNER, *arguments))
        return started[-1]

    yield make_one
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def silent_s(url: str) -> float:
    return float(scalar(url, "SELECT extract(epoch FROM clock_timestamp()) - heartbeat FROM batchrun_run"))


def test_of_four_that_resume_at_once_three_are_told_who_was_quicker(
    database_url: str, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    make(database_url)
    first = start(database_url)
    wait_until((tmp_path / "begun").exists, 30)
    first.kill()
    first.communicate()
    racers = [start(database_url, "wait") for _ in range(4)]
    wait_until(lambda: all((tmp_path / f"ready-{racer.pid}").exists() for racer in racers), 60)
    (tmp_path / "start").touch()
    wait_until(lambda: sum(racer.poll() is not None for racer in racers) >= 3, 30)
    (tmp_path / "go").touch()
    said = {racer.pid: racer.communicate(timeout=30)[0].strip() for racer in racers}
    (winner,) = [pid for pid, text in said.items() if text == "done 6"]
    losers = [text for pid, text in said.items() if pid != winner]
    assert [text.split()[0] for text in losers] == ["75"] * 3, said
    assert all(f"process {winner} on " in text for text in losers), said
    assert all(float(text.split()[1]) < 2.0 for text in losers), said
    assert effects(database_url) == once(range(6))


def stalled(url: str) -> Iterator[Any]:
    """A consumer that takes one outcome and then does something else for longer than the lease."""
    outcomes = iter_parallel(quickly, range(6), url, workers=0, name="owned", accept_changes=True)
    next(outcomes)
    until = time.monotonic() + 1.5
    wait_until(lambda: time.monotonic() > until)
    return outcomes


def test_a_consumer_that_takes_its_time_keeps_its_run(pg_url: str, short_lease: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchrun.heartbeat.HEARTBEAT_S", 0.1)
    make(pg_url)
    outcomes = stalled(pg_url)
    with pytest.raises(AlreadyRunning, match=f"process {os.getpid()} on "):
        run(pg_url)
    assert len(list(outcomes)) == 5
    assert effects(pg_url) == once(range(6))


def test_control_without_the_thread_it_loses_its_run_and_is_told(
    pg_url: str, short_lease: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Heartbeat, "_beat", lambda self: None)
    make(pg_url)
    outcomes = stalled(pg_url)
    assert run(pg_url).done == 6
    with pytest.raises(AlreadyRunning, match=f"was taken over by process {os.getpid()} on "):
        list(outcomes)
    assert effects(pg_url) == once(range(6))


def test_an_owner_that_stands_still_in_its_transaction_does_not_keep_its_run(pg_url: str, short_lease: float) -> None:
    """It was stopped in the midst of writing, and holds the run's row."""
    make(pg_url)
    outcomes = iter_parallel(quickly, range(6), pg_url, workers=0, name="owned", accept_changes=True)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    name = f"batchrun-owner:{scalar(pg_url, 'SELECT id FROM batchrun_run')[:8]}:quickly"
    stuck = create_engine(engine_for(pg_url).url, connect_args={"application_name": name})
    with stuck.connect() as connection:
        connection.execute(text("UPDATE batchrun_run SET note = 'stuck'"))
        assert run(pg_url).done == 6
        connection.invalidate()
    stuck.dispose()
    assert effects(pg_url) == once(range(6))


def test_an_owners_sessions_bear_its_runs_name_also_where_the_call_said_only_that_of_the_run(pg_url: str) -> None:
    """Or the next owner would not know whom to end."""
    make(pg_url)
    outcomes = iter_parallel(quickly, range(6), pg_url, workers=0, name="owned")
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    again = iter_parallel(quickly, range(6), pg_url, workers=0, name="owned")
    next(again)
    mine = "datname = current_database() AND application_name LIKE 'batchrun-owner:%'"
    found = scalar(pg_url, f"SELECT string_agg(DISTINCT application_name, ' ') FROM pg_stat_activity WHERE {mine}")
    assert found == f"batchrun-owner:{scalar(pg_url, 'SELECT id FROM batchrun_run')[:8]}:quickly"
    list(again)
    assert effects(pg_url) == once(range(6))
