"""What a worker had settled, but had not told when it died: the ledger knows it, and the parent asks."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from batchrun import Context, Report, Retry, Skip, run_parallel
from batchrun.books import DurableBook, Known
from batchrun.execution import strategies
from batchrun.execution.recording import Recorder
from tests.support import oracle
from tests.support.crashes import die, once
from tests.support.oracle import assert_exactly_once

ITEMS = range(120)
RETRIED, FAILED, SKIPPED, LAST = 100, 101, 102, 103


class Deliberate(Exception):
    """What the failing item raises."""


class DiesAfterTroubles:
    """One item is to be retried, one fails, one is skipped, and the next kills the worker before any of it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, session: Session, item: int, ctx: Context) -> None:
        if item == RETRIED and ctx.attempt == 1:
            raise Retry(after=0)
        if item == FAILED:
            raise Deliberate("this one")
        if item == SKIPPED:
            raise Skip("that one")
        oracle.work(session, item, ctx.attempt)
        if item == LAST and once(self.folder, "last"):
            die()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers, which are forked, tell what they settled at the end of a chunk only."""
    monkeypatch.setattr(strategies, "FLUSH_S", 3600.0)
    monkeypatch.setattr(strategies, "RECORDED_FLUSH_S", 3600.0)


def run(task: Any, url: str, **options: Any) -> Report:
    return run_parallel(task, ITEMS, url, name="silent", workers=1, start_method="fork", progress=False, **options)


@pytest.mark.usefixtures("silent")
def test_what_was_not_reported_is_read_from_the_ledger(database_url: str, tmp_path: Path) -> None:
    oracle.create(database_url, ITEMS)
    report = run(DiesAfterTroubles(tmp_path), database_url)
    assert (report.done, report.failed, report.skipped, report.retries, report.pending) == (118, 1, 1, 1, 0)
    assert [(one.item, one.error.message) for one in report.failures if one.error] == [(FAILED, "this one")]
    assert_exactly_once(database_url, "silent", ITEMS, skipped=[SKIPPED])


@pytest.mark.usefixtures("silent")
def test_control_taking_all_that_is_settled_for_done_loses_the_retry(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = DurableBook.known
    monkeypatch.setattr(DurableBook, "known", lambda book, order: Known(asked(book, order).settled, {}))
    oracle.create(database_url, ITEMS)
    report = run(DiesAfterTroubles(tmp_path), database_url)
    assert (report.done, report.pending, report.failures) == (117, 1, ())


@pytest.mark.parametrize("threads", [1, 2])
def test_an_item_outside_a_transaction_whose_worker_dies_waiting_to_write_is_unknown_and_runs_once(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """The task has returned and only "done" is not written: the worker waits, tells that it waits, and is killed."""
    plain = Recorder.end_outside

    def waits_and_dies(recorder: Recorder, spot: Any) -> None:
        if (tmp_path / "ran-5").exists() and once(tmp_path, "died"):
            recorder._link._voice.waiting()
            os.kill(os.getpid(), signal.SIGKILL)
        plain(recorder, spot)

    def task(item: int) -> None:
        with (tmp_path / f"ran-{item}").open("a") as log:
            log.write("x")

    monkeypatch.setattr(Recorder, "end_outside", waits_and_dies)
    report = run(task, database_url, transaction="none", threads=threads)
    unknown = [one.item for one in report.failures]
    assert 1 <= report.unknown == len(unknown) <= threads
    assert report.done == len(ITEMS) - len(unknown)
    ran = {item: len(path.read_text()) for item in ITEMS if (path := tmp_path / f"ran-{item}").exists()}
    assert max(ran.values()) == 1
    assert set(ran) | set(unknown) == set(ITEMS)
