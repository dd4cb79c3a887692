"""Which jobs are due. It looks at a clock it is given, and starts nothing.

the firing last dealt with, now -> the latest firing between them: on time, or missed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from batchrun.schedule.expressions import latest_firing
from batchrun.schedule.gathering import Scheduled

LATE_S = 60.0
"""A firing that is later than this was missed: somebody who was there starts a job within a second, on a busy machine a few."""

SET_BACK_S = 3600.0
"""A firing dealt with that lies further ahead than this: the clock was wrong then, and no job must wait for it to come again."""


@dataclass(frozen=True, slots=True)
class Due:
    """A job that is due. was_missed: nobody was there when its clock struck."""

    job: Scheduled
    firing: datetime
    was_missed: bool


@dataclass(slots=True)
class Agenda:
    """fired: of each job the firing last dealt with, in seconds since 1970."""

    jobs: Sequence[Scheduled]
    fired: dict[str, float] = field(default_factory=dict)

    def due(self, now: float) -> list[Due]:
        """What is due: of each job the latest firing alone, so that many that were missed are one. The earliest first."""
        until = datetime.fromtimestamp(now, UTC)
        found = []
        for job in self.jobs:
            since = datetime.fromtimestamp(self.fired[job.job], UTC)
            if since < until and (firing := latest_firing(job.expression, job.zone, since, until)):
                found.append(Due(job, firing, now - firing.timestamp() > LATE_S))
        return sorted(found, key=lambda one: one.firing.timestamp())

    def next_firing(self, now: float) -> tuple[datetime, Scheduled] | None:
        """What is due next, after ``now``."""
        after = datetime.fromtimestamp(now, UTC)
        coming = [(firing, job) for job in self.jobs for firing in job.next_firings(after, 1)]
        return min(coming, key=lambda one: one[0].timestamp(), default=None)

    def ahead(self, now: float) -> list[Scheduled]:
        """Jobs whose last firing lies ahead: the clock was put back since."""
        return [job for job in self.jobs if self.fired[job.job] > now + SET_BACK_S]
