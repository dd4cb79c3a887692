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
        with pytest.MonkeyPatch.context() as context, own_modules(cwd):
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
def own_modules(folder: Path) -> Iterator[None]:
    """Jobs, and what they import from their project's folder, are imported anew; none of it is left behind."""
    kept_path, kept = list(sys.path), dict(sys.modules)
    for name in [name for name in kept if name.partition(".")[0] == "jobs"]:
        del sys.modules[name]
    linecache.clearcache()  # a file that was changed is read again
    try:
        yield
    finally:
        sys.path[:] = kept_path
        for name in [
            name for name, module in sys.modules.items() if module is not kept.get(name) and is_of(module, name, folder)
        ]:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in kept.items() if name.partition(".")[0] == "jobs"})


def is_of(module: object, name: str, folder: Path) -> bool:
    """The jobs package, or a module from a file of the project."""
    file = getattr(module, "__file__", None)
    return name.partition(".")[0] == "jobs" or (file is not None and Path(file).is_relative_to(folder))
