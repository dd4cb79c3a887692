"""The jobs folder: finds jobs by reading, imports the one that is asked for, and says where it is wrong.

jobs/*.py -> ast, nothing runs -> FoundJob(name, file, line)
a name -> its file alone -> import as jobs.<stem> -> Job, checked      (a worker does the same, by name)
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.machinery
import inspect
import logging
import os
import sys
import traceback
import types
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchrun.errors import ConfigError, JobError
from batchrun.fingerprints import code_fingerprint
from batchrun.jobs import Job, job_of
from batchrun.tasks import task_shape

__all__ = ["FoundJob", "code_fingerprint", "find_jobs", "install_jobs_package", "load_job", "run_items"]

PACKAGE = "jobs"
_BATCHRUN = os.path.join(Path(__file__).parent, "")  # noqa: PTH118 - with the separator at its end
_LOGGER = logging.getLogger("batchrun")
_PLAIN_OR_ASYNC = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A job as its file shows it. summary: the first line of its docstring."""

    name: str
    file: Path
    line: int
    summary: str
    column: int = 1

    @property
    def place(self) -> str:
        """``jobs/orders.py:12:1``."""
        return f"{PACKAGE}/{self.file.name}:{self.line}:{self.column}"


# ------------------------------------------------------------------------------------------ finding, without running
def find_jobs(folder: Path, warn: Callable[[str], object] = _LOGGER.warning) -> list[FoundJob]:
    """Return the jobs in ``folder/jobs``, sorted by name; none where there is no such folder. Nothing is imported.

    warn: called with one sentence for each file that cannot be read. Raises ConfigError for two jobs of one name.
    """
    found: dict[str, FoundJob] = {}
    for path in _job_files(folder):
        try:
            made = _jobs_in(path)
        except JobError as error:
            warn(f"{error}; its jobs are left out")
            continue
        for one in made:
            if (first := found.setdefault(one.name, one)) is not one:
                raise ConfigError(f"{one.place}: there are two jobs named {one.name}; the first is at {first.place}. Rename one.")
    return sorted(found.values(), key=lambda one: one.name)


def _job_files(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in (folder / PACKAGE).glob("*.py") if not p.name.startswith("_") and p.is_file())
    except OSError:
        return []


def _jobs_in(path: Path) -> list[FoundJob]:
    """Raises JobError, with file and line, for a file that cannot be read or is no Python."""
    where = f"{PACKAGE}/{path.name}"
    if "." in path.stem:
        raise JobError(f"{where}: a file of jobs must not have a dot in its name; rename it")
    try:
        with warnings.catch_warnings(action="ignore"):  # an invalid escape in a neighbour is not our caller's matter
            tree = ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise JobError(f"{where}:{error.lineno or 1}:{error.offset or 1}: syntax error: {error.msg}") from error
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise JobError(f"{where}:1: the file cannot be read: {error}") from error
    names = _names_of_job(tree)
    return [
        FoundJob(node.name, path, node.lineno, (ast.get_docstring(node) or "").partition("\n")[0], node.col_offset + 1)
        for node in _functions(tree.body)
        if any(_dotted(decorator) in names for decorator in node.decorator_list)
    ]


def _functions(body: Sequence[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions of a module, those under ``if`` and ``try`` as well."""
    for node in body:
        if isinstance(node, _PLAIN_OR_ASYNC):
            yield node
        elif isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from _functions(getattr(node, part, []))


def _names_of_job(tree: ast.Module) -> set[str]:
    """What ``batchrun.job`` is called in a module: ``job``, ``batchrun.job``, an alias."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in ("batchrun", "batchrun.jobs"):
            names |= {alias.asname or "job" for alias in node.names if alias.name in ("job", "*")}
            names |= {f"{alias.asname or 'jobs'}.job" for alias in node.names if alias.name == "jobs"}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "batchrun" or (alias.name.startswith("batchrun.") and not alias.asname):
                    names |= {f"{alias.asname or 'batchrun'}.job", f"{alias.asname or 'batchrun'}.jobs.job"}
                elif alias.name == "batchrun.jobs":
                    names.add(f"{alias.asname}.job")
    return names


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _dotted(node.func)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


# ------------------------------------------------------------------------------------------------------ importing
def install_jobs_package(folder: Path) -> None:
    """Make ``import jobs.<stem>`` mean the files of ``folder/jobs``, and put ``folder`` first on sys.path.

    The package is ours, so jobs/json.py shadows nothing. Called in the parent and in every worker; calling it again
    with the same folder changes nothing, with another one forgets the first one's jobs.
    """
    home = os.path.abspath(folder)  # noqa: PTH100 - Path.resolve() would follow links
    if sys.path[:1] != [home]:
        sys.path[:] = [home, *(entry for entry in sys.path if entry != home)]
    path = os.path.join(home, PACKAGE)  # noqa: PTH118 - sys.path and __path__ hold text
    if list(getattr(sys.modules.get(PACKAGE), "__path__", [])) == [path]:
        return
    for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
        del sys.modules[name]
    package = types.ModuleType(PACKAGE, "The jobs folder of this project.")
    spec = importlib.machinery.ModuleSpec(PACKAGE, None, is_package=True)
    spec.submodule_search_locations = [path]
    package.__spec__, package.__path__, package.__package__ = spec, [path], PACKAGE
    sys.modules[PACKAGE] = package
    importlib.invalidate_caches()


def load_job(folder: Path, name: str, *, transaction: str | None = None, warn: Callable[[str], object] = _LOGGER.warning) -> Job:
    """Import the one file that holds a job and return the job, checked.

    transaction: what the command line or config.toml says, if anything; else the decorator's counts. Raises JobError
    for a name that is none, an unknown job, a file that cannot be imported, a task that cannot be called; ConfigError
    for two jobs of one name.
    """
    name = unicodedata.normalize("NFKC", name)
    if not name.isidentifier():
        raise JobError(
            f"{name!r} is no name of a job: letters, digits and underscores only.{_near(name, find_jobs(folder, _quiet))}"
        )
    broken: list[str] = []
    found = find_jobs(folder, broken.append)
    chosen = next((one for one in found if one.name == name), None)
    if chosen is None:
        raise JobError(_unknown_job(folder, name, found, broken))
    for sentence in broken:
        warn(sentence)
    job = _imported(folder, chosen)
    job.folder = os.path.abspath(folder)  # noqa: PTH100 - Path.resolve() would follow links
    _check(job, chosen, transaction)
    return job


def _quiet(sentence: str) -> None:
    """Warnings about neighbours would only distract from the error that follows."""


def _near(name: str, found: Sequence[FoundJob]) -> str:
    near = difflib.get_close_matches(name, [one.name for one in found], 3, 0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _unknown_job(folder: Path, name: str, found: Sequence[FoundJob], broken: Sequence[str]) -> str:
    if not (folder / PACKAGE).is_dir():
        return f"There is no job {name}: there is no folder {folder / PACKAGE}. Make a project with: batchrun init"
    near = _near(name, found) or (f" There are {', '.join(one.name for one in found)}." if found else " There are no jobs yet.")
    hint = "" if found else " A job is a function in a file of that folder, under @job from batchrun."
    return "\n".join([f"There is no job {name} in {folder / PACKAGE}.{near}{hint}", *broken])


def _imported(folder: Path, found: FoundJob) -> Job:
    install_jobs_package(folder)
    try:
        module = importlib.import_module(f"{PACKAGE}.{found.file.stem}")
    except (Exception, SystemExit) as error:
        raise JobError(
            f"{_own_place(error, folder, found)}: {PACKAGE}/{found.file.name} cannot be loaded: {_text(error)}"
        ) from error
    function = getattr(module, found.name, None)
    job = job_of(function)
    if job is None:
        raise JobError(f"{found.place}: {found.name} is not there once the file is loaded; something else took its name.")
    if job.task is not function:
        raise JobError(
            f"{found.place}: @job must be the topmost decorator of {found.name}; what stands above it would not be run."
        )
    return job


def _own_place(error: BaseException, folder: Path, found: FoundJob) -> str:
    """The innermost line of the project's own code that the error passed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_relative(Path(error.filename), folder)}:{error.lineno or 1}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(os.path.abspath(folder))]  # noqa: PTH100 - links
    inside = [frame for frame in own if "site-packages" not in frame.filename and not frame.filename.startswith(_BATCHRUN)]
    return f"{_relative(Path(inside[-1].filename), folder)}:{inside[-1].lineno}" if inside else found.place


def _relative(path: Path, folder: Path) -> Path:
    home = Path(os.path.abspath(folder))  # noqa: PTH100 - Path.resolve() would follow links
    return path.relative_to(home) if path.is_relative_to(home) else path


def _text(error: BaseException) -> str:
    shown = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        shown += f" (install it where batchrun is installed: {sys.executable})"
    return shown


# ------------------------------------------------------------------------------------------------------- checking
def _check(job: Job, found: FoundJob, transaction: str | None) -> None:
    from batchrun.parameters import check_names  # pydantic is not for a worker, which imports this module too

    mode = transaction or job.options.get("transaction", "item")
    try:
        task_shape(job.task, has_session=mode != "none", what="The task")
        if job.items is None:
            raise JobError(
                f"The job {job.name} does not say where its items come from. Add below it:\n\n"
                f"    @{job.name}.items\n    def items(session):\n        return keyset(select(Order.id))"
            )
        if inspect.iscoroutinefunction(job.items) or inspect.isasyncgenfunction(job.items):
            raise JobError(f"The items function of {job.name} is async; write def instead of async def.")
        check_names(job)
    except JobError as error:
        signature = f"{job.name}{inspect.signature(job.task)}"
        shown = "" if signature in str(error) else f" Its signature: {signature}"
        raise JobError(f"{found.place}: {error}{shown}") from error


def run_items(job: Job, session: Any, params: Mapping[str, Any]) -> Any:
    """Call the items function and return what it returns: a source, any iterable, a generator.

    session: a Session, or a function that makes one, called only if the items function asks for ``session``; None =
    there is none. params: typed, as from ``parse_params``. Raises JobError where a session is asked for and missing.
    """
    from batchrun.parameters import split_call  # see _check

    if job.items is None:
        raise JobError(f"The job {job.name} has no items function; add one with @{job.name}.items, or pass items.")
    values, _ = split_call(job, params)
    positional: list[Any] = []
    for name, parameter in inspect.signature(job.items).parameters.items():
        if name == "session":
            values[name] = _session(job, session)
        if parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append(values.pop(name))
    return job.items(*positional, **values)


def _session(job: Job, session: Any) -> Any:
    if session is None:
        raise JobError(f"The items function of {job.name} asks for a session, but the run has no database.")
    return session() if callable(session) else session
