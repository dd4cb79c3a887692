"""One run for people, as ``batchrun show`` writes it: what it is, how far it is, where its time went, what went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchrun.durations import text as duration
from batchrun.insight import Insight, Lane
from batchrun.reporting.figures import PARTS, Overview, left_s, percentiles, spent_by
from batchrun.reporting.streams import printable
from batchrun.reporting.tables import STATUS_STYLES, Cell, Clean, drawn, drawn_title, groups_table, table
from batchrun.reporting.text import GUARANTEES, message_text, next_steps, percent_text, rate_text, sum_text, time_text
from batchrun.runs import FailureGroup, RunStatus

if TYPE_CHECKING:
    from rich.text import Text

MOST_WORKERS = 8
MOST_GROUPS = 10
MOST_NOTES = 10
BAR = 20
_NAMES = 12
"""Characters of a line's name."""

_UNFINISHED = (RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.INTERRUPTED, RunStatus.HALTED)


def run_text(
    seen: Overview, clean: Clean = str, command: str = "batchrun", *, width: int | None = None, colour: bool = False
) -> str:
    """What ``batchrun show`` shows. width: of the terminal; None = as many as it takes."""
    record = seen.record
    sections = [
        _head(seen, clean, width, colour),
        *(_insight_sections(seen.insight, clean, width, colour) if seen.insight else []),
        _errors(seen.groups, clean, width, colour),
        _notes(seen.insight, clean, colour) if seen.insight else "",
        "\n".join(next_steps(record.id, record.status, record.counts, command)),
    ]
    return "\n\n".join(one for one in sections if one)


def facts(seen: Overview, clean: Clean = str) -> list[tuple[str, str]]:
    """What a run is and how far it is, as names and values; those without a value are left out."""
    record = seen.record
    given = record.options.get("given") or {}
    lines = [
        ("Run", record.id),
        ("Name", record.name),
        ("Job", record.job),
        ("Parameters", _pairs(record.params)),
        ("Options", _pairs(given) if isinstance(given, Mapping) else ""),
        ("Status", record.status.value + (f" ({record.note})" if record.note else "")),
        ("Owner", record.owner),
        ("Progress", progress_line(seen)),
        ("Items", sum_text(record.counts)),
        ("Retries", f"{record.counts.retries:,}"),
        ("Per item", _percentile_line(seen.insight)),
        ("Started", moment_text(record.started)),
        ("Ended", moment_text(record.ended)),
        ("Took", _took(seen)),
        ("Workers", "inline" if record.workers == 0 else str(record.workers)),
        ("Guarantee", GUARANTEES.get(record.guarantee, record.guarantee)),
    ]
    return [(name, printable(clean(value))) for name, value in lines if value]


def progress_line(seen: Overview) -> str:
    """``62 % of 6,400, 35.1 items/s, ETA 1 min 50 s``; empty for a run that is through."""
    record, rate = seen.record, seen.present_rate
    if record.status not in _UNFINISHED:
        return ""
    percent = record.percent
    parts = [
        f"{record.counts.settled:,} items so far" if percent is None else f"{percent_text(percent)} of {record.expected:,} items"
    ]
    if record.status is RunStatus.RUNNING:
        left = left_s(record, rate)
        parts += [] if rate is None else [f"{rate_text(rate)} items/s"]
        parts += [] if left is None else [f"ETA {duration(left)}"]
    return ", ".join(parts)


def _took(seen: Overview) -> str:
    record = seen.record
    rate = record.counts.settled / record.elapsed_s if record.elapsed_s > 0 else 0.0
    speed = f", {rate_text(rate)} items/s" if rate and record.status is not RunStatus.RUNNING else ""
    return duration(record.elapsed_s) + speed


def _percentile_line(insight: Insight | None) -> str:
    found = percentiles(insight) if insight else {}
    return ", ".join(f"p{percent} {time_text(seconds)}" for percent, seconds in found.items())


def moment_text(moment: str | None) -> str:
    """``2026-11-23 00:12:05 UTC``."""
    return f"{moment[:19].replace('T', ' ')} UTC" if moment else ""


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _head(seen: Overview, clean: Clean, width: int | None, colour: bool) -> str:
    shown = facts(seen, clean)
    if width is None:
        return "\n".join(f"{name:<{_NAMES}}{value}" for name, value in shown)
    return drawn(_named_lines(shown, seen, width), width=width, colour=colour)


def _named_lines(shown: Sequence[tuple[str, str]], seen: Overview, width: int) -> Any:
    """Names in a column of their own; a long value goes on below itself."""
    from rich.table import Table

    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column(no_wrap=True, min_width=_NAMES - 1, style="bold")
    made.add_column(overflow="fold")
    for name, value in shown:
        made.add_row(name, _value(name, value, seen, width))
    return made


def _value(name: str, value: str, seen: Overview, width: int) -> Text:
    from rich.text import Text

    if name == "Status":
        return Text(value, STATUS_STYLES[seen.record.status])
    if name == "Progress" and seen.record.percent is not None and width >= 60:
        full = round(seen.record.percent * BAR / 100)
        return Text.assemble(("━" * full, "cyan"), ("─" * (BAR - full), "dim"), f" {value}")
    return Text(value)


def _insight_sections(insight: Insight, clean: Clean, width: int | None, colour: bool) -> list[str]:
    return [_workers(insight, width, colour), _slowest(insight, clean, width, colour)]


def _workers(insight: Insight, width: int | None, colour: bool) -> str:
    """Shares of time: of all workers together, and of each of the first few."""
    lanes = insight.lanes
    if not lanes:
        return ""
    rows: list[list[Cell]] = [[("all", "bold"), *_shares(lanes), f"{sum(lane.items for lane in lanes):,}", ""]]
    shown = sorted(lanes, key=lambda lane: lane.number)[:MOST_WORKERS] if len(lanes) > 1 else lanes
    rows += [[_lane_name(lane), *_shares([lane]), f"{lane.items:,}", (printable(lane.died), "red")] for lane in shown]
    columns = ["WORKER", *(part.upper() for part in PARTS), "ITEMS", "DIED"]
    if not any(lane.died for lane in shown):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    made = table(columns, rows, width=width, right=[*columns[1 : len(PARTS) + 1], "ITEMS"], colour=colour)
    more = f"\n... and {len(lanes) - len(shown)} more: batchrun report shows each" if len(lanes) > len(shown) else ""
    return f"{drawn_title('Where the time went', colour)}\n{made}{more}"


def _lane_name(lane: Lane) -> str:
    return f"{lane.number}" + (f" (pid {lane.pid})" if lane.pid else "")


def _shares(lanes: Sequence[Lane]) -> list[str]:
    return [percent_text(share) for share in spent_by(lanes).shares.values()]


def _slowest(insight: Insight, clean: Clean, width: int | None, colour: bool) -> str:
    if not insight.slowest:
        return ""
    rows = [(time_text(one.seconds), str(one.worker), item_line(one.item, clean)) for one in insight.slowest]
    made = table(("TOOK", "WORKER", "ITEM"), rows, width=width, right=("TOOK", "WORKER"), colour=colour)
    return f"{drawn_title('The slowest items', colour)}\n{made}"


def item_line(item: str, clean: Clean) -> str:
    """An item that is a text already, on one line."""
    shown = clean(item)
    return printable(shown if len(shown) <= 80 else f"{shown[:77]}...")


def _errors(groups: Sequence[FailureGroup], clean: Clean, width: int | None, colour: bool) -> str:
    if not groups:
        return ""
    more = f"\n... and {len(groups) - MOST_GROUPS} more kinds" if len(groups) > MOST_GROUPS else ""
    return f"{drawn_title('What went wrong', colour)}\n{groups_table(groups[:MOST_GROUPS], width, clean, colour=colour)}{more}"


def _notes(insight: Insight, clean: Clean, colour: bool) -> str:
    if not insight.notes:
        return ""
    lines = [f"{duration(note.at_s):>12}  {message_text(clean(note.text))}" for note in insight.notes[:MOST_NOTES]]
    more = len(insight.notes) - MOST_NOTES
    return "\n".join([drawn_title("On the way", colour), *lines, *([f"... and {more} more"] if more > 0 else [])])
