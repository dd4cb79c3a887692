"""The objects of ``--json``, for programs. Their keys are a contract: they may grow, and none changes its meaning."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from batchrun.insight import Slow
from batchrun.reporting import rehearsal
from batchrun.reporting.figures import Overview, insight_json, left_s
from batchrun.runs import Counts, FailureGroup, FailureRecord, Report, RunRecord

if TYPE_CHECKING:
    from batchrun.ledger.standing import Standing

SCHEMA = 1
COUNTS = ("planned", "done", "failed", "skipped", "quarantined", "unknown", "pending", "retries")
RUN_KEYS = ("schema", "run", "job", "status", *COUNTS, "elapsed_s", "items_per_s", "workers", "guarantee")

Clean = Callable[[str], str]


def report_json(report: Report, *, settled_before: int = 0) -> dict[str, Any]:
    """What ``run --json`` prints. settled_before: as in ``text.summary``."""
    return {
        "schema": SCHEMA,
        "run": report.run if report.rehearsal is None else None,
        "job": report.job,
        "status": report.status.value,
        **_counts(report.counts),
        **_speed(report.counts.settled - settled_before, report.elapsed),
        "workers": report.workers,
        "guarantee": report.guarantee,
        **({} if report.rehearsal is None else {"rehearsal": rehearsal.as_json(report.rehearsal)}),
    }


def record_json(record: RunRecord, clean: Clean = str) -> dict[str, Any]:
    """What ``runs --json`` prints of a run: the same keys and more. clean: hides secrets in what people wrote."""
    return {
        "schema": SCHEMA,
        "run": record.id,
        "job": record.job,
        "status": record.status.value,
        **_counts(record.counts),
        **_speed(record.counts.settled, record.elapsed_s),
        "workers": record.workers,
        "guarantee": record.guarantee,
        "name": record.name,
        "params": cleaned(record.params, clean),
        "options": cleaned(record.options, clean),
        "started": record.started,
        "ended": record.ended,
        "owner": record.owner,
        "note": clean(record.note),
        "total": record.expected,
        "percent": None if record.percent is None else round(record.percent, 1),
    }


def overview_json(seen: Overview, clean: Clean = str) -> dict[str, Any]:
    """What ``show --json`` prints: a run, and what is known of where its time went. insight: null where it was not measured."""
    rate, insight = seen.present_rate, seen.insight
    left = left_s(seen.record, rate)
    return {
        **record_json(seen.record, clean),
        "rate": None if rate is None else round(rate, 1),
        "eta_s": None if left is None else round(left, 1),
        "insight": None if insight is None else insight_json(insight),
        "slowest": [_slow_json(one, clean) for one in insight.slowest] if insight else [],
        "errors": [group_json(group, clean) for group in seen.groups],
        "notes": [{"at_s": one.at_s, "level": one.level, "text": clean(one.text)} for one in insight.notes] if insight else [],
    }


def _slow_json(slow: Slow, clean: Clean) -> dict[str, Any]:
    return {"item": clean(slow.item), "seconds": slow.seconds, "worker": slow.worker}


def group_json(group: FailureGroup, clean: Clean = str) -> dict[str, Any]:
    """Items that went wrong with one class of error."""
    return {
        "error": group.error_class,
        "sqlstate": group.sqlstate,
        "items": group.items,
        "failed": group.failed,
        "quarantined": group.quarantined,
        "unknown": group.unknown,
        "message": clean(group.message),
    }


def standing_json(found: Standing, run: str, clean: Clean = str) -> dict[str, Any]:
    """What ``show --item --json`` prints."""
    return {"schema": SCHEMA, "run": run, **cleaned(asdict(found), clean)}


def runs_json(records: Iterable[RunRecord], clean: Clean = str) -> dict[str, Any]:
    """What ``runs --json`` prints."""
    return {"schema": SCHEMA, "runs": [record_json(record, clean) for record in records]}


def failure_json(failure: FailureRecord, clean: Clean = str) -> dict[str, Any]:
    """One line of ``failures --format jsonl``. An item of a type JSON does not have is shown as text."""
    return {
        "item": cleaned(failure.item, clean),
        "status": failure.state,
        "attempts": failure.attempts,
        "deaths": failure.deaths,
        "error": failure.error_class,
        "sqlstate": failure.sqlstate,
        "message": clean(failure.message),
    }


def cleaned(value: Any, clean: Clean = str) -> Any:
    """Copy plain data as JSON has it, each text in it cleaned."""
    if isinstance(value, Mapping):
        return {clean(str(name)): cleaned(one, clean) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(one, clean) for one in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)  # JSON has no NaN and no infinity
    return clean(value.hex() if isinstance(value, bytes) else str(value))


def dumped(value: Mapping[str, Any] | list[Any]) -> str:
    """Plain data on one line, in ASCII, so that no terminal and no encoding can spoil it."""
    return json.dumps(value, allow_nan=False)


def _counts(counts: Counts) -> dict[str, int]:
    return {name: getattr(counts, name) for name in COUNTS}


def _speed(items: int, elapsed_s: float) -> dict[str, float]:
    return {"elapsed_s": round(elapsed_s, 3), "items_per_s": round(items / elapsed_s, 1) if elapsed_s > 0 and items > 0 else 0.0}
