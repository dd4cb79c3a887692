"""A cron expression as systemd's OnCalendar lines.

expression, zone -> the days, by weekday and by date -> "Mon..Fri *-*-* 03:00:00 Europe/Berlin"
                 -> what systemd leaves out where the clock changes -> "2027-03-28 01:00:00 UTC", for the years to come

systemd (252 was asked, by ``systemd-analyze calendar``) passes over a time that the clock skips, and sees the hour that
comes twice once. cron fires for the former when the hour is over, and hourly jobs in both of the latter. An expression of every
hour of every day is the same in UTC, where nothing changes; for the others the missing moments are written out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from batchrun.errors import ConfigError
from batchrun.schedule.expressions import DAYS, RANGES, expanded, firings, simulated
from batchrun.schedule.zones import changes, offsets

if TYPE_CHECKING:
    from cronsim import CronSim

_AROUND = timedelta(hours=26)
"""Before and behind a change of the clock, in this time systemd and cron may differ: a zone has left out a whole day."""

_HOUR = timedelta(hours=1)


def calendar_lines(expression: str, zone: ZoneInfo | None, host: ZoneInfo, now: datetime) -> list[str]:
    """The values of OnCalendar. zone: None = the machine's own, ``host``, which then stays unnamed.

    Raises ConfigError for what no calendar says.
    """
    known = simulated(expression, datetime(2026, 1, 1))  # noqa: DTZ001 - only its parts are looked at
    times = f"{_numbers(known.hours, RANGES[1])}:{_numbers(known.minutes, RANGES[0])}:00"
    months = _numbers(known.months, RANGES[3])
    dates = _dates(expression, known)
    clock = zone or host
    if _is_every_hour(known, dates) and all(one % _HOUR == timedelta() for one in offsets(clock, now)):
        return [f"*-*-* {times} UTC"]
    name = f" {zone.key}" if zone else ""
    lines = [f"{days} *-{months}{date} {times}{name}".lstrip() for days, date in dates]
    return lines + left_out(expression, clock, now)


def _is_every_hour(known: CronSim, dates: Sequence[tuple[str, str]]) -> bool:
    return len(known.hours) == 24 and len(known.months) == 12 and list(dates) == [("", "-*")]


def _numbers(values: Iterable[int], bounds: tuple[int, int]) -> str:
    """``*``, ``03``, ``09..17``, ``00/15`` or a list."""
    found = sorted(values)
    low, high = bounds
    if found == list(range(low, high + 1)):
        return "*"
    step = found[1] - found[0] if len(found) > 2 else 0
    if step and found == list(range(found[0], found[-1] + 1, step)):
        if found[-1] + step > high and step > 1:
            return f"{found[0]:02}/{step}"
        if step == 1:
            return f"{found[0]:02}..{found[-1]:02}"
    return ",".join(f"{one:02}" for one in found)


# ------------------------------------------------------------------------------------------------------- the days
def _dates(expression: str, known: CronSim) -> list[tuple[str, str]]:
    """Pairs of weekdays and a day of the month, which begins with ``-`` or, counted from the month's end, with ``~``."""
    by_date, by_weekday = _by_date(known), _by_weekday(known)
    every = ("", "-*")
    if not known.day_and:
        return [every] if every in by_date or every in by_weekday else by_date + by_weekday
    if by_date == [every]:
        return by_weekday
    if by_weekday == [every]:
        return by_date
    joined = [_both(date, weekday) for date in by_date for weekday in by_weekday]
    if None in joined:
        raise ConfigError(
            f"{expanded(expression)!r} cannot be said as a calendar of systemd: it asks for days that are counted both from the "
            "month's beginning and from its end. Run it by: batchrun schedule run"
        )
    return [one for one in joined if one is not None and one[1] != "-"]


def _by_date(known: CronSim) -> list[tuple[str, str]]:
    plain = [day for day in known.days if day > 0]
    made = [("", f"-{_numbers(plain, RANGES[2])}")] if plain else []
    if known.LAST in known.days:
        made.append(("", "~01"))
    if known.LAST_WEEKDAY in known.days:  # the last day if that is one, else the Friday before
        made += [("Mon..Fri", "~01"), ("Fri", "~02..03")]
    return made


def _by_weekday(known: CronSim) -> list[tuple[str, str]]:
    plain = {day % 7 for day in known.weekdays if isinstance(day, int)}
    made = [(_weekday_names(plain), "-*")] if plain else []
    for day, nth in sorted(one for one in known.weekdays if isinstance(one, tuple)):
        first = 7 * (nth - 1) + 1
        where = "~01..07" if nth == known.LAST else f"-{first:02}..{min(first + 6, 31)}"
        made.append((_weekday_names({day % 7}), where))
    return made


def _weekday_names(days: set[int]) -> str:
    """``Mon..Fri``; empty for every day."""
    if len(days) == 7:
        return ""
    names = [DAYS[day % 7].capitalize() for day in range(1, 8) if day % 7 in days]
    places = [day for day in range(1, 8) if day % 7 in days]
    in_a_row = len(places) > 2 and places[-1] - places[0] == len(places) - 1
    return f"{names[0]}..{names[-1]}" if in_a_row else ",".join(names)


def _both(date: tuple[str, str], weekday: tuple[str, str]) -> tuple[str, str] | None:
    """Days that are as both say; None where no calendar says it, "-" where there is no such day."""
    if weekday[1] == "-*":
        return (weekday[0] if not date[0] else _common(date[0], weekday[0]), date[1])
    if date[1][0] == "~" or weekday[1][0] == "~":
        return None
    common = sorted(_days(date[1]) & _days(weekday[1]))
    return weekday[0], f"-{_numbers(common, RANGES[2])}" if common else "-"


def _common(one: str, other: str) -> str:
    raise ConfigError(
        f"The last weekday of a month that is also {other} or {one} cannot be said as a calendar of systemd. "
        "Run it by: batchrun schedule run"
    )


def _days(date: str) -> set[int]:
    """The days that ``_numbers`` wrote."""
    text = date[1:]
    if text == "*":
        return set(range(1, 32))
    if ".." in text:
        first, last = map(int, text.split(".."))
        return set(range(first, last + 1))
    if "/" in text:
        first, step = map(int, text.split("/"))
        return set(range(first, 32, step))
    return set(map(int, text.split(",")))


# --------------------------------------------------------------------------------------- where the clock changes
def left_out(expression: str, zone: ZoneInfo, now: datetime) -> list[str]:
    """The firings of the years to come that systemd would leave out, as calendars in UTC."""
    moments = [moment for change in changes(zone, now) for moment in _left_out_at(expression, zone, change)]
    by_hour = groupby(sorted({one for one in moments if one > now}), key=lambda one: one.replace(minute=0))
    return [f"{hour:%Y-%m-%d %H}:{_numbers((one.minute for one in found), RANGES[0])}:00 UTC" for hour, found in by_hour]


def _left_out_at(expression: str, zone: ZoneInfo, change: datetime) -> set[datetime]:
    start, end = change - _AROUND, change + _AROUND
    wanted = set()
    for moment in firings(expression, zone, start):
        if moment.timestamp() > end.timestamp():
            break
        wanted.add(moment.astimezone(UTC))
    return wanted - _seen_by_systemd(expression, zone, start, end)


def _seen_by_systemd(expression: str, zone: ZoneInfo, start: datetime, end: datetime) -> set[datetime]:
    """It asks what the clock shows, takes what it shows twice for the first time, and never sees what it does not show."""
    first = (start - _HOUR).astimezone(zone).replace(tzinfo=None)
    seen = set()
    for shown in simulated(expression, first):
        moment = shown.replace(tzinfo=zone, fold=0).astimezone(UTC)
        if moment.astimezone(zone).replace(tzinfo=None) == shown:
            seen.add(moment)
        if moment > end:
            return seen
    return seen
