"""While every worker has work enough, the parent gathers what they say instead of waking up for each message."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from batchrun import run_parallel, runner
from batchrun.execution.pool import LocalPool

ITEMS = range(600)


def short(item: int) -> None:
    time.sleep(0.002)  # work: longer than reports are gathered by the worker


def times_woken(monkeypatch: pytest.MonkeyPatch) -> int:
    woken = 0
    plain = LocalPool.wait

    def counted(pool: LocalPool, timeout_s: float) -> Iterator[Any]:
        nonlocal woken
        woken += 1
        return plain(pool, timeout_s)

    monkeypatch.setattr(LocalPool, "wait", counted)
    assert run_parallel(short, ITEMS, workers=1, progress=False).done == len(ITEMS)
    return woken


def test_the_parent_wakes_up_for_several_items_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert times_woken(monkeypatch) < len(ITEMS) / 2


def test_control_without_naps_it_wakes_up_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "NAP_S", 0.0)
    assert times_woken(monkeypatch) > len(ITEMS) / 2
