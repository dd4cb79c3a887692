"""Units for systemd: a service and a timer for each job.

jobs -> batchrun-PROJECT-JOB.service, batchrun-PROJECT-JOB.timer -> a folder, or one text
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from batchrun.config_layers import Layer
from batchrun.errors import ConfigError
from batchrun.schedule.calendars import calendar_lines
from batchrun.schedule.commands import refuse_unspeakable, run_command
from batchrun.schedule.zones import YEARS, host_zone

if TYPE_CHECKING:
    from batchrun.config import Settings
    from batchrun.schedule.gathering import Scheduled

_SPARE_S = 20.0
"""Beyond the grace of a run's items before systemd kills it: for the ledger to be written."""


def missed_policy(settings: Settings) -> str:
    """``[schedule] missed``: "run" (once, the default) or "skip"."""
    found = "run"
    layer: Layer
    for layer in settings.layers:
        found = next((str(value) for path, value in layer.leaves() if path == ("schedule", "missed")), found)
    return found


def unit_files(settings: Settings, jobs: Sequence[Scheduled], *, for_user: bool) -> dict[str, str]:
    """The units by their file names. for_user: for ``systemctl --user``, where a unit names no user. Raises ConfigError."""
    host, now, made = host_zone(), datetime.now(UTC), {}
    refused = []
    for one in jobs:
        name = f"batchrun-{_slug(settings.folder.name)}-{one.job}"
        try:
            made[f"{name}.service"] = _service(settings, one, for_user)
            made[f"{name}.timer"] = _timer(settings, one, host, now)
        except ConfigError as error:
            refused.append(f"{one.job}: {error}")
    if refused:
        raise ConfigError("\n".join(refused))
    return made


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-") or "project"


def _service(settings: Settings, job: Scheduled, for_user: bool) -> str:
    command = run_command(settings, job.job)
    refuse_unspeakable(command, backslashes=False)
    user = [] if for_user else [f"User={getpass.getuser()}"]
    return _text(
        _head(settings),
        "[Unit]",
        f"Description=batchrun job {job.job} of {_plain(settings.folder.name)}",
        *([] if for_user else ["Wants=network-online.target", "After=network-online.target"]),
        "",
        "[Service]",
        "Type=oneshot",
        *user,
        f"ExecStart={_quoted(command[0], is_program=True)} {' '.join(_quoted(word) for word in command[1:])}",
        "# Paused (5), already running (75) and ended by SIGTERM (143): to be gone on with, no failures.",
        "SuccessExitStatus=5 75 143",
        "# SIGTERM for the run alone: it ends its workers itself.",
        "KillMode=mixed",
        f"TimeoutStopSec={job.grace_s + _SPARE_S:.0f}",
    )


def _timer(settings: Settings, job: Scheduled, host: ZoneInfo, now: datetime) -> str:
    zone = job.zone if job.timezone else None
    plain = calendar_lines(job.expression, zone, host, now)
    usual = [line for line in plain if not line[:4].isdigit()]
    extra = [line for line in plain if line[:4].isdigit()]
    why = f"# What systemd leaves out where the clock of {job.zone.key} changes, until {now.year + YEARS}; then export anew."
    catches_up = missed_policy(settings) == "run"
    return _text(
        _head(settings),
        "[Unit]",
        f"Description={job.job} of {_plain(settings.folder.name)}: {job.words}",
        "",
        "[Timer]",
        *(f"OnCalendar={line}" for line in usual),
        *([why] if extra else []),
        *(f"OnCalendar={line}" for line in extra),
        "# Whether what was missed while the machine was off runs once when it is on again: [schedule] missed.",
        f"Persistent={str(catches_up).lower()}",
        "AccuracySec=1s",
        "",
        "[Install]",
        "WantedBy=timers.target",
    )


def _head(settings: Settings) -> str:
    return f"# Written by batchrun schedule export for {settings.need_file()}"


def _text(*lines: str) -> str:
    return "\n".join([*lines, ""])


def _plain(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str, *, is_program: bool = False) -> str:
    """A word of ExecStart: systemd reads ``%`` and, but for the program, ``$`` in it."""
    if re.fullmatch(r"[A-Za-z0-9_./:=@+-]+", word):
        return word
    escaped = _plain(word.replace("\\", "\\\\").replace('"', '\\"'))
    return f'"{escaped if is_program else escaped.replace("$", "$$")}"'


# ------------------------------------------------------------------------------------------------------ the files
def write_units(folder: Path, units: Mapping[str, str]) -> list[Path]:
    """Write the units into a folder, which is made if need be. Raises ConfigError where another project's is there."""
    for name, text in units.items():
        _refuse_foreign(folder / name, text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in units.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The units cannot be written to {folder}: {error.strerror or error}. Name another folder.") from None
    return [folder / name for name in units]


def _refuse_foreign(path: Path, text: str) -> None:
    try:
        first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Name another folder.") from None
    if first != text.partition("\n")[0]:
        raise ConfigError(
            f"{path} is there and is not this project's: {first[:100]!r}. Nothing was written; name another folder."
        )


def shown_units(units: Mapping[str, str]) -> str:
    """All units as one text, each under its file's name."""
    return "\n".join(f"# ---- {name}\n{text}" for name, text in units.items()).rstrip("\n")
