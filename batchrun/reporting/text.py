"""Sentences about runs, for people: what one line of progress says, and the summary at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from batchrun.durations import text as duration
from batchrun.items import Item, Outcome
from batchrun.reporting.streams import printable
from batchrun.runs import Counts, Report, RunStatus

if TYPE_CHECKING:
    from batchrun.ledger.standing import Standing

SHOWN_ITEM = 80
SHOWN_MESSAGE = 300
_SETTLED = ("done", "failed", "skipped", "quarantined", "unknown")

AT_LEAST_ONCE = (
    "at-least-once: an item that was cut off may run a second time; its effects must bear that (ctx.key names an item for good)"
)
EXACTLY_ONCE = "exactly-once: every item's effect is committed together with its mark"
GUARANTEES = {"at-least-once": AT_LEAST_ONCE, "exactly-once": EXACTLY_ONCE}

ENDINGS = {
    RunStatus.RUNNING: "is running",
    RunStatus.PAUSED: "is paused",
    RunStatus.INTERRUPTED: "was interrupted",
    RunStatus.HALTED: "was halted",
    RunStatus.CANCELLED: "was cancelled",
    RunStatus.DONE: "is done",
    RunStatus.FAILED: "ran to its end, but not every item is done",
}


def items_text(count: int) -> str:
    """``1 item``, ``4,000 items``."""
    return f"{count:,} item{'' if count == 1 else 's'}"


def rate_text(per_s: float) -> str:
    """``35.1``, ``0.04``, ``12,345``: as many digits as mean something."""
    if per_s >= 1000:
        return f"{per_s:,.0f}"
    return f"{per_s:.1f}" if per_s >= 1 else f"{per_s:.2g}"


def percent_text(percent: float) -> str:
    """``62 %``, ``0.4 %``; 100 only where all is settled."""
    if 0 < percent < 1 or 99 < percent < 100:
        return f"{min(max(percent, 0.1), 99.9):.1f} %"
    return f"{percent:.0f} %"


def time_text(seconds: float) -> str:
    """How long something short took: ``31 µs``, ``3.1 ms``, ``420 ms``; from a second on as other durations."""
    if seconds >= 1:
        return duration(seconds)
    number, unit = (seconds * 1e3, "ms") if seconds >= 1e-3 else (seconds * 1e6, "µs")
    return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"


def item_text(item: Item) -> str:
    """An item on a line: its repr, shortened, without control characters. Never raises, whatever the item's class does."""
    try:
        shown = repr(item)
    except Exception as error:
        shown = f"<{type(item).__name__} whose repr raised {type(error).__name__}>"
    return printable(shown if len(shown) <= SHOWN_ITEM else shown[: SHOWN_ITEM - 3] + "...")


def message_text(message: str) -> str:
    """A message on one line, shortened."""
    shown = printable(message.strip())
    return shown if len(shown) <= SHOWN_MESSAGE else shown[: SHOWN_MESSAGE - 3] + "..."


def trouble_text(outcome: Outcome) -> str:
    """One line about an item that went wrong: its key, the class of the error, its message."""
    error = outcome.error
    what = f"{printable(error.type)}: {message_text(error.message)}" if error else "nobody knows why"
    tries = f" after {outcome.attempts} attempts" if outcome.attempts > 1 else ""
    return f"Item {item_text(outcome.item)} {outcome.status}{tries}: {what}"


def progress_text(counts: Counts, total: int | None, rate: float | None, left_s: float | None) -> str:
    """``120 of 4,000 done, 2 failed, 3 retried, 35.1 items/s, ETA 1 min 50 s``."""
    return ", ".join(
        [
            f"{counts.done:,} of {total:,} done" if total is not None else f"{counts.done:,} done",
            *counted(counts),
            *([] if rate is None else [f"{rate_text(rate)} items/s"]),
            *([] if left_s is None else [f"ETA {duration(left_s)}"]),
        ]
    )


def counted(counts: Counts) -> list[str]:
    """``2 failed``, ``3 retried`` always, the rarer ones where there are any."""
    rare = [(counts.skipped, "skipped"), (counts.quarantined, "quarantined"), (counts.unknown, "unknown")]
    return [f"{counts.failed:,} failed", f"{counts.retries:,} retried", *(f"{many:,} {word}" for many, word in rare if many)]


def sum_text(counts: Counts) -> str:
    """``4,000 planned = 3,998 done + 2 failed + 0 pending``: the counts as the sum they are."""
    parts = [(getattr(counts, word), word) for word in _SETTLED]
    shown = [f"{many:,} {word}" for many, word in parts if many or word == "done"]
    if counts.pending:
        shown.append(f"{counts.pending:,} pending")
    return f"{counts.planned:,} planned = {' + '.join(shown)}" if counts.planned else "0 items planned"


def summary(report: Report, *, settled_before: int = 0, command: str = "batchrun") -> list[str]:
    """The lines that end a run on the command line.

    settled_before: items an earlier call settled, which say nothing of this one's speed. command: how batchrun was
    called, with the options that name the project.
    """
    now = report.counts.settled - settled_before
    rate = f", {rate_text(now / report.elapsed)} items/s" if now > 0 and report.elapsed > 0 else ""
    retries = f", {report.retries:,} {'retry' if report.retries == 1 else 'retries'}" if report.retries else ""
    note = f" ({message_text(report.note)})" if report.note else ""
    workers = "inline" if report.workers == 0 else f"{report.workers} worker{'' if report.workers == 1 else 's'}"
    head = [f"  {sum_text(report.counts)}", f"  {duration(report.elapsed)}{rate}, {workers}{retries}"]
    if report.rehearsal is not None:
        return [f"Dry run of {report.job} {ENDINGS[report.status]}{note}.", *head]
    return [
        f"Run {report.run} of {report.job} {ENDINGS[report.status]}{note}.",
        *head,
        f"  {GUARANTEES.get(report.guarantee, report.guarantee)}",
        *next_steps(report.run, report.status, report.counts, command),
    ]


def next_steps(run: str, status: RunStatus, counts: Counts, command: str = "batchrun") -> list[str]:
    """The exact commands that go on from here."""
    bad = counts.failed + counts.quarantined + counts.unknown
    steps = []
    if status in (RunStatus.PAUSED, RunStatus.INTERRUPTED, RunStatus.HALTED):
        steps.append(f"  go on with the rest:    {command} resume {run}")
    if bad:
        steps.append(f"  see what went wrong:    {command} failures {run}")
    if bad and status in (RunStatus.FAILED, RunStatus.HALTED):
        steps.append(f"  try those items again:  {command} retry {run}")
    return steps


def standing_text(found: Standing, clean: Callable[[str], str] = str) -> str:
    """Where an item stands, in a line or two."""
    place = "" if found.position is None else f", item {found.position}"
    where = "" if found.chunk is None else f" (chunk {found.chunk}{place})"
    why = f"\n  {printable(clean(found.error))}: {message_text(clean(found.message))}" if found.error else ""
    return f"Item {printable(clean(found.key))}: {printable(clean(found.said))}{where}.{why}"
