"""Workers that cannot be started: none at all, or no more of them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from batchrun import run_parallel
from batchrun.errors import BatchrunError
from batchrun.events import Notice
from batchrun.execution import processes
from batchrun.execution.processes import Launcher


def only(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """From so many workers on the system has no process left, and patience is short."""
    plain = Launcher.launch
    numbers: list[int] = []

    def launch(self: Launcher, *given: Any) -> Any:
        if len(numbers) >= workers:
            raise OSError("no process left")
        numbers.append(1)
        return plain(self, *given)

    monkeypatch.setattr(Launcher, "launch", launch)
    monkeypatch.setattr("batchrun.execution.pool.START_PATIENCE_S", 0.02)


def test_a_run_goes_on_with_the_workers_it_got_and_says_why_there_are_no_more(
    monkeypatch: pytest.MonkeyPatch, notices: list[Notice]
) -> None:
    only(monkeypatch, 1)
    done = iter(lambda: bool(notices), True)  # items until it has said so
    report = run_parallel(str, done, workers=2, start_method="fork", progress=False)
    assert report.ok
    said = "No further worker can be started: OSError: no process left. The run goes on with 1 of 2."
    assert [notice.text for notice in notices] == [said]


def test_a_run_that_gets_no_worker_at_all_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, 0)
    said = re.escape("Worker processes cannot be started: OSError: no process left.")
    with pytest.raises(BatchrunError, match=said):
        run_parallel(str, range(5), workers=2, start_method="fork", progress=False)


def test_nothing_of_a_start_that_failed_half_way_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where descriptors run out: the end of each test sees what is left."""
    failures: list[int] = []

    def claims_pipe() -> Any:
        if len(failures) < 3:
            failures.append(1)
            raise OSError("no descriptor left")
        return processes.claims_pipe()

    monkeypatch.setattr("batchrun.execution.pool.claims_pipe", claims_pipe)
    assert run_parallel(str, range(5), workers=1, start_method="fork", progress=False).done == 5
    assert len(failures) == 3
