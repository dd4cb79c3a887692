"""A run waits only for somebody who is at work."""

from __future__ import annotations

import pytest

from batchrun import run_parallel
from batchrun.execution.inline import InlineExecutor


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_run_that_has_nothing_left_ends_at_once(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """That its source has no more it learns when it asks for more, and nobody is at work then."""
    waits: list[float] = []

    def pause(self: InlineExecutor, wait_s: float) -> bool:
        waits.append(wait_s)
        return False

    monkeypatch.setattr(InlineExecutor, "_pause", pause)
    assert run_parallel(abs, iter(range(count)), workers=0, progress=False).done == count
    assert not any(waits)
