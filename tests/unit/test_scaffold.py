"""What batchrun init writes works at once."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchrun.config import load_settings
from batchrun.errors import ConfigError
from batchrun.scaffold import init_project

ROOT = Path(__file__).parents[2]
IS_KNOWN = any(one.value == "batchrun.pytest_plugin" for one in importlib.metadata.entry_points(group="pytest11"))
PLUGIN = [] if IS_KNOWN else ["-p", "batchrun.pytest_plugin"]
"""pytest finds it by itself, unless batchrun was installed here before it had one."""


def test_a_new_project_has_settings_a_job_and_a_test(tmp_path: Path) -> None:
    made = init_project(tmp_path / "new" / "project")
    assert [str(path.relative_to(tmp_path / "new/project")) for path in made] == [
        "config.toml",
        "jobs/example.py",
        "tests/test_jobs.py",
    ]
    settings = load_settings(cwd=tmp_path / "new" / "project", environ={})
    assert settings.file == made[0]
    assert settings.run == {}


def test_every_commented_setting_is_valid_when_uncommented(tmp_path: Path) -> None:
    config = init_project(tmp_path)[0]
    lines = []
    for line in config.read_text().splitlines():
        is_setting = line.startswith("# ") and ("= " in line or line.startswith("# ["))
        lines.append(line[2:] if is_setting and "url_file" not in line else line)
    config.write_text("\n".join(lines))
    settings = load_settings(cwd=tmp_path, environ={"APP_DB_PASSWORD": "x"}, profile="staging")
    assert settings.run["workers"] == 2
    assert settings.jobs["measure_words"].parameters == {"min_length": 3}
    assert settings.ledger.keep_days == 90


def test_the_test_that_comes_with_a_new_project_passes(tmp_path: Path) -> None:
    init_project(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *PLUGIN],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "example.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"overwrites nothing, and there is already .*jobs/example\.py"):
        init_project(tmp_path)
    assert (tmp_path / "jobs" / "example.py").read_text() == "mine"
    assert not (tmp_path / "config.toml").exists()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/config\.toml cannot be written: (Not a directory|File exists)"):
        init_project(tmp_path / "file")
