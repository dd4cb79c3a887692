"""Time zones: the job's own, the machine's, and whether two of them show the same time."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from zoneinfo import ZoneInfo

from batchrun.errors import ConfigError

LOCALTIME = Path("/etc/localtime")
YEARS = 10
"""How far ahead zones are looked at: laws change sooner."""


def zone_named(name: str | None) -> ZoneInfo:
    """The zone of a job; None = the machine's own. Raises ConfigError where that cannot be told."""
    return host_zone() if name is None else ZoneInfo(name)


def host_zone(environ: dict[str, str] | os._Environ[str] = os.environ, localtime: Path = LOCALTIME) -> ZoneInfo:
    """The machine's zone: by TZ, else by /etc/localtime, else UTC, as the C library does it. Raises ConfigError."""
    if (named := environ.get("TZ", "").removeprefix(":")) and "TZ" in environ:
        try:
            return _of_file(Path(named)) if named.startswith("/") else ZoneInfo(named)
        except (KeyError, ValueError, OSError):
            raise ConfigError(
                f"TZ={named!r} is no name of a time zone, so the machine's own is not known. "
                "Write timezone = 'Europe/Berlin' for the job, or set TZ to such a name."
            ) from None
    if "TZ" in environ or not localtime.exists():
        return ZoneInfo("UTC")
    return _of_file(localtime)


def _of_file(path: Path) -> ZoneInfo:
    """A zone by its file, named as the link to it tells."""
    name = str(path.resolve()).rpartition("/zoneinfo/")[2]
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        with path.open("rb") as file:
            return ZoneInfo.from_file(file, key=str(path))


def changes(zone: ZoneInfo, since: datetime, years: int = YEARS) -> tuple[datetime, ...]:
    """The instants, in UTC, at which the zone's clock is put forward or back in the years to come, to the minute."""
    return _changes(zone, since.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0), years)


@lru_cache
def _changes(zone: ZoneInfo, day: datetime, years: int) -> tuple[datetime, ...]:
    found = []
    for _ in range(366 * years):
        after = day + timedelta(days=1)
        if _offset(zone, day) != _offset(zone, after):
            found.append(_change_between(zone, day, after))
        day = after
    return tuple(found)


def _change_between(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    offset = _offset(zone, before)
    while after - before > timedelta(minutes=1):
        middle = before + (after - before) // 2 // timedelta(minutes=1) * timedelta(minutes=1)
        before, after = (middle, after) if _offset(zone, middle) == offset else (before, middle)
    return after


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def offsets(zone: ZoneInfo, since: datetime) -> set[timedelta]:
    """What the zone is ahead of UTC by, in the years to come."""
    return {_offset(zone, since), *(_offset(zone, change) for change in changes(zone, since))}


def show_the_same(one: ZoneInfo, other: ZoneInfo, since: datetime) -> bool:
    """Whether both clocks show the same time in the years to come, whatever the zones are called."""
    if one.key == other.key:
        return True
    moments = [since, *changes(one, since), *changes(other, since)]
    return all(_offset(one, moment) == _offset(other, moment) for moment in moments)
