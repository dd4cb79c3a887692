"""What a dry run found, for people and as JSON."""

from __future__ import annotations

from typing import Any

from batchrun.durations import text as duration
from batchrun.rehearsal import Rehearsal
from batchrun.reporting import text
from batchrun.runs import Counts

_WHOLE_IF_UNKNOWN = 10**6
_PERCENTS = (50, 95, 99)


def lines(found: Rehearsal, counts: Counts) -> list[str]:
    """The lines behind the summary: what became of the items, what one takes, how long all would take."""
    return [*_warnings(found), *_chosen(found, counts), *_outcomes(found, counts), *_item(found), *_forecast(found)]


def _warnings(found: Rehearsal) -> list[str]:
    return [f"Warning: {note}" if found.partial and place == 0 else f"  Note: {note}" for place, note in enumerate(found.notes)]


def _chosen(found: Rehearsal, counts: Counts) -> list[str]:
    of = "" if found.whole is None else f" of about {text.items_text(found.whole)}"
    if found.sample is None:
        return (
            [f"  the first {text.items_text(counts.planned)}{of} were tried; --sample 500 tries some from everywhere"]
            if of
            else []
        )
    return [f"  a random sample, {counts.planned:,}{of}; --seed {found.seed} draws it again"]


def _outcomes(found: Rehearsal, counts: Counts) -> list[str]:
    rows = [("would be done", counts.done, ""), ("would be skipped", counts.skipped, "")]
    made = [f"  {many:>9,}  {what}" for what, many, _ in rows if many or what == "would be done"]
    for name, errors in sorted(found.errors.items(), key=lambda one: -one[1].items):
        made.append(f"  {errors.items:>9,}  {name}, such as: {text.trouble_text(errors.example)}")
    return made


def _item(found: Rehearsal) -> list[str]:
    times = [found.latency.percentile(percent) for percent in _PERCENTS]
    made = []
    if found.latency.items:
        shown = ", ".join(f"p{percent} {seconds_text(took)}" for percent, took in zip(_PERCENTS, times, strict=True))
        made.append(f"  an item takes {shown}")
    parts = [
        ("computes {} in its worker", found.cpu_s),
        ("{} in the server", found.server_s),
        ("waits {}", found.waiting_s),
        ("and a COMMIT would add {}", found.commit_s),
    ]
    if found.cpu_s is not None:
        made.append("  on average it " + ", ".join(shown.format(seconds_text(took)) for shown, took in parts if took is not None))
    if found.statements is not None:
        wal = "" if found.wal_bytes is None else f", {found.wal_bytes:,.0f} bytes of write-ahead log ({found.wal_by})"
        made.append(f"  {found.statements:.3g} statements an item{wal}")
    return made


def _forecast(found: Rehearsal) -> list[str]:
    if not found.expected:
        return ["  There were too few items to say how long all of them would take; try more."]
    many = text.items_text(_WHOLE_IF_UNKNOWN if found.whole is None else found.whole)
    made = [f"  Expected for {'every ' if found.whole is None else 'all '}{many}, on this machine as busy as it was:"]
    for one in found.expected:
        took = one.duration_s if one.duration_s is not None else _WHOLE_IF_UNKNOWN / one.per_s
        workers = f"{one.workers} worker{' ' if one.workers == 1 else 's'}"
        made.append(f"    {workers}  {duration(took):>12}  {text.rate_text(one.per_s):>8} items/s")
    return [*made, f"  {found.bound_by[:1].upper()}{found.bound_by[1:]}."] if found.bound_by else made


def seconds_text(seconds: float | None) -> str:
    """``850 us``, ``2.4 ms``, ``1.3 s``."""
    if seconds is None:
        return "?"
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def as_json(found: Rehearsal) -> dict[str, Any]:
    """The key ``rehearsal`` of ``run --dry-run --json``; times are seconds, null = not known."""
    return {
        "sample": found.sample,
        "seed": found.seed,
        "source_items": found.whole,
        "errors": [_error(name, one.items, one.example) for name, one in found.errors.items()],
        "committed_past_session": found.partial,
        "item_s": {f"p{percent}": rounded(found.latency.percentile(percent)) for percent in _PERCENTS},
        "cpu_s": rounded(found.cpu_s),
        "server_cpu_s": rounded(found.server_s),
        "waiting_s": rounded(found.waiting_s),
        "commit_s": rounded(found.commit_s),
        "statements_per_item": rounded(found.statements),
        "wal_bytes_per_item": rounded(found.wal_bytes),
        "wal_measured": found.wal_by or None,
        "cores": found.cores,
        "expected": [
            {"workers": one.workers, "duration_s": rounded(one.duration_s), "items_per_s": rounded(one.per_s)}
            for one in found.expected
        ],
        "notes": list(found.notes),
    }


def _error(name: str, items: int, example: Any) -> dict[str, Any]:
    error = example.error
    return {
        "class": name,
        "items": items,
        "sqlstate": error.sqlstate if error else None,
        "example_item": text.item_text(example.item),
        "example_message": text.message_text(error.message) if error else "",
    }


def rounded(value: float | None) -> float | None:
    """Four digits that count."""
    return None if value is None else float(f"{value:.4g}")
