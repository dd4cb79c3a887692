"""The hours in which a run may work, such as ``22:00-06:00``; over midnight where the end is before the beginning."""

from __future__ import annotations

import re
import zoneinfo
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchrun.options import RunOptions

_TEXT = re.compile(r"\s*(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)(?:\s+(\S+))?\s*", re.ASCII)
_DAY = 24 * 60


@dataclass(frozen=True, slots=True)
class Window:
    """begin, end: minutes after midnight, the end not included. zone: a time zone's name; None = the host's."""

    begin: int
    end: int
    zone: str | None = None

    def __str__(self) -> str:
        return f"{_clock(self.begin)}-{_clock(self.end)}" + (f" {self.zone}" if self.zone else "")

    def is_open(self, moment: datetime) -> bool:
        """May a run work at that moment, which must be aware? The clock on the wall counts, also when it is put back."""
        local = self._there(moment)
        now = local.hour * 60 + local.minute
        return self.begin <= now < self.end if self.begin < self.end else now >= self.begin or now < self.end

    def closed_text(self, moment: datetime) -> str:
        """Why a run does not work at that moment, for people."""
        return f"its window {self} is closed: it is {self._there(moment):%H:%M} there, and it opens at {_clock(self.begin)}"

    def _there(self, moment: datetime) -> datetime:
        return moment.astimezone(zoneinfo.ZoneInfo(self.zone) if self.zone else None)


def window(value: object) -> Window:
    """Read ``"22:00-06:00"`` or ``"22:00-06:00 Europe/Berlin"``. Raises ValueError for anything else."""
    if isinstance(value, Window):
        return value
    match = _TEXT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is no window; write hours such as '22:00-06:00', or '22:00-06:00 Europe/Berlin'")
    begin, end = int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])
    if begin >= _DAY or end > _DAY or int(match[2]) > 59 or int(match[4]) > 59:
        raise ValueError(f"{value!r} is no window: hours go from 00:00 to 24:00, such as '22:00-06:00'")
    if begin == end or (begin and begin == end % _DAY):
        raise ValueError(f"{value!r} is no window: it ends when it begins; leave it out to run at any hour")
    if match[5] and not _is_zone(match[5]):
        raise ValueError(f"{value!r}: {match[5]!r} is no time zone; write a name such as 'Europe/Berlin' or 'UTC'")
    return Window(begin, end, match[5])


def zoned(options: RunOptions, zone: str | None) -> RunOptions:
    """The options with their window in the job's time zone, where it names none of its own."""
    if options.window is None or options.window.zone or not zone:
        return options
    return replace(options, window=replace(options.window, zone=zone))


def now() -> datetime:
    """The present moment."""
    return datetime.now(UTC)


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _is_zone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True
