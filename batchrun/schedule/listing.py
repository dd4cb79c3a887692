"""What ``batchrun schedule list`` shows, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from batchrun.reporting.jsonout import SCHEMA
from batchrun.reporting.tables import table
from batchrun.runs import RunRecord
from batchrun.schedule.gathering import Scheduled

Clean = Callable[[str], str]
Row = tuple[Scheduled, Sequence[datetime], RunRecord | None]
"""A job, its next firings, its newest run."""


def schedule_table(rows: Iterable[Row], width: int | None, clean: Clean = str) -> str:
    """A line a firing, the job beside its first one."""
    lines: list[tuple[str, ...]] = []
    for job, firings, last in rows:
        when = job.words if job.enabled else f"{job.words} (not enabled)"
        shown = [f"{moment:%a %Y-%m-%d %H:%M %Z}" for moment in firings] or ["-"]
        lines.append((job.job, when, job.zone.key, shown[0], clean(_result(last))))
        lines += [("", "", "", one, "") for one in shown[1:]]
    return table(("JOB", "WHEN", "ZONE", "NEXT", "LAST RUN"), lines, width=width, breakable=("JOB", "WHEN", "LAST RUN"))


def _result(last: RunRecord | None) -> str:
    if last is None:
        return "-"
    failed = last.counts.failed + last.counts.quarantined + last.counts.unknown
    troubled = f" ({failed:,} failed)" if failed else ""
    return f"{last.status.value}{troubled}, {last.started[:16].replace('T', ' ')} UTC, run {last.id}"


def schedule_json(rows: Iterable[Row], clean: Clean = str) -> dict[str, Any]:
    """The same for programs. timezone: null = the machine's own, which ``zone`` names."""
    return {"schema": SCHEMA, "jobs": [_job(*row, clean) for row in rows]}


def _job(job: Scheduled, firings: Sequence[datetime], last: RunRecord | None, clean: Clean) -> dict[str, Any]:
    return {
        "job": job.job,
        "schedule": job.expression,
        "words": job.words,
        "timezone": job.timezone,
        "zone": job.zone.key,
        "enabled": job.enabled,
        "if_running": job.if_running,
        "on_unfinished": job.on_unfinished,
        "next": [moment.isoformat() for moment in firings],
        "last": last and {
            "run": last.id,
            "status": last.status.value,
            "started": last.started,
            "ended": last.ended,
            "note": clean(last.note),
        },
    }  # fmt: skip
