"""The command line, called in the tests' own process: a process for each command would cost a second of imports.

What is about the process itself (signals, descriptors, a terminal, its end) starts one.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from batchrun.cli.main import run_arguments
from batchrun.cli.output import Output
from tests.support import leaks


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class CommandLine:
    """Each call sees the files and the environment afresh, as a process does: ``batchrun("show", cwd=folder, NAME="value")``."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str, cwd: Path, **variables: str) -> Result:
        with pytest.MonkeyPatch.context() as context, own_jobs():
            context.chdir(cwd)
            context.setenv("COLUMNS", "80")
            for name in [name for name in os.environ if name.startswith("BATCHRUN_") and name != leaks.MARK]:
                context.delenv(name)
            for name, value in variables.items():
                context.setenv(name, value)
            self.capsys.readouterr()
            code = run_arguments(list(arguments), Output())
        out, err = self.capsys.readouterr()
        return Result(code, out, err)


@contextmanager
def own_jobs() -> Iterator[None]:
    """Jobs are imported anew, and none is left behind."""
    kept_path = list(sys.path)
    kept = forget_jobs()
    linecache.clearcache()  # a file that was changed is read again
    try:
        yield
    finally:
        sys.path[:] = kept_path
        forget_jobs()
        sys.modules.update(kept)


def forget_jobs() -> dict[str, object]:
    """Takes every imported job out of ``sys.modules``, and returns them."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "jobs"}
