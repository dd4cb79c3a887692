"""The command that a firing runs: absolute, quiet, and of the same project wherever it is started from."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from batchrun.config_layers import Unset
from batchrun.errors import ConfigError

if TYPE_CHECKING:
    from batchrun.config import Settings

_VARIABLE = re.compile(r"(?<!\$)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_CARRIED = ("BATCHRUN_CONFIG", "BATCHRUN_PROFILE", "BATCHRUN_DEBUG")


def run_command(settings: Settings, job: str) -> list[str]:
    """``/app/.venv/bin/batchrun run JOB -q --config /app/config.toml``, with the profile if there is one."""
    profile = ["--profile", settings.profile] if settings.profile else []
    return [*_program(), "run", job, "-q", "--config", str(settings.need_file()), *profile]


def project_command(settings: Settings, words: str) -> list[str]:
    """The same for another command of the project, for messages."""
    profile = ["--profile", settings.profile] if settings.profile else []
    return ["batchrun", *words.split(), "--config", str(settings.need_file()), *profile]


def _program() -> list[str]:
    """The console script beside this Python, so that a virtual environment is kept; else Python itself.

    -P: the folder that cron starts a command in must not shadow modules.
    """
    script = Path(sys.executable).parent / "batchrun"
    return [str(script)] if os.access(script, os.X_OK) else [sys.executable, "-P", "-m", "batchrun"]


def refuse_unspeakable(command: list[str], *, backslashes: bool) -> None:
    """Raises ConfigError for words that no line can carry. backslashes: crons do not agree on them."""
    for word in command:
        if any(ord(character) < 32 or ord(character) == 127 for character in word):
            raise ConfigError(f"{word!r} has a control character in it, which no line can carry. Rename it.")
        if backslashes and "\\" in word:
            raise ConfigError(
                f"{word!r} has a backslash in it, which one cron reads otherwise than another. Rename it, or link to it."
            )


def missing_variables(settings: Settings, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Variables that this project is given here, and that cron and systemd, which start with few, would not have."""
    found = [name for name in environ if name.startswith("BATCHRUN_") and name not in _CARRIED and "_TEST_" not in name]
    for layer in settings.layers:
        texts = [one.text for one in layer.written.values()]
        texts += [value.written for _, value in layer.leaves() if isinstance(value, Unset)]
        found += [name for text in texts for name in _VARIABLE.findall(str(text))]
    return sorted(set(found))
