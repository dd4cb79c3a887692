"""An anonymous run in sessions: a worker says seldom how far it is, and its death leaves nobody in doubt all the same."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from batchrun import run_parallel
from batchrun.execution import strategies
from batchrun.execution.orders import Message, Settled
from batchrun.execution.recording import Result
from batchrun.execution.tally import Tallies, Tally, pack_note
from batchrun.items import ItemError
from tests.support.effects import effect, effects, make, once

KILLS_AT, OTHERS = 30, 70
DIED = Path("died")
IS_WITHIN = threading.Event()
"""Set in the worker alone."""


def killed_once(session: Session, item: int) -> None:
    """Ends its worker at the first try of an item that others of its chunk come before."""
    if item == KILLS_AT and not DIED.exists():
        DIED.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    effect(session, item)


def killed_beside_another(session: Session, item: int) -> None:
    """The same while the other thread is within an item, and so has noted those before it."""
    if item == OTHERS and not DIED.exists():
        IS_WITHIN.set()
        threading.Event().wait(60)  # work, which the worker's death ends
    if item == KILLS_AT and not DIED.exists():
        assert IS_WITHIN.wait(60)
    killed_once(session, item)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def in_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchrun.chunks.ChunkSizer.size", lambda self, remaining: 40)
    monkeypatch.setattr("batchrun.execution.strategies.RECORDED_FLUSH_S", 3600.0)  # else a slow machine would tell in time
    monkeypatch.setattr("batchrun.execution.strategies.FLUSH_S", 3600.0)


def test_what_a_dead_worker_had_done_without_saying_so_is_not_done_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(database_url)
    in_one_chunk(monkeypatch)
    report = run_parallel(killed_once, range(80), database_url, workers=1, start_method="fork", progress=False)
    assert (report.done, report.ok) == (80, True)
    assert effects(database_url) == once(range(80))


def test_nor_what_its_other_thread_had_done(pg_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on SQLite, where only one of them is within a transaction."""
    make(pg_url)
    in_one_chunk(monkeypatch)
    report = run_parallel(killed_beside_another, range(80), pg_url, workers=1, threads=2, start_method="fork", progress=False)
    assert (report.done, report.ok) == (80, True)
    assert effects(pg_url) == once(range(80))


def test_control_without_the_tally_it_is(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(database_url)
    in_one_chunk(monkeypatch)
    monkeypatch.setattr("batchrun.execution.work.Work.keeps_tally", False)
    run_parallel(killed_once, range(80), database_url, workers=1, start_method="fork", progress=False)
    assert max(effects(database_url).values()) == 2


def test_what_somebody_waits_for_is_in_the_messages_alone(pg_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(pg_url)
    noted: list[Any] = []
    monkeypatch.setattr("batchrun.execution.pool.tally_file", lambda: noted.append(1))
    run_parallel(killed_once, range(3), pg_url, workers=1, start_method="fork", progress=False, results=True)
    run_parallel(killed_once, range(3), pg_url, workers=1, start_method="fork", progress=False, timeout=60)
    run_parallel(killed_once, range(3), pg_url, workers=1, start_method="fork", progress=False, name="on record")
    assert noted == []


def test_behind_a_failure_nothing_is_noted_until_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchrun.execution.strategies.FLUSH_S", 3600.0)
    from batchrun.execution.processes import tally_file

    tallies, theirs = tally_file()
    sent: list[Message] = []
    report = strategies.Reporter(7, sent.append, wants_values=False, patience_s=3600.0, tally=Tally(theirs))
    report.add(Result("done"))
    report.add(Result("done"))
    assert tallies.read() == {7: 2}
    report.add(Result("failed", ItemError("ValueError", "no")))
    report.add(Result("done"))
    assert tallies.read() == {7: 2}
    report.flush()
    report.add(Result("done"))
    assert tallies.read() == {7: 5}
    assert [message.amount for message in sent if isinstance(message, Settled)] == [4]
    theirs.close()
    tallies.close()


def test_each_thread_has_a_note_of_its_own_and_a_system_without_files_in_memory_has_them_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("os.memfd_create", raising=False)
    from batchrun.execution.processes import tally_file

    tallies, theirs = tally_file()
    assert isinstance(tallies, Tallies)
    assert tallies.read() == {}
    for thread, order, settled in [(1, 12, 5), (0, 11, 3), (0, 13, 1)]:
        tally = Tally(theirs, thread)
        os.pwrite(tally.descriptor, pack_note(order, settled), tally.at)
    assert {order: settled for order, settled in tallies.read().items() if order} == {12: 5, 13: 1}
    theirs.close()
    tallies.close()
