"""``batchrun init``: a project with a job that runs and a test that passes."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from batchrun.errors import ConfigError

_FILES = {"config.toml": "config.toml", "jobs/example.py": "example.py.txt", "tests/test_jobs.py": "test_jobs.py.txt"}
"""What is written -> the template in batchrun/templates."""


def init_project(folder: Path) -> list[Path]:
    """Write config.toml, jobs/example.py and tests/test_jobs.py and return their paths.

    The folder is made if need be. Raises ConfigError, and writes nothing, where one of them exists.
    """
    wanted = {folder / name: template for name, template in _FILES.items()}
    taken = [path for path in wanted if os.path.lexists(path)]
    if taken:
        names = ", ".join(str(path) for path in taken)
        raise ConfigError(f"batchrun init overwrites nothing, and there is already {names}. Remove it, or name another folder.")
    for path, template in wanted.items():
        _write(path, resources.files("batchrun").joinpath("templates", template).read_text(encoding="utf-8"))
    return list(wanted)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}. Name another folder, or give yourself the right."
        ) from None
