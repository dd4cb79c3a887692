"""The jobs that have a schedule: found by reading, their own files imported for what their decorators say.

jobs/*.py, config.toml, profile -> Scheduled(job, expression, zone, ...), sorted by name; what is broken is a warning
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from batchrun.config import effective_options, job_parameters, job_settings, parameter_places, unknown_jobs
from batchrun.errors import BatchrunError, ConfigError, JobError
from batchrun.jobs import Job
from batchrun.loading import FoundJob, find_jobs, load_job
from batchrun.options import RunOptions
from batchrun.parameters import parse_params
from batchrun.schedule.expressions import firings, words
from batchrun.schedule.zones import zone_named

if TYPE_CHECKING:
    from batchrun.config import Settings

Warn = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A job with a schedule. timezone: as it is set, None = the machine's own. zone: that one. grace_s: of its runs."""

    job: str
    expression: str
    timezone: str | None
    zone: ZoneInfo
    enabled: bool
    if_running: str
    on_unfinished: str
    grace_s: float

    @property
    def words(self) -> str:
        return words(self.expression)

    def next_firings(self, after: datetime, count: int) -> list[datetime]:
        return list(islice(firings(self.expression, self.zone, after), count))


def scheduled_jobs(settings: Settings, warn: Warn) -> list[Scheduled]:
    """Every job with a schedule, those that are not enabled too. Raises ConfigError for settings that cannot be used."""
    found = find_jobs(settings.folder, lambda sentence: warn(f"{sentence}"))
    for sentence in unknown_jobs(settings, [one.name for one in found]):
        warn(sentence)
    return list(_scheduled(settings, found, warn))


def enabled_jobs(settings: Settings, warn: Warn) -> list[Scheduled]:
    """Those that are to be started. Raises ConfigError where there is none. Warns of runs that would not even begin."""
    known = scheduled_jobs(settings, warn)
    found = [one for one in known if one.enabled]
    if not found:
        off = f" {', '.join(one.job for one in known)}: not enabled." if known else ""
        raise ConfigError(
            f"No job of {settings.folder} has a schedule.{off} "
            'Give one to a job: @job(schedule="0 3 * * *"), or schedule = "0 3 * * *" under [jobs.NAME] in config.toml.'
        )
    return found


def _scheduled(settings: Settings, found: list[FoundJob], warn: Warn) -> Iterator[Scheduled]:
    for one in found:
        job = _loaded(settings, one, warn)
        own = job_settings(settings, job)
        if own.schedule is None:
            continue
        if own.enabled and job.items is not None:
            _warn_of_parameters(settings, job, warn)
        yield Scheduled(
            job.name, own.schedule, own.timezone, zone_named(own.timezone), bool(own.enabled), str(own.if_running),
            str(own.on_unfinished), _grace_s(settings, job),
        )  # fmt: skip


def _loaded(settings: Settings, found: FoundJob, warn: Warn) -> Job:
    """The job; where its file is broken, one of which only config.toml is known."""
    try:
        return load_job(settings.folder, found.name, warn=lambda known: None)
    except JobError as error:
        warn(f"{error}; of its schedule only what config.toml says is known")
        return Job(found.name, _unknown)


def _unknown() -> None:
    """Stands for a task that cannot be imported."""


def _grace_s(settings: Settings, job: Job) -> float:
    try:
        return effective_options(settings, job).grace
    except BatchrunError:
        return RunOptions().grace


def _warn_of_parameters(settings: Settings, job: Job, warn: Warn) -> None:
    """A firing gives no parameters: those that are required must be in config.toml."""
    try:
        parse_params(job, job_parameters(settings, job), places=parameter_places(settings, job))
    except ConfigError as error:
        first, _, rest = str(error).partition("\n")
        warn(f"{job.name} has a schedule, but its runs would not begin: {first}{' ...' if rest else ''}")
