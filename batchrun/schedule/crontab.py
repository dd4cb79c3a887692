"""Lines for cron, and a block of them in the user's crontab that leaves everything else as it is, byte for byte.

jobs -> lines -> block        # BEGIN batchrun /app/config.toml ... # END batchrun /app/config.toml
crontab -l -> with_block | without_block -> crontab -
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from batchrun.errors import ConfigError
from batchrun.schedule.commands import project_command, refuse_unspeakable, run_command
from batchrun.schedule.expressions import plain_fields
from batchrun.schedule.zones import LOCALTIME, host_zone, offsets, show_the_same

if TYPE_CHECKING:
    from batchrun.config import Settings
    from batchrun.schedule.gathering import Scheduled

MOST_CHARACTERS = 998
"""Of a command: Debian's cron takes no longer one, and then refuses the whole crontab."""

PROGRAM = "crontab"
_HOUR = timedelta(hours=1)


# ------------------------------------------------------------------------------------------------------ the lines
def crontab_block(settings: Settings, jobs: Sequence[Scheduled]) -> str:
    """The marked block of a project. Raises ConfigError with every job that a crontab cannot start at the right time."""
    host, now = host_zone(), datetime.now(UTC)
    lines, refused = [], []
    for one in jobs:
        try:
            lines += [f"# {one.job}: {one.words}", crontab_line(settings, one, host, now)]
        except ConfigError as error:
            refused.append(str(error))
    if refused:
        raise ConfigError("\n".join(refused))
    begin, end = _marks(settings.need_file())
    removed_by = shlex.join(project_command(settings, "schedule uninstall"))
    return "\n".join(
        [begin, f"# Written by batchrun schedule; times are of {host.key}. {removed_by} takes it out.", *lines, end, ""]
    )


def crontab_line(settings: Settings, job: Scheduled, host: ZoneInfo, now: datetime) -> str:
    """``0 3 * * * /app/.venv/bin/batchrun run totals -q --config /app/config.toml``. Raises ConfigError."""
    fields = plain_fields(job.expression)
    if fields is None:
        raise ConfigError(
            f"{job.job}: no cron knows the L and # of {job.expression!r}. Start it by systemd (batchrun schedule export "
            "--systemd) or by batchrun schedule run, or write days of the month."
        )
    if not _is_right(fields, job.zone, host, now):
        raise ConfigError(
            f"{job.job}: its time zone is {job.zone.key}, and cron goes by this machine's, {host.key}: it would start at another "
            "time. Start it by systemd (batchrun schedule export --systemd) or by batchrun schedule run, which know time zones; "
            "or leave timezone out and write the schedule in the machine's time."
        )
    command = run_command(settings, job.job)
    refuse_unspeakable(command, backslashes=True)
    spoken = shlex.join(command).replace("%", r"\%")  # cron would end the command at a bare one
    if len(spoken.encode()) > MOST_CHARACTERS:
        raise ConfigError(
            f"{job.job}: the command is longer than the {MOST_CHARACTERS} characters that cron takes: {spoken[:60]}... "
            "Link to the project from a shorter path."
        )
    return f"{' '.join(fields)} {spoken}"


def _is_right(fields: Sequence[str], zone: ZoneInfo, host: ZoneInfo, now: datetime) -> bool:
    """Whether a cron that goes by ``host`` starts it when the job's zone says so."""
    if show_the_same(zone, host, now):
        return True
    every_hour = all(field == "*" for field in fields[1:])
    return every_hour and all(one % _HOUR == timedelta() for one in offsets(zone, now) | offsets(host, now))


def doubtful_zone() -> str:
    """A warning where this shell's TZ is not what cron will go by; empty where all is well."""
    if "TZ" in os.environ and LOCALTIME.exists():
        here, machine = host_zone(), host_zone({})
        if not show_the_same(here, machine, datetime.now(UTC)):
            return (
                f"TZ is {os.environ['TZ']!r} here, but cron goes by its own, which for a cron started at boot is "
                f"{machine.key} ({LOCALTIME}). Make sure that both are the same."
            )
    return ""


# ------------------------------------------------------------------------------------------------------ the block
def _marks(config: Path) -> tuple[str, str]:
    return f"# BEGIN batchrun {config}", f"# END batchrun {config}"


def with_block(crontab: bytes, block: str, config: Path) -> bytes:
    """The crontab with a project's block, put where its former one stands, else at the end. Raises ConfigError."""
    new = block.encode()
    if (place := _place(crontab, config)) is not None:
        return crontab[: place[0]] + new + crontab[place[1] :]
    ends = crontab.endswith(b"\n") or not crontab
    return crontab + (b"" if ends else b"\n") + new


def without_block(crontab: bytes, config: Path) -> bytes | None:
    """The crontab without a project's block; None where there is none. Raises ConfigError."""
    place = _place(crontab, config)
    return None if place is None else crontab[: place[0]] + crontab[place[1] :]


def _place(crontab: bytes, config: Path) -> tuple[int, int] | None:
    """Where a project's block begins and ends. Raises ConfigError where its marks are not one pair."""
    begin, end = (
        [found.span() for found in re.finditer(rb"^%s[ \t]*(?:\n|\Z)" % re.escape(mark.encode()), crontab, re.MULTILINE)]
        for mark in _marks(config)
    )
    if not begin and not end:
        return None
    if len(begin) != 1 or len(end) != 1 or end[0][0] < begin[0][1]:
        raise ConfigError(
            f"The crontab has {len(begin)} times '{_marks(config)[0]}' and {len(end)} times '{_marks(config)[1]}', not one pair; "
            "nothing was changed. Take the remains out with: crontab -e"
        )
    return begin[0][0], end[0][1]


# ---------------------------------------------------------------------------------------------------- the program
def read_crontab() -> bytes:
    """What the user's crontab holds; nothing where there is none. Raises ConfigError."""
    done = _call("-l")
    if done.returncode == 0:
        return done.stdout
    said = _said(done)
    if re.search(r"no crontab for|can't open '", said):  # there is no code for it; the latter is busybox
        return b""
    raise ConfigError(f"The crontab cannot be read: crontab -l ended with {done.returncode}: {said}")


def write_crontab(text: bytes) -> None:
    """Make this the user's crontab. Raises ConfigError; the former one is then still in place."""
    done = _call("-", text)
    if done.returncode != 0:
        raise ConfigError(f"The crontab was not changed: crontab - ended with {done.returncode}: {_said(done)}")


def _call(argument: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    program = shutil.which(PROGRAM)
    if program is None:
        raise ConfigError(
            "There is no program crontab here. Install cron (Debian: apt install cron), or start the jobs by systemd "
            "(batchrun schedule export --systemd) or, as in a container, by batchrun schedule run."
        )
    try:
        return subprocess.run(
            [program, argument], input=text, capture_output=True, env={**os.environ, "LC_ALL": "C"}, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{program} {argument} cannot be run: {error}") from None


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return " ".join((done.stderr or done.stdout).decode(errors="replace").split()) or "it said nothing"
