"""Tasks of nothing but an item are called by the block: each item's outcome is its own all the same."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun import Skip, iter_parallel, run_parallel
from batchrun.execution.strategies import MOST_IN_BLOCK

MISDEEDS = {
    "value": None,
    "object": None,
    "ValueError": ValueError("no"),
    "StopIteration": StopIteration("no"),
    "SystemExit": SystemExit(3),
    "Skip": Skip("not this one"),
}


def deed(what: str) -> Any:
    if error := MISDEEDS.get(what):
        raise error
    if what == "uncrossable":
        return threading.Lock()
    return {"object": what} if what == "object" else len(what)


def wanted(what: str) -> tuple[str, Any, str]:
    if what == "uncrossable":
        return "failed", None, "TypeError"
    if what in ("value", "object"):
        return "done", {"object": what} if what == "object" else 5, ""
    return ("skipped" if what == "Skip" else "failed"), None, what


@pytest.mark.parametrize("workers", [0, 1])
def test_an_item_that_fails_in_a_block_fails_alone(workers: int) -> None:
    """First, last, in a row and between: StopIteration too, by which a block would end as if it were through."""
    kinds = [*MISDEEDS, "uncrossable"]
    items = [*kinds, *["value"] * 700, *kinds, *(kind for one in kinds for kind in (one, "value", "object")), *kinds]
    found = {}
    for outcome in iter_parallel(lambda item: deed(item[1]), enumerate(items), workers=workers, retries=0, progress=False):
        assert outcome.item[0] not in found
        found[outcome.item[0]] = (outcome.status.value, outcome.value, outcome.error.type if outcome.error else "")
    assert [found[number] for number in range(len(items))] == [wanted(item) for item in items]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["value", "value", "value", "value", *MISDEEDS, "uncrossable"]), max_size=3 * MOST_IN_BLOCK // 10)
)
def test_whatever_items_do_the_counts_are_theirs(items: list[str]) -> None:
    report = run_parallel(deed, items, workers=0, retries=0, results=True, progress=False)
    expected = [wanted(item) for item in items]
    assert report.results == [value for _, value, _ in expected]
    assert (report.done, report.failed, report.skipped) == tuple(
        sum(status == kind for status, _, _ in expected) for kind in ("done", "failed", "skipped")
    )
