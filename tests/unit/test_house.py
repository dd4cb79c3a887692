"""The house rules that no linter knows: sizes, names, exports, and what is imported when."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchrun

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "batchrun"
PUBLIC = {
    *("run_parallel", "iter_parallel", "job", "keyset", "csv_rows", "jsonl", "lines", "Skip", "Retry", "Context"),
    *("Report", "Outcome", "BatchrunError", "ItemTimeout"),
}
MAX_LINES = 500
WORK = "# work"
"""Marks a line of a test that sleeps: allowed only as the work of a task under test."""


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if path.read_text())


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", modules("batchrun"), ids=shown)
def test_no_module_is_longer_than_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", modules("batchrun", "jobs", "tests"), ids=shown)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_public_names_are_sorted_and_complete() -> None:
    assert batchrun.__all__ == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(batchrun, name).__doc__
    assert name in dir(batchrun)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'run_paralel'"):
        _ = batchrun.run_paralel


def test_no_module_has_the_name_of_a_public_one() -> None:
    assert not PUBLIC & {path.stem for path in PACKAGE.iterdir()}


def sleeps(path: Path) -> Iterator[str]:
    """The lines of a module that sleep and do not say that it is the work of a task."""
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).rpartition(".")[2] == "sleep"
            and WORK not in lines[node.lineno - 1]
        ):
            yield f"{shown(path)}:{node.lineno}: {lines[node.lineno - 1].strip()}"


def test_no_test_sleeps_but_as_the_work_of_a_task() -> None:
    assert [line for path in modules("tests") for line in sleeps(path)] == []


def modules_imported_by(*arguments: str) -> set[str]:
    """What a Python program imports, as ``-X importtime`` lists it."""
    command = [sys.executable, "-X", "importtime", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}


def imported_by(*arguments: str) -> set[str]:
    """The top-level packages of them."""
    return {name.partition(".")[0] for name in modules_imported_by(*arguments)}


def test_help_never_imports_sqlalchemy() -> None:
    found = imported_by("-m", "batchrun", "--help")
    assert "typer" in found
    assert not found & {"sqlalchemy", "psycopg2", "psycopg", "cloudpickle"}


def test_a_worker_never_imports_the_command_line_or_the_progress_bar() -> None:
    found = imported_by("-c", "import batchrun.execution.worker")
    assert "batchrun" in found
    assert not found & {"typer", "tqdm", "rich", "click"}


FEW = {
    "help": (("-m", "batchrun", "--help"), "import typer", 40, "email sqlalchemy pydantic multiprocessing hashlib cloudpickle"),
    "worker": (("-c", "import batchrun.execution.worker"), "import sqlalchemy.orm", 80, "email pydantic typer tqdm psycopg2"),
}
"""(program, what it cannot do without, how many modules it may import beyond that, what never), which keeps the start quick."""


@pytest.mark.parametrize("name", FEW)
def test_few_modules_are_imported_beyond_what_cannot_be_done_without(name: str) -> None:
    program, base, most, never = FEW[name]
    beyond = modules_imported_by(*program) - modules_imported_by("-c", base)
    told = f"{len(beyond)} modules, where at most {most} are planned for; import what is seldom needed where it is needed"
    assert "batchrun" in beyond
    assert len(beyond) <= most, f"{told}: {' '.join(sorted(beyond))}"
    assert not [one for one in sorted(beyond) if one.partition(".")[0] in never.split()]
    assert not [one for one in sorted(beyond) if one.startswith("sqlalchemy.dialects.postgresql")]


def test_importing_batchrun_imports_nothing_else_of_ours_or_others() -> None:
    found = imported_by("-c", "import batchrun")
    assert not found & {"sqlalchemy", "typer", "tqdm", "pydantic", "cloudpickle"}
    loaded = "import sys, batchrun; print(*[name for name in sys.modules if name.startswith('batchrun.')])"
    assert (
        subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == ""
    )


@pytest.mark.parametrize("path", modules("jobs"), ids=shown)
def test_every_example_job_can_be_imported(path: Path) -> None:
    assert importlib.import_module(f"jobs.{path.stem}").__doc__
