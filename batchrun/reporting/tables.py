"""Tables for people: as wide as the terminal, and in a pipe as wide as they need to be, one row a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchrun.durations import text as duration
from batchrun.reporting.jsonout import cleaned, dumped, failure_json
from batchrun.reporting.streams import printable
from batchrun.reporting.text import GUARANTEES, item_text, message_text, next_steps, rate_text, sum_text
from batchrun.runs import FailureRecord, RunRecord

if TYPE_CHECKING:
    from batchrun.config import Value

Clean = Callable[[str], str]
CSV_COLUMNS = ("item", "status", "attempts", "deaths", "error", "sqlstate", "message")
_FORMULA = ("=", "+", "-", "@")
_UNBROKEN = 32
"""Columns up to so many characters are not broken: ids, statuses, names."""

_LEAST = 12
_WIDE = 110


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, width: int | None, breakable: Sequence[str] = ()) -> str:
    """Lay out rows under their columns' names. width: characters a line may have; None = as many as it takes.

    Where it is too narrow, the long columns and the ``breakable`` ones are broken, never cut; ids stay whole.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [list(map(printable, row)) for row in rows]
    widest = [max([len(name), *(len(row[place]) for row in cells)]) for place, name in enumerate(columns)]
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for name, wide in zip(columns, widest, strict=True):
        whole = wide if wide <= _UNBROKEN and name not in breakable else None
        made.add_column(Text(name), no_wrap=whole is not None, min_width=whole or min(wide, _LEAST), overflow="fold")
    for row in cells:
        made.add_row(*map(Text, row))
    least = sum((column.min_width or 0) + 2 for column in made.columns)
    natural = sum(widest) * 2 + 2 * len(columns)  # twice: some characters take two cells
    out = io.StringIO()
    console = Console(file=out, width=max(least, width or natural), color_system=None, legacy_windows=False, _environ={})
    console.print(made)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def runs_table(records: Iterable[RunRecord], width: int | None, clean: Clean = str) -> str:
    """What ``batchrun runs`` shows."""
    columns = ("RUN", "JOB", "STATUS", "DONE", "FAILED", "BEGAN (UTC)", "TOOK")
    began = slice(0, 16) if width is None or width >= _WIDE else slice(5, 16)  # the year, where there is room
    rows = [
        (
            record.id,
            clean(record.job if record.name is None else f"{record.job} ({record.name})"),
            record.status.value,
            f"{record.counts.done:,}/{record.counts.planned:,}",
            f"{record.counts.failed + record.counts.quarantined + record.counts.unknown:,}",
            record.started[began].replace("T", " "),
            _clock_text(record.elapsed_s),
        )
        for record in records
    ]
    return table(columns, rows, width=width, breakable=("JOB",))


def _clock_text(elapsed_s: float) -> str:
    """``0.8 s``, ``2:29``, ``1:02:05``."""
    if elapsed_s < 60:
        return duration(elapsed_s)
    minutes, rest = divmod(round(elapsed_s), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def run_text(record: RunRecord, clean: Clean = str, command: str = "batchrun") -> str:
    """What ``batchrun show`` shows."""
    speed = record.counts.settled / record.elapsed_s if record.elapsed_s > 0 else 0.0
    given = record.options.get("given") or {}
    lines = [
        ("Run", record.id),
        ("Name", record.name),
        ("Job", record.job),
        ("Parameters", _pairs(record.params)),
        ("Options", _pairs(given) if isinstance(given, Mapping) else ""),
        ("Status", record.status.value + (f" ({record.note})" if record.note else "")),
        ("Owner", record.owner),
        ("Items", sum_text(record.counts)),
        ("Retries", f"{record.counts.retries:,}"),
        ("Started", _moment(record.started)),
        ("Ended", _moment(record.ended)),
        ("Took", duration(record.elapsed_s) + (f", {rate_text(speed)} items/s" if speed else "")),
        ("Workers", "inline" if record.workers == 0 else str(record.workers)),
        ("Guarantee", GUARANTEES.get(record.guarantee, record.guarantee)),
    ]
    shown = [f"{name:<12}{printable(clean(value))}" for name, value in lines if value]
    return "\n".join([*shown, *next_steps(record.id, record.status, record.counts, command)])


def _moment(moment: str | None) -> str:
    """``2026-11-23 00:12:05 UTC``."""
    return f"{moment[:19].replace('T', ' ')} UTC" if moment else ""


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def failures_table(failures: Iterable[FailureRecord], width: int | None, clean: Clean = str) -> str:
    """What ``batchrun failures`` shows."""
    rows = [
        (
            clean(item_text(failure.item)),
            failure.state,
            str(failure.attempts),
            failure.error_class + (f" [{failure.sqlstate}]" if failure.sqlstate else ""),
            message_text(clean(failure.message)),
        )
        for failure in failures
    ]
    return table(("ITEM", "STATUS", "TRIES", "ERROR", "MESSAGE"), rows, width=width)


def failures_csv(failures: Iterable[FailureRecord], clean: Clean = str) -> Iterable[str]:
    """One line a failure under a line of names. What a spreadsheet would take for a formula begins with an apostrophe."""
    yield _csv_line(CSV_COLUMNS)
    for failure in failures:
        known = failure_json(failure, clean)
        yield _csv_line([_cell(known[name]) for name in CSV_COLUMNS])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = printable(dumped(value) if isinstance(value, list | dict) else str(value))
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv_line(cells: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(cells)
    return out.getvalue()


def failures_jsonl(failures: Iterable[FailureRecord], clean: Clean = str) -> Iterable[str]:
    """One JSON object a line."""
    return (dumped(failure_json(failure, clean)) for failure in failures)


def settings_table(values: Iterable[Value], width: int | None, clean: Clean = str) -> str:
    """What ``batchrun config`` shows: every value with its origin."""
    rows = [(value.name, "-" if value.value is None else clean(_plain(value.value)), value.origin) for value in values]
    return table(("SETTING", "VALUE", "ORIGIN"), rows, width=width)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return dumped(cleaned(value)) if isinstance(value, list | dict) else str(value)
