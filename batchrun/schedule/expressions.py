"""Cron expressions: checked with messages of our own, in words, and the moments at which they fire.

cronsim knows when an expression fires, on both changes of the clock as Debian's cron does it: a fixed time in the hour that is
skipped fires as soon as that hour is over, one in the hour that comes twice fires once, the first time; an expression whose
minute or hour begins with ``*`` fires whenever the clock shows such a minute.

Five fields, names of months and days, lists, ranges, steps; beyond cron's own: L (the last day), LW (the last weekday), 5L (the
last Friday), MON#2 (the second Monday). Where day of month and day of week are both given, either will do; both must hold where
one of them begins with ``*``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cronsim import CronSim

FIELDS = ("minute", "hour", "day of month", "month", "day of week")
RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
EXAMPLE = "write one such as '0 3 * * *' (every day at 03:00)"
_LOOK_BACK = timedelta(hours=25)
"""How far before a moment one must begin to find what fires at it: a time that the clock skipped fires when it is back."""

_WINDOWS = (timedelta(hours=1), timedelta(days=1), timedelta(days=40))


# ------------------------------------------------------------------------------------------------------- checking
def checked_expression(value: object) -> str:
    """Return the expression with single spaces. Raises ValueError that says what is wrong in it, with an example."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no cron expression; {EXAMPLE}")
    text = " ".join(value.split())
    wrong = _wrong_nickname(text) if text.startswith("@") else _wrong_fields(text)
    if wrong:
        raise ValueError(f"{text!r} is no cron expression: {wrong}; {EXAMPLE}")
    return text


def expanded(expression: str) -> str:
    """The five fields of an expression that was checked, for a nickname as well."""
    return NICKNAMES.get(expression.lower(), expression)


def simulated(expression: str, start: datetime) -> CronSim:
    """What cronsim makes of an expression that was checked."""
    from cronsim import CronSim

    return CronSim(expanded(expression), start)


def _wrong_nickname(text: str) -> str:
    if text.lower() == "@reboot":
        return "@reboot is no time; what the machine missed while it was off runs by itself when it is on again"
    return "" if text.lower() in NICKNAMES else f"the nicknames are {', '.join(NICKNAMES)}"


def _wrong_fields(text: str) -> str:
    from cronsim import CronSim, CronSimError

    parts = text.upper().split()
    if len(parts) != len(FIELDS):
        seconds = "; cron knows no seconds" if len(parts) == 6 else ""
        fields = "1 field" if len(parts) == 1 else f"{len(parts)} fields"
        return f"it has {fields}, not the five of minute, hour, day of month, month, day of week{seconds}"
    for name, part, (low, high) in zip(FIELDS, parts, RANGES, strict=True):
        for term in part.split(","):
            if wrong := _wrong_term(name, term, low, high):
                return wrong
    try:
        next(CronSim(text, datetime(2026, 1, 1)))  # noqa: DTZ001 - any will do; without a zone it is quickest
    except (CronSimError, StopIteration):
        return "it never fires, because no such month has such a day"
    return ""


def _wrong_term(name: str, term: str, low: int, high: int) -> str:
    """What is wrong in one term of a field; empty where nothing is."""
    if (name == "day of month" and term in ("L", "LW")) or (name == "day of week" and _is_nth_day(term)):
        return ""
    span, slash, step = term.partition("/")
    if slash and not (_is_digits(step) and int(step) > 0):
        return f"the step of {term!r} in the {name} is no whole number above 0"
    if slash and int(step) > high - low:
        return f"the step of {term!r} is longer than the {name} has values, {low} to {high}: it would never be taken"
    first, dash, last = span.partition("-")
    ends = [_number(name, one) for one in ([first, last] if dash else [first])]
    if span == "*":
        return ""
    for text, number in zip((first, last), ends, strict=False):
        if number is None or not low <= number <= high:
            names = {"month": " or JAN to DEC", "day of week": " or SUN to SAT"}.get(name, "")
            return f"{text!r} in the {name} is not from {low} to {high}{names}, *, a list (1,15), a range (9-17) or a step (*/10)"
    if dash and ends[0] is not None and ends[1] is not None and ends[0] > ends[1]:
        return f"the range {span!r} in the {name} goes down; write it as two, {first}-{_end(name)},{_start(name)}-{last}"
    return ""


def _end(name: str) -> str:
    return {"month": "DEC", "day of week": "6"}.get(name) or str(RANGES[FIELDS.index(name)][1])


def _start(name: str) -> str:
    return {"month": "JAN", "day of week": "0"}.get(name) or str(RANGES[FIELDS.index(name)][0])


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 5


def _number(name: str, text: str) -> int | None:
    if name == "month" and text in MONTHS:
        return MONTHS.index(text) + 1
    if name == "day of week" and text in DAYS:
        return DAYS.index(text)
    return int(text) if _is_digits(text) else None


def _is_nth_day(term: str) -> bool:
    """``5L``, ``FRI#2``, ``5#2``."""
    day, mark, nth = term.partition("#")
    if mark:
        return _number("day of week", day) in range(8) and nth in ("1", "2", "3", "4", "5")
    return re.fullmatch(r"[0-7]L", term) is not None


def plain_fields(expression: str) -> list[str] | None:
    """The five fields as every cron reads them: numbers for names, ``5-59/10`` for ``5/10``. None: no cron can say it.

    A star that a field begins with stays, because it decides how the two days and the changes of the clock are taken.
    """
    parts = expanded(expression).upper().split()
    terms = [
        [_plain_term(name, high, term) for term in part.split(",")]
        for name, (_, high), part in zip(FIELDS, RANGES, parts, strict=True)
    ]
    if any(term is None for field in terms for term in field):
        return None
    return [",".join(map(str, field)) for field in terms]


def _plain_term(name: str, high: int, term: str) -> str | None:
    if name.startswith("day") and ("#" in term or "L" in term):
        return None
    span, slash, step = term.partition("/")
    ends = [one if one == "*" else str(_number(name, one)) for one in span.split("-")]
    if slash and len(ends) == 1 and span != "*":
        ends.append(str(high))
    return "-".join(ends) + slash + step


# ---------------------------------------------------------------------------------------------------------- words
_ORDINALS = {"1": "st", "2": "nd", "3": "rd"}
_REWRITTEN: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\b([23])([123])th\b", lambda found: f"{found[1]}{found[2]}{_ORDINALS[found[2]]}"),
    (r"\bday of month\b", "day of the month"),
    (r"^At the start of every hour\b", "every hour"),
    (r"^Every (\w+) minute of every hour\b", lambda found: _every(found, 60, "minutes")),
    (r"^At minute 0 past every (\w+) hour\b", lambda found: _every(found, 24, "hours")),
    (r"^At minute 0 past every hour from (\d+) through (\d+)", r"every hour from \1:00 to \2:00"),
    (r"^At (.+) every day\b", r"every day at \1"),
    (r"(day of the month) and on ", r"\1 and every "),
    (r"^At (.+?) on the (\w+) day of every month$", r"on the \2 day of every month at \1"),
    (r"^At ([\d:]+) on ([A-Z]\w+day through [A-Z]\w+day)$", r"\2 at \1"),
    (r"^At ([\d:]+) on ([A-Z]\w+day)$", r"every \2 at \1"),
)
_COUNTS = {"second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8}


def _every(found: re.Match[str], whole: int, unit: str) -> str:
    step = _COUNTS.get(found[1]) or int(found[1].removesuffix("th") if found[1][0].isdigit() else 0)
    return f"every {step} {unit}" if step and whole % step == 0 else found[0]


def words(expression: str) -> str:
    """``every day at 03:00``: an expression that was checked, for people."""
    text = simulated(expression, datetime(2026, 1, 1)).explain()  # noqa: DTZ001 - the time is not looked at
    for pattern, put in _REWRITTEN:
        text = re.sub(pattern, put, text)
    keeps = text.startswith(tuple(day + "day" for day in ("Sun", "Mon", "Tues", "Wednes", "Thurs", "Fri", "Satur")))
    return text if keeps else text[0].lower() + text[1:]


# ---------------------------------------------------------------------------------------------------------- firings
def firings(expression: str, zone: tzinfo, after: datetime) -> Iterator[datetime]:
    """The moments after ``after`` at which an expression fires, in its zone, in order, each once; endless in practice."""
    minute, hour = expanded(expression).split()[:2]
    is_fixed = not minute.startswith("*") and not hour.startswith("*")
    start = after.astimezone(UTC) - (_LOOK_BACK if is_fixed else timedelta())
    last = after.timestamp()
    for moment in simulated(expression, start.astimezone(zone)):
        if (found := moment.timestamp()) > last:  # by the instant: two moments of one zone compare by what its clock shows
            last = found
            yield moment


def latest_firing(expression: str, zone: tzinfo, since: datetime, until: datetime) -> datetime | None:
    """The last moment after ``since`` and not after ``until`` at which it fires; None where there is none."""
    for start in (*(until - window for window in _WINDOWS), since):
        found = None
        for moment in firings(expression, zone, max(start, since)):
            if moment.timestamp() > until.timestamp():
                break
            found = moment
        if found is not None or start <= since:
            return found
    return None
