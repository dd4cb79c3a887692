"""Tables for people: as wide as the terminal, and in a pipe as wide as they need to be, one row a line, without colours."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from batchrun.durations import text as duration
from batchrun.reporting.jsonout import cleaned, dumped, failure_json
from batchrun.reporting.streams import printable
from batchrun.reporting.text import item_text, message_text, percent_text, rate_text
from batchrun.runs import FailureGroup, FailureRecord, RunRecord, RunStatus

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from batchrun.config import Value

Clean = Callable[[str], str]
CSV_COLUMNS = ("item", "status", "attempts", "deaths", "error", "sqlstate", "message")
_FORMULA = ("=", "+", "-", "@")
_UNBROKEN = 32
"""Columns up to so many characters are not broken: ids, statuses, names."""

_LEAST = 12
_WIDE = 110
Cell = str | tuple[str, str]
"""What stands in a column; with a style of rich's, which shows on a terminal only."""

STATUS_STYLES = {
    RunStatus.DONE: "green",
    RunStatus.RUNNING: "cyan",
    RunStatus.PAUSED: "yellow",
    RunStatus.INTERRUPTED: "yellow",
    RunStatus.HALTED: "red",
    RunStatus.CANCELLED: "magenta",
    RunStatus.FAILED: "red",
}
"""The status stands there as a word too: nobody needs the colour."""


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    width: int | None,
    breakable: Sequence[str] = (),
    right: Sequence[str] = (),
    colour: bool = False,
    header: bool = True,
    least: list[int] | None = None,
) -> str:
    """Lay out rows under their columns' names. width: characters a line may have; None = as many as it takes.

    Where it is too narrow, the long columns and the ``breakable`` ones are broken, never cut; ids stay whole. Where even
    that does not fit, each row becomes a block of lines. right: columns of numbers. least: how wide each column is at
    least; it is widened to what was needed, so that the pages of one long table stand under each other.
    """
    cells = [[_cell_of(cell) for cell in row] for row in rows]
    widest = [
        max([len(name) if header else 0, *(len(row[place][0]) for row in cells), least[place] if least else 0])
        for place, name in enumerate(columns)
    ]
    if least is not None:
        least[:] = widest
    whole = [wide <= _UNBROKEN and name not in breakable for name, wide in zip(columns, widest, strict=True)]
    needed = [wide if kept else min(wide, _LEAST) for wide, kept in zip(widest, whole, strict=True)]
    if width is not None and sum(needed) + 2 * (len(columns) - 1) > width:
        return _blocks(columns, cells, width, colour)
    if not colour and (width is None or sum(widest) + 2 * (len(columns) - 1) <= width) and _is_plain(cells):
        return _padded(columns, cells, widest, right, header)
    natural = sum(widest) * 2 + 2 * len(columns)  # twice: some characters take two cells
    return drawn(_grid(columns, cells, needed, whole, right, header), width=width or natural, colour=colour)


def _cell_of(cell: Cell) -> tuple[str, str]:
    text, style = (cell, "") if isinstance(cell, str) else cell
    return printable(text), style


def _is_plain(cells: Sequence[Sequence[tuple[str, str]]]) -> bool:
    """Whether each character takes one cell."""
    return all(text.isascii() and "\t" not in text for row in cells for text, _ in row)


def _padded(
    columns: Sequence[str],
    cells: Sequence[Sequence[tuple[str, str]]],
    widest: Sequence[int],
    right: Sequence[str],
    header: bool,
) -> str:
    """The same as rich makes of it, where nothing is to be broken or coloured, at a hundredth of the time: for a million rows."""
    sides = [str.rjust if name in right else str.ljust for name in columns]
    lines = [list(columns)] if header else []
    lines += [[text for text, _ in row] for row in cells]
    return "\n".join(
        "  ".join(side(text, wide) for side, text, wide in zip(sides, line, widest, strict=True)).rstrip() for line in lines
    )


def _grid(
    columns: Sequence[str],
    cells: Sequence[Sequence[tuple[str, str]]],
    needed: Sequence[int],
    whole: Sequence[bool],
    right: Sequence[str],
    header: bool,
) -> Table:
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=header)
    for name, wide, kept in zip(columns, needed, whole, strict=True):
        side: Literal["left", "right"] = "right" if name in right else "left"
        made.add_column(Text(name), no_wrap=kept, min_width=wide, overflow="fold", justify=side)
    for row in cells:
        made.add_row(*(Text(text, style) for text, style in row))
    return made


def _blocks(columns: Sequence[str], cells: Sequence[Sequence[tuple[str, str]]], width: int, colour: bool) -> str:
    """Each row as lines of a name and a value, for a terminal that is narrower than the table."""
    from rich.text import Text

    longest = max(len(name) for name in columns)
    made = Text(overflow="fold")
    for number, row in enumerate(cells):
        made.append("\n" if number else "")
        for name, (text, style) in zip(columns, row, strict=True):
            if text:
                made.append(f"{name.ljust(longest)}  ", "bold").append(text, style).append("\n")
    return drawn(made, width=width, colour=colour)


def drawn(renderable: RenderableType, *, width: int, colour: bool) -> str:
    """What rich makes of something, as text. colour: with the escapes of a terminal."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=colour, color_system="standard" if colour else None, legacy_windows=False,
        highlight=False, markup=False, emoji=False, _environ={},
    )  # fmt: skip
    console.print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def runs_table(records: Iterable[RunRecord], width: int | None, clean: Clean = str, *, colour: bool = False) -> str:
    """What ``batchrun runs`` shows."""
    wide = width is None or width >= _WIDE
    columns = ["RUN", "JOB", "STATUS", "DONE", "%", "FAILED", "BEGAN (UTC)", "TOOK", "ITEMS/S"]
    rows = [
        _run_row(record, clean, slice(0, 16) if wide else slice(5, 16)) for record in records
    ]  # the year, where there is room
    kept = [place for place in range(len(columns)) if wide or columns[place] not in ("%", "ITEMS/S")]
    chosen = [columns[place] for place in kept]
    return table(
        chosen, [[row[place] for place in kept] for row in rows], width=width, breakable=("JOB",),
        right=("DONE", "%", "FAILED", "TOOK", "ITEMS/S"), colour=colour,
    )  # fmt: skip


def _run_row(record: RunRecord, clean: Clean, began: slice) -> list[Cell]:
    counts = record.counts
    speed = counts.settled / record.elapsed_s if record.elapsed_s > 0 else 0.0
    return [
        (record.id, "bold"),
        clean(record.job if record.name is None else f"{record.job} ({record.name})"),
        (record.status.value, STATUS_STYLES[record.status]),
        f"{counts.done:,}/{counts.planned if record.expected is None else record.expected:,}",
        "" if record.percent is None else percent_text(record.percent),
        (f"{record.bad:,}", "red" if record.bad else "dim"),
        record.started[began].replace("T", " "),
        clock_text(record.elapsed_s),
        rate_text(speed) if speed else "",
    ]


def clock_text(elapsed_s: float) -> str:
    """``0.8 s``, ``2:29``, ``1:02:05``."""
    if elapsed_s < 60:
        return duration(elapsed_s)
    minutes, rest = divmod(round(elapsed_s), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


GROUP_COLUMNS = ("ITEMS", "ERROR", "SQLSTATE", "STATUS", "FOR EXAMPLE")
ITEM_COLUMNS = ("ITEM", "STATUS", "TRIES", "SQLSTATE", "MESSAGE")
PAGE = 200
"""Rows of a long table that are laid out together."""


def groups_table(groups: Iterable[FailureGroup], width: int | None, clean: Clean = str, *, colour: bool = False) -> str:
    """How many items went wrong with each class of error."""
    rows: list[list[Cell]] = [
        [
            (f"{group.items:,}", "bold"),
            (group.error_class or "-", "red"),
            group.sqlstate or "-",
            states_text(group),
            message_text(clean(group.message)),
        ]
        for group in groups
    ]
    return table(GROUP_COLUMNS, rows, width=width, right=("ITEMS",), breakable=("STATUS",), colour=colour)


def states_text(group: FailureGroup) -> str:
    """``12 failed, 1 quarantined``."""
    parts = [(getattr(group, state), state) for state in ("failed", "quarantined", "unknown")]
    return ", ".join(f"{many:,} {state}" for many, state in parts if many)


def failures_table(
    failures: Iterable[FailureRecord], width: int | None, clean: Clean = str, *, colour: bool = False
) -> Iterator[str]:
    """What ``batchrun failures`` shows, class by class, page by page; they must come class by class."""
    for name, of_class in itertools.groupby(failures, _class_name):
        yield "\n" + drawn_title(name, colour)
        least, header = [0] * len(ITEM_COLUMNS), True
        while page := list(itertools.islice(of_class, PAGE)):
            rows = [_failure_row(failure, clean) for failure in page]
            yield table(ITEM_COLUMNS, rows, width=width, right=("TRIES",), colour=colour, header=header, least=least)
            header = False


def _class_name(failure: FailureRecord) -> str:
    return failure.error_class or "(no error)"


def drawn_title(title: str, colour: bool) -> str:
    """A line above a table."""
    return f"\x1b[1m{printable(title)}\x1b[0m" if colour else printable(title)


def _failure_row(failure: FailureRecord, clean: Clean) -> list[Cell]:
    return [
        clean(item_text(failure.item)),
        failure.state,
        str(failure.attempts),
        failure.sqlstate or "-",
        message_text(clean(failure.message)),
    ]


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
