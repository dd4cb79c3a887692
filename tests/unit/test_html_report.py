"""The HTML report as text: nothing in it runs or asks anybody, every picture has words and numbers, its colours can be told."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

import pytest

from batchrun.insight import Insight
from batchrun.reporting import html_pictures as draw
from batchrun.reporting.figures import Overview
from batchrun.reporting.html_build import Html, joined, tag, told
from batchrun.reporting.html_report import Sheet, page
from batchrun.reporting.html_style import DARK, LIGHT, MARKS, TEXTS, contrast, style_sheet
from batchrun.runs import Counts, RunStatus
from tests.support import insights
from tests.support.insights import HOSTILE

MADE = "2026-11-27 08:00:00 UTC"
_VOID = ("meta", "br", "link", "wbr")


class Read(HTMLParser):
    """What a browser makes of a page: its elements in order, its texts; fails on one that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == name]


def made(seen: Overview, **given: object) -> str:
    return page(Sheet(seen, insights.FAILURES if seen.groups else (), MADE, **given))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def text() -> str:
    return made(insights.overview(job=HOSTILE, name=HOSTILE, note=HOSTILE, params={HOSTILE: HOSTILE}, owner=HOSTILE))


def test_no_item_and_no_message_becomes_markup(text: str) -> None:
    read = Read(text)
    assert not {"script", "img", "link", "iframe", "object", "form", "a"} & {name for name, _ in read.elements}
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>" in "".join(read.texts)


def test_control_characters_and_those_that_turn_the_writing_are_shown_as_escapes(text: str) -> None:
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    assert "\\u202eright to left\\u202c \\x00\\x1b[31m" in text
    assert "<bdi>" in text


def test_the_page_asks_nobody_and_runs_nothing(text: str) -> None:
    assert not re.search(r"https?:|//|url\(|@import|javascript:", re.sub(r"</?\w+", "", text))
    policy = next(one["content"] for one in Read(text).named("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_secrets_are_masked() -> None:
    seen = insights.overview(params={"token": "s3cret"}, note="s3cret", job="s3cret", owner="s3cret")
    seen.insight.note(1.0, "WARNING", "s3cret")  # type: ignore[union-attr]
    seen.insight.slow("s3cret", 99.0, 1)  # type: ignore[union-attr]
    assert "s3cret" not in made(seen, clean=lambda text: text.replace("s3cret", "***"))


def test_every_picture_has_a_role_a_title_a_description_and_its_numbers_behind_it(text: str) -> None:
    read = Read(text)
    pictures = [one for one in read.named("svg") if one.get("role") == "img"]
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) == 2 * len(pictures) > 0
    for picture in pictures:
        assert picture["aria-labelledby"] in ids
        assert picture["aria-describedby"] in ids
    assert all(one.get("aria-hidden") == "true" for one in read.named("svg") if one not in pictures)
    assert len(read.named("details")) == 3
    assert len(read.named("table")) == len(read.named("caption")) == 7


def test_the_numbers_behind_the_throughput_are_those_of_the_insight() -> None:
    seen = insights.overview()
    assert seen.insight is not None
    table = made(seen).partition("Items settled in each step")[2].partition("</table>")[0]
    rows = [re.findall(r"<span>(.*?)</span>", row) for row in table.split("<tr")[2:]]
    assert [int(row[1]) for row in rows] == seen.insight.done
    assert [int(row[2]) for row in rows] == seen.insight.failed


def test_counts_are_there_as_their_sum_and_the_commands_to_go_on() -> None:
    shown = "".join(Read(made(insights.overview(), command="batchrun --profile night")).texts)
    assert "11,400 planned = 11,215 done + 150 failed + 30 skipped + 2 quarantined + 3 unknown." in shown
    assert "batchrun --profile night retry 4f7k2m9xab" in shown
    assert "exactly-once: every item's effect" in shown
    assert "The first 20 of 155 items that went wrong" in shown
    assert "Worker 1 (pid 4101) at 38 s: killed by SIGKILL" in shown


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (Overview(insights.record(RunStatus.DONE, Counts(), total=0)), "Nothing was measured of where this run's time went"),
        (
            Overview(insights.record(RunStatus.DONE, Counts(), total=0), Insight()),
            "No item was settled in the time that was measured.",
        ),
        (
            Overview(insights.record(RunStatus.RUNNING, Counts(planned=9, done=4), total=10**8, ended=None)),
            f"This page shows it as it was at {MADE}, and does not change by itself.",
        ),
    ],
    ids=["unmeasured", "empty", "running"],
)
def test_a_run_with_little_to_show_has_a_report_too(seen: Overview, said: str) -> None:
    assert said in "".join(Read(made(seen)).texts)


def test_a_hundred_million_items_and_256_workers_make_a_page_of_less_than_half_a_megabyte() -> None:
    counts = Counts(planned=10**8, done=10**8)
    seen = Overview(insights.record(RunStatus.DONE, counts, total=10**8), insights.insight(256, 36_000.0, 2_800.0))
    text = made(seen)
    Read(text)
    assert len(text) < 500_000
    assert "100,000,000 planned = 100,000,000 done." in text


# ------------------------------------------------------------------------------------------------------- looks
@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_texts_have_a_contrast_of_4_5_and_marks_of_3(palette: dict[str, str]) -> None:
    for ground in ("page", "panel"):
        assert min(contrast(palette[name], palette[ground]) for name in TEXTS) >= 4.5
        assert min(contrast(palette[name], palette[ground]) for name in MARKS) >= 3


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


DEUTERANOPIA = ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969))
PROTANOPIA = ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052))
TRITANOPIA = ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304))
"""How people see who lack one kind of cone (Machado, Oliveira, Fernandes 2009)."""


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("seen_by", [DEUTERANOPIA, PROTANOPIA, TRITANOPIA], ids=["deuteranopia", "protanopia", "tritanopia"])
def test_neighbours_can_be_told_apart_with_any_kind_of_colour_vision(
    palette: dict[str, str], seen_by: tuple[tuple[float, float, float], ...]
) -> None:
    def seen(name: str) -> list[float]:
        red, green, blue = (int(palette[name][place : place + 2], 16) for place in (1, 3, 5))
        return [row[0] * red + row[1] * green + row[2] * blue for row in seen_by]

    neighbours = [("start", "wait"), ("wait", "done"), ("done", "commit"), ("done", "bad"), ("start", "done")]
    for one, other in neighbours:
        distance = sum((a - b) ** 2 for a, b in zip(seen(one), seen(other), strict=True)) ** 0.5
        assert distance > 40, f"{one} and {other}"


def test_the_style_sheet_is_for_light_dark_narrow_and_paper() -> None:
    sheet = style_sheet()
    for wanted in ("screen and (prefers-color-scheme: dark)", "(max-width: 40rem)", "@media print", "color-scheme: light dark"):
        assert wanted in sheet
    assert sheet.count("{") == sheet.count("}")
    assert set(re.findall(r"var\(--(\w+)\)", sheet)) <= set(LIGHT) == set(DARK)


# ------------------------------------------------------------------------------------------------------ building
def test_what_is_not_html_is_escaped_on_its_way_in() -> None:
    assert tag("p", "<b>", Html("<br>"), title='"') == '<p title="&quot;">&lt;b&gt;<br></p>'
    assert joined(["&", told("<")]) == "&amp;<bdi>&lt;</bdi>"
    assert tag("path", d="M0 0", class_=None, hidden=True) == '<path d="M0 0" hidden/>'


@pytest.mark.parametrize(("value", "top"), [(0, 1), (0.3, 0.5), (1, 1), (7, 10), (101, 200), (2_000, 2_000), (0.002, 0.002)])
def test_an_axis_ends_on_a_round_number_that_is_not_below(value: float, top: float) -> None:
    assert draw.nice_top(value) == pytest.approx(top)


def test_the_numbers_of_an_axis_are_short() -> None:
    numbers = [0, 0.5, 20, 1_200, 35_000, 1_200_000, 5e9]
    assert [draw.number_text(one) for one in numbers] == ["0", "0.5", "20", "1,200", "35 k", "1.2 M", "5 G"]


def test_a_small_column_is_seen_and_none_is_higher_than_the_picture() -> None:
    found = str(draw.columns([1, 0, 10_000, 20_000], 10_000, "done"))
    heights = [float(one) for one in re.findall(r"v-([\d.]+)h1", found)]
    assert heights == [1, 100, 100]
    assert list(itertools.chain(re.findall(r"M(\d+) 100", found))) == ["0", "2", "3"]
