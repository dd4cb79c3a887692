"""The project: its config.toml, who can read it, whether its jobs can be imported, and whether their schedules are in force."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from batchrun.checkup.findings import Finding, ok, problem, warning
from batchrun.checkup.subject import Subject
from batchrun.config import Settings, effective_options, job_settings, unknown_jobs, warnings
from batchrun.errors import BatchrunError, ConfigError
from batchrun.jobs import Job
from batchrun.loading import find_jobs, load_job

CRONTAB_WAIT_S = 10.0


def config(subject: Subject) -> Iterator[Finding]:
    if subject.refused is not None:
        yield problem("config", str(subject.refused), "Correct it; batchrun config then shows every value and its origin.")
        return
    settings = subject.settings
    if settings is None or settings.file is None:
        yield warning(
            "config", "There is no config.toml here or in a folder above, so there are no jobs",
            "Change to the project's folder, say --config FILE, or make a project: batchrun init",
        )  # fmt: skip
        return
    profile = f", profile {settings.profile}" if settings.profile else ""
    yield ok("config", f"{settings.file}{profile}")


def secrets(subject: Subject) -> Iterator[Finding]:
    """Can others read a password?"""
    if subject.settings is None or subject.settings.file is None:
        return
    sentences = warnings(subject.settings)
    for sentence in sentences:
        told, _, remedy = sentence.partition(": chmod")
        yield warning("secrets", told, f"chmod{remedy}" if remedy else "")
    if not sentences:
        yield ok("secrets", "No file with a password in it is readable by others")


def jobs(subject: Subject) -> Iterator[Finding]:
    """Imports each of them, as a run would."""
    settings = subject.settings
    if settings is None or settings.file is None:
        return
    sentences: list[str] = []
    try:
        found = find_jobs(settings.folder, sentences.append)
    except ConfigError as error:
        yield problem("jobs", str(error), "Each job needs a name of its own.")
        return
    for sentence in sentences:
        yield problem("jobs", sentence, "Correct the file.")
    for sentence in unknown_jobs(settings, [one.name for one in found]):
        yield warning("jobs", sentence, "Correct the name in config.toml, or take the table out.")
    good = [one.name for one in found]
    for one in found:
        try:
            _loaded(settings, one.name)
        except BatchrunError as error:
            good.remove(one.name)
            yield problem("jobs", str(error), "Correct it; batchrun jobs NAME tries again.")
    if good:
        yield ok("jobs", f"{len(good)} can be imported: {', '.join(good[:8])}{', ...' if len(good) > 8 else ''}")
    elif not found and not sentences:
        yield warning("jobs", f"There are no jobs in {settings.folder / 'jobs'}", "A job is a function under @job from batchrun.")


def _loaded(settings: Settings, name: str) -> Job:
    job = load_job(settings.folder, name, warn=lambda sentence: None)
    effective_options(settings, job)
    return job


# ------------------------------------------------------------------------------------------------------ schedules
@dataclass(frozen=True, slots=True)
class Crontab:
    """What ``crontab -l`` says of this user. error: why it says nothing; empty where it does, or there is no crontab yet."""

    lines: tuple[str, ...] = ()
    error: str = ""


def read_crontab() -> Crontab:
    """Changes nothing. Every way to have none is no error of ours."""
    program = shutil.which("crontab")
    if program is None:
        return Crontab(error="there is no program crontab here")
    try:
        done = subprocess.run(
            [program, "-l"], capture_output=True, text=True, errors="replace", timeout=CRONTAB_WAIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Crontab(error=f"crontab -l failed: {error}")
    if done.returncode and "no crontab" not in done.stderr.lower():
        return Crontab(error=f"crontab -l failed: {done.stderr.strip() or done.returncode}")
    return Crontab(tuple(line.strip() for line in done.stdout.splitlines()))


def schedules(subject: Subject, crontab: Crontab | None = None) -> Iterator[Finding]:
    """Is every schedule in the crontab of this user? It may be in force elsewhere, so this is at most a warning."""
    settings = subject.settings
    if settings is None or settings.file is None:
        return
    wanted = _scheduled(settings)
    if not wanted:
        yield ok("schedules", "No job has a schedule")
        return
    found = crontab or read_crontab()
    missing = [name for name in wanted if not any(starts(line, name, str(settings.file)) for line in found.lines)]
    if not missing:
        yield ok("schedules", f"In the crontab: {', '.join(wanted)}")
        return
    why = found.error or "they are not in this user's crontab"
    yield warning(
        "schedules", f"{', '.join(missing)}: scheduled, but {why}",
        "batchrun schedule install; or nothing, where systemd, another host or batchrun schedule run starts them.",
    )  # fmt: skip


def _scheduled(settings: Settings) -> list[str]:
    names = []
    for one in find_jobs(settings.folder, lambda sentence: None):
        try:
            own = job_settings(settings, _loaded(settings, one.name))
        except BatchrunError:
            continue  # told by ``jobs``
        if own.schedule and own.enabled:
            names.append(one.name)
    return names


def starts(line: str, job: str, config: str) -> bool:
    """Does a line of a crontab start this job of this project?"""
    if line.startswith("#") or not re.search(rf"\bbatchrun\b.*\srun\s+(?:\S+\s+)*?{re.escape(job)}(?:\s|$)", line):
        return False
    named = re.search(r"--config[ =](\S+)", line)
    return named is None or named[1].strip("'\"") == config
