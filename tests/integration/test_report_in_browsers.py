"""The report in real headless browsers, at the widths of a screen and of a phone: it fits, and its texts can be read."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from batchrun.insight import Insight
from batchrun.reporting.figures import Overview
from batchrun.reporting.html_report import Sheet, page
from batchrun.reporting.html_style import DARK, LIGHT, contrast
from batchrun.runs import Counts, RunStatus
from tests.support.browsers import CHROMIUM, Look, by_chromium, by_servo
from tests.support.insights import FAILURES, GROUPS, HOSTILE, insight, overview, record

WIDTHS = (1280, 400)
MADE = "2026-11-27 08:00:00 UTC"
LONG = "x" * 200
LARGE = Counts(planned=60_000_000, done=58_000_000, failed=1)
SHEETS = {
    "failed": Sheet(overview(job=HOSTILE, note=HOSTILE, params={HOSTILE: HOSTILE, "long": LONG}), FAILURES, MADE),
    "large": Sheet(Overview(record(RunStatus.RUNNING, LARGE, total=10**8), insight(256, 7200.0, 9000.0), GROUPS), (), MADE),
    "empty": Sheet(Overview(record(RunStatus.DONE, Counts(), total=0), Insight()), (), MADE),
    "unmeasured": Sheet(Overview(record(RunStatus.INTERRUPTED, Counts(planned=9, done=4))), (), MADE),
}
PICTURES = {"failed": 6, "large": 6, "empty": 0, "unmeasured": 1}

Browser = Callable[[dict[str, str], tuple[int, ...], Path], list[Look]]
BROWSERS: dict[str, tuple[Browser, dict[str, str]]] = {"servo": (by_servo, LIGHT)}
if CHROMIUM:
    BROWSERS |= {"chromium": (by_chromium, LIGHT), "chromium-dark": (partial(by_chromium, dark=True), DARK)}


@pytest.mark.parametrize("name", BROWSERS)
def test_the_report_fits_and_can_be_read_on_a_screen_and_on_a_phone(name: str, tmp_path: Path) -> None:
    browser, palette = BROWSERS[name]
    pages = {kind: page(sheet) for kind, sheet in SHEETS.items()}
    if name == "servo":  # which knows no overflow-wrap
        pages["failed"] = pages["failed"].replace(LONG, "x")
    if palette is DARK:  # the others have no colours of their own
        pages = {"failed": pages["failed"]}
    looks = browser(pages, WIDTHS, tmp_path)
    assert [(look.page, look.width) for look in looks] == [(kind, width) for kind in pages for width in WIDTHS]
    for look in looks:
        where = f"{look.page} at {look.width}"
        assert not look.scrolls, where
        assert (look.outside, look.unseen) == ([], []), where
        assert look.texts > (500 if look.page in ("failed", "large") else 15), where
        assert (look.scripts, look.alerts) == (0, 0), where
        assert len(look.pictures) == PICTURES[look.page], where
        assert all(wide > look.width * 0.6 and high > 15 for wide, high in look.pictures), where
        pairs = [tuple(map(hexadecimal, pair.split(" on "))) for pair in look.colours]
        assert {ground for _, ground in pairs} <= {palette["page"], palette["panel"]}, where
        assert [pair for pair in pairs if contrast(*pair) < 4.5] == [], where


def hexadecimal(colour: str) -> str:
    """``rgb(1, 2, 3)`` -> ``#010203``."""
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])
