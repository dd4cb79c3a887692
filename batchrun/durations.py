"""Durations as people write them: ``90``, ``"30s"``, ``"5m"``, ``"2h"``, a timedelta. Seconds inside."""

from __future__ import annotations

import math
import re
from datetime import timedelta

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*", re.ASCII)


def seconds(value: object) -> float:
    """Return a duration in seconds. Raises ValueError, with examples, for anything that is none."""
    found: float | None = None
    if isinstance(value, timedelta):
        found = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value)
    elif isinstance(value, str) and (match := _TEXT.fullmatch(value)):
        found = float(match[1]) * _UNITS[match[2] or "s"]
    if found is None or not math.isfinite(found):
        raise ValueError(f"{value!r} is no duration; write seconds or a text such as 30, '30s', '5m' or '2h'")
    return found


def text(duration_s: float) -> str:
    """A duration for people: '0.4 s', '12 s', '3 min 20 s', '2 h 5 min'."""
    if duration_s < 10:
        return f"{duration_s:.1f} s"
    whole = round(duration_s)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
