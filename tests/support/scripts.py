"""Programs that tests run as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]


def start(folder: Path, source: str, *arguments: str) -> subprocess.Popen[str]:
    """Run a script in ``folder``; batchrun and tests can be imported in it."""
    script = folder / "script.py"
    script.write_text(dedent(source))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", script.name, *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )


def run(folder: Path, source: str, *arguments: str, timeout_s: float = 60.0) -> tuple[int, str, str]:
    """Run a script to its end: (exit code, stdout, stderr)."""
    process = start(folder, source, *arguments)
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return process.returncode, out, err
