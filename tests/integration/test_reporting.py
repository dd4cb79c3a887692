"""When a worker tells what it settled: seldom where the ledger or a tally can tell too, at once where somebody waits for it."""

from __future__ import annotations

from typing import Any

import pytest

from batchrun.execution import strategies
from batchrun.execution.orders import Settled
from batchrun.execution.recording import Result
from tests.support import worker_side
from tests.support.worker_side import WorkerSide, writing

ITEMS = range(1, 11)


@pytest.mark.parametrize(
    ("named", "tally", "options", "messages"),
    [
        (True, False, {}, 1),
        (True, False, {"timeout": 60.0}, 10),
        (False, True, {}, 1),
        (False, True, {"timeout": 60.0}, 10),
        (False, False, {}, 10),
    ],
    ids=["recorded", "recorded, with a time limit", "anonymous", "anonymous, with a time limit", "anonymous, inline"],
)
def test_only_where_somebody_else_can_tell_reports_gather(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, named: bool, tally: bool, options: dict[str, Any], messages: int
) -> None:
    if not tally:
        monkeypatch.setattr("batchrun.execution.work.Work.keeps_tally", False)
    monkeypatch.setattr(strategies, "FLUSH_S", 0.0)
    monkeypatch.setattr(strategies, "RECORDED_FLUSH_S", 3600.0)
    worker_side.create(sqlite_url, ITEMS)
    sent: list[Any] = []
    with WorkerSide(sqlite_url, writing, named=named, **options) as side:
        monkeypatch.setattr(side._orders, "_send", sent.append)
        side._orders.run(side.order(ITEMS))
    assert len([message for message in sent if isinstance(message, Settled)]) == messages


def test_a_failure_does_not_wait_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be one too many for the run."""
    monkeypatch.setattr(strategies, "FLUSH_S", 0.0)
    sent: list[Any] = []
    report = strategies.Reporter(1, sent.append, wants_values=False, patience_s=3600.0)
    report.add(Result("done"))
    assert sent == []
    report.add(Result("failed"))
    assert [message.amount for message in sent] == [2]
