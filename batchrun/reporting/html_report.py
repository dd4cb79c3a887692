"""``batchrun report``: one run as one HTML file. No script, no network, nothing beside it; readable in a mail or an archive.

Overview, some of its failures -> head, pictures (html_insight), errors, notes -> a page, every text escaped
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from batchrun.durations import text as duration
from batchrun.insight import Insight
from batchrun.reporting import html_pictures as draw
from batchrun.reporting.figures import Overview
from batchrun.reporting.html_build import Html, breakable, data_table, joined, tag, told
from batchrun.reporting.html_insight import sections
from batchrun.reporting.html_style import style_sheet
from batchrun.reporting.overview import moment_text, progress_line
from batchrun.reporting.tables import clock_text, states_text
from batchrun.reporting.text import ENDINGS, GUARANTEES, item_text, message_text, next_steps, rate_text, sum_text
from batchrun.runs import FailureRecord, RunStatus

Clean = Callable[[str], str]
SHOWN_FAILURES = 20
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser that reads this page runs nothing and asks nobody for anything, whatever an item holds."""

_SIGNS = {
    RunStatus.DONE: ("✓", "done"),
    RunStatus.RUNNING: ("▶", "done"),
    RunStatus.PAUSED: ("❚❚", ""),
    RunStatus.INTERRUPTED: ("■", "bad"),
    RunStatus.HALTED: ("■", "bad"),
    RunStatus.CANCELLED: ("■", ""),
    RunStatus.FAILED: ("✕", "bad"),
}
_COUNTED = (
    ("done", "done"),
    ("skipped", "wait"),
    ("failed", "bad"),
    ("quarantined", "bad"),
    ("unknown", "bad"),
    ("pending", "idle"),
)


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a report is made from. failures: the first few. made: when, for people. command: how batchrun is called."""

    seen: Overview
    failures: Sequence[FailureRecord]
    made: str
    command: str = "batchrun"
    clean: Clean = str


def page(sheet: Sheet) -> str:
    """The whole file."""
    record, insight = sheet.seen.record, sheet.seen.insight
    title = f"{record.job} · run {record.id} · {record.status.value}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=Html(POLICY)),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", sheet.clean(title)),
        tag("style", Html(style_sheet())),
    )
    body = tag(
        "main",
        _header(sheet),
        _sum(sheet),
        _go_on(sheet),
        _facts(sheet),
        sections(insight, sheet.clean) if insight else _not_measured(),
        _errors(sheet),
        _notes(insight, sheet.clean) if insight else "",
        tag(
            "footer",
            f"Made by batchrun at {sheet.made}, from the ledger. All times are seconds of work unless a date stands there.",
        ),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def _header(sheet: Sheet) -> Html:
    record = sheet.seen.record
    sign, kind = _SIGNS[record.status]
    badge = tag("span", tag("span", f"{sign} ", aria_hidden="true"), record.status.value, class_=f"status {kind}".strip())
    named = "" if record.name is None else joined([", named ", told(sheet.clean(record.name))])
    said = joined([f"Run {record.id}", named, f" {ENDINGS[record.status]}."])
    note = tag("p", told(message_text(sheet.clean(record.note)))) if record.note else ""
    running = "" if record.status is not RunStatus.RUNNING else tag(
        "p", f"This page shows it as it was at {sheet.made}, and does not change by itself.", class_="muted"
    )  # fmt: skip
    return joined([tag("header", tag("h1", told(sheet.clean(record.job))), badge), tag("p", said), note, running])


def _sum(sheet: Sheet) -> Html:
    record = sheet.seen.record
    counts = record.counts
    rate = counts.settled / record.elapsed_s if record.elapsed_s > 0 else 0.0
    shown = [
        (f"{counts.done:,}", "items done"),
        (f"{record.bad:,}", "went wrong"),
        (f"{counts.skipped:,}", "skipped"),
        (f"{counts.pending:,}", "pending"),
        (clock_text(record.elapsed_s), "took" if record.status is not RunStatus.RUNNING else "so far"),
        (rate_text(rate) if rate else "-", "items per second"),
    ]
    shown = [one for one in shown if one[1] not in ("skipped", "pending") or one[0] != "0"]
    big = tag("ul", (tag("li", tag("b", number), tag("span", words)) for number, words in shown), class_="big")
    parts = [(name, 100 * getattr(counts, name) / counts.planned, kind) for name, kind in _COUNTED if counts.planned]
    bar = draw.stacked("counts", [one for one in parts if one[1] > 0], title="What became of the items") if parts else Html("")
    ahead = progress_line(sheet.seen)
    said = [tag("p", sum_text(counts) + ".", class_="sum"), tag("p", ahead + ".") if ahead else ""]
    return joined([big, bar, *said])


def _go_on(sheet: Sheet) -> Html:
    record = sheet.seen.record
    steps = [line.split(":", 1) for line in next_steps(record.id, record.status, record.counts, sheet.command)]
    if not steps:
        return Html("")
    lines = (tag("div", tag("span", f"{what.strip()}:"), tag("code", sheet.clean(how.strip()))) for what, how in steps)
    return tag("section", tag("p", tag("strong", "How to go on")), lines, class_="steps")


def _facts(sheet: Sheet) -> Html:
    record = sheet.seen.record
    given = record.options.get("given")
    rows = [
        ("Guarantee", GUARANTEES.get(record.guarantee, record.guarantee)),
        ("Parameters", _pairs(record.params, sheet.clean)),
        ("Options given", _pairs(given if isinstance(given, Mapping) else {}, sheet.clean)),
        ("Workers", "inline" if record.workers == 0 else f"{record.workers}"),
        ("Retries", f"{record.counts.retries:,}"),
        ("Owner", record.owner),
        ("Started", moment_text(record.started)),
        ("Ended", moment_text(record.ended)),
    ]
    shown = ((name, value if isinstance(value, Html) else told(sheet.clean(value))) for name, value in rows if value)
    return tag("dl", (one for name, value in shown for one in (tag("dt", name), tag("dd", value))))


def _pairs(values: Mapping[str, object], clean: Clean) -> Html:
    """``name=value``, each in a line of its own."""
    lines = (tag("div", tag("code", told(message_text(clean(f"{name}={value}"))))) for name, value in values.items())
    return joined(lines)


def _not_measured() -> Html:
    said = (
        "Nothing was measured of where this run's time went: it was made by an earlier batchrun, or it has only just begun. "
        "What the ledger counts stands above and below."
    )
    return joined([tag("h2", "Where the time went"), tag("p", said, class_="muted")])


def _errors(sheet: Sheet) -> Html:
    record, groups = sheet.seen.record, sheet.seen.groups
    head = tag("h2", "What went wrong")
    if not groups:
        return joined([head, tag("p", "No item so far." if record.status is RunStatus.RUNNING else "No item.", class_="muted")])
    whole = sum(group.items for group in groups)
    rows = [
        [
            _error_name(group.error_class, sheet.clean),
            group.sqlstate or "-",
            joined([f"{group.items:,}", draw.share_bar(100 * group.items / whole, "bad")]),
            states_text(group),
            told(message_text(sheet.clean(group.message))),
        ]
        for group in groups
    ]
    made = data_table(
        ("Error", "SQLSTATE", "Items", "Of them", "For example"), rows, caption="Errors by class", numbers=(2,), words=(1,)
    )
    return joined([head, made, _first_failures(sheet, whole)])


def _error_name(error_class: str, clean: Clean) -> Html:
    return tag("bdi", breakable(clean(error_class or "(no error)")))


def _first_failures(sheet: Sheet, whole: int) -> Html:
    if not sheet.failures:
        return Html("")
    rows = [
        [
            told(sheet.clean(item_text(one.item))),
            one.state,
            f"{one.attempts}",
            joined([_error_name(one.error_class, sheet.clean), f" [{one.sqlstate}]" if one.sqlstate else ""]),
            told(message_text(sheet.clean(one.message))),
        ]
        for one in sheet.failures
    ]
    all_of_them = len(sheet.failures) >= whole
    caption = (
        "Each item that went wrong" if all_of_them else f"The first {len(sheet.failures)} of {whole:,} items that went wrong"
    )
    made = data_table(("Item", "Status", "Tries", "Error", "Message"), rows, caption=caption, numbers=(2,), words=(1,))
    where = f"{sheet.command} failures {sheet.seen.record.id}"
    more = "" if all_of_them else tag("p", "All of them: ", tag("code", sheet.clean(where)))
    return joined([made, more])


def _notes(insight: Insight, clean: Clean) -> Html:
    if not insight.notes:
        return Html("")
    rows = [[duration(note.at_s), note.level.lower(), told(message_text(clean(note.text)))] for note in insight.notes]
    return joined(
        [
            tag("h2", "On the way"),
            data_table(("At", "Level", "What happened"), rows, caption="What batchrun noticed", words=(0, 1)),
        ]
    )
