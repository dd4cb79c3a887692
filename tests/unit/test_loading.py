"""The jobs folder: what is found without running, what is imported, and how a fault in it is told."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchrun.errors import BatchrunError, ConfigError, JobError
from batchrun.jobs import Job
from batchrun.loading import code_fingerprint, find_jobs, install_jobs_package, load_job, run_items

ROOT = Path(__file__).parents[2]
GOOD = '''
from batchrun import job

@job(timeout="30s")
def send(session, order_id, *, factor: int = 1):
    """Send each order.

    More.
    """

@send.items
def orders(session, since: str = ""):
    return [session, since]
'''
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files of the jobs folder by their stems and return the project's folder."""

    def write(**files: str) -> Path:
        (tmp_path / "jobs").mkdir(exist_ok=True)
        for stem, text in files.items():
            (tmp_path / "jobs" / f"{stem}.py").write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture(autouse=True)
def unchanged_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = dict(sys.modules)
    yield
    for name in [name for name in sys.modules if name not in before or name.partition(".")[0] == "jobs"]:
        if name.partition(".")[0] in ("jobs", "myapp"):
            del sys.modules[name]
    sys.modules.update({name: module for name, module in before.items() if name.partition(".")[0] == "jobs"})


def refusal(call: Callable[[], object], kind: type[BatchrunError] = JobError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------- finding
def test_jobs_are_found_without_running_their_files(write: Write) -> None:
    folder = write(a=GOOD + "\nraise SystemExit('this was run')\n")
    (found,) = find_jobs(folder)
    assert (found.name, found.place, found.summary) == ("send", "jobs/a.py:5:1", "Send each order.")


@pytest.mark.parametrize(
    "text",
    [
        "from batchrun import job as j\n@j\ndef send(): ...",
        "import batchrun\n@batchrun.job\ndef send(): ...",
        "import batchrun as b\n@b.job(retries=1)\ndef send(): ...",
        "from batchrun.jobs import job\n@job()\ndef send(): ...",
        "import batchrun.jobs\n@batchrun.jobs.job\ndef send(): ...",
        "import batchrun.jobs as j\n@j.job\ndef send(): ...",
        "from batchrun import *\n@job\ndef send(): ...",
        "try:\n    from batchrun import job\n    @job\n    async def send(): ...\nfinally: ...",
    ],
)
def test_a_job_is_found_whatever_the_decorator_is_called(write: Write, text: str) -> None:
    assert [one.name for one in find_jobs(write(a=text))] == ["send"]


@pytest.mark.parametrize(
    "text",
    [
        "from other import job\n@job\ndef send(): ...",
        "from batchrun import job\ndef outer():\n    @job\n    def send(): ...",
        "from batchrun import job\ndef send(): ...",
        "import batchrun\n@batchrun.keyset\ndef send(): ...",
    ],
)
def test_other_functions_are_no_jobs(write: Write, text: str) -> None:
    assert find_jobs(write(a=text)) == []


def test_files_with_an_underscore_and_other_files_are_left_alone(write: Write) -> None:
    folder = write(_helper=GOOD, __init__=GOOD)
    (folder / "jobs" / "readme.txt").write_text("(")
    (folder / "jobs" / "sub.py").mkdir()
    assert find_jobs(folder) == []
    assert find_jobs(folder / "nowhere") == []


def test_a_broken_neighbour_is_a_warning(write: Write) -> None:
    folder = write(good=GOOD, broken="def x(:\n", null="\0", **{"a.b": ""})
    told: list[str] = []
    assert [one.name for one in find_jobs(folder, told.append)] == ["send"]
    assert told[0] == "jobs/a.b.py: a file of jobs must not have a dot in its name; rename it; its jobs are left out"
    assert told[1] == "jobs/broken.py:1:7: syntax error: invalid syntax; its jobs are left out"
    assert told[2].startswith("jobs/null.py:1")
    assert load_job(folder, "send", warn=told.append).name == "send"


def test_two_jobs_of_one_name_are_refused_with_both_places(write: Write) -> None:
    message = refusal(lambda: find_jobs(write(a=GOOD, b=GOOD)), ConfigError)
    assert message == "jobs/b.py:5:1: there are two jobs named send; the first is at jobs/a.py:5:1. Rename one."


# ----------------------------------------------------------------------------------------------------------- loading
def test_only_the_file_of_the_job_is_imported(write: Write) -> None:
    folder = write(a=GOOD, b="raise SystemExit('this was run')")
    job = load_job(folder, "send")
    assert (job.name, job.module, job.folder, job.options) == ("send", "jobs.a", str(folder), {"timeout": 30.0})
    assert "jobs.b" not in sys.modules


def test_a_file_named_like_a_standard_module_shadows_nothing(write: Write) -> None:
    job = load_job(write(json=GOOD + "\nimport json\nfound = json.dumps({})\n"), "send")
    assert job.module == "jobs.json"
    import json

    assert json.dumps({}) == "{}"


def test_helpers_and_the_projects_own_package_can_be_imported(write: Write) -> None:
    folder = write(
        _helper="value = 1",
        other="value = 2",
        a="from ._helper import value\nfrom jobs.other import value as two\nimport myapp\n"
        "assert (value, two, myapp.value) == (1, 2, 3)\n" + GOOD,
    )
    (folder / "myapp.py").write_text("value = 3")
    assert load_job(folder, "send").name == "send"


def test_a_worker_imports_a_job_by_its_name(write: Write) -> None:
    folder = write(**{"my-jobs": GOOD})
    code = (
        "import sys, pathlib, pickle; from batchrun.loading import install_jobs_package;"
        "install_jobs_package(pathlib.Path(sys.argv[1])); import importlib;"
        "send = importlib.import_module('jobs.my-jobs').send;"
        "assert pickle.loads(pickle.dumps(send)) is send; assert sys.path[0] == sys.argv[1];"
        "assert not {'sqlalchemy', 'pydantic', 'typer'} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(folder)], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_another_folder_forgets_the_jobs_of_the_first(write: Write, tmp_path: Path) -> None:
    load_job(write(a=GOOD), "send")
    install_jobs_package(tmp_path)
    assert "jobs.a" in sys.modules
    (tmp_path / "second" / "jobs").mkdir(parents=True)
    install_jobs_package(tmp_path / "second")
    assert "jobs.a" not in sys.modules
    assert sys.path[0] == str(tmp_path / "second")


@pytest.mark.parametrize("name", ["os:system", "../evil", "a.b", "", "send now", "-x", "jobs/a.py"])
def test_a_name_that_is_none_is_refused_and_nothing_imported(write: Write, name: str) -> None:
    folder = write(evil=GOOD)
    before = set(sys.modules)
    assert refusal(lambda: load_job(folder, name)).startswith(
        f"{name!r} is no name of a job: letters, digits and underscores only."
    )
    assert set(sys.modules) == before


def test_an_unknown_job_is_met_with_near_ones(write: Write) -> None:
    folder = write(a=GOOD)
    assert refusal(lambda: load_job(folder, "sned")) == f"There is no job sned in {folder}/jobs. Did you mean send?"
    assert refusal(lambda: load_job(folder, "zzz")).endswith("There are send.")


def test_an_unknown_job_may_be_in_a_file_with_a_syntax_error(write: Write) -> None:
    message = refusal(lambda: load_job(write(a="\n\ndef x(:\n"), "send"))
    assert message.endswith("\njobs/a.py:3:7: syntax error: invalid syntax; its jobs are left out")


def test_without_a_jobs_folder_init_is_advised(tmp_path: Path) -> None:
    assert refusal(lambda: load_job(tmp_path, "send")).endswith(
        f"there is no folder {tmp_path}/jobs. Make a project with: batchrun init"
    )


def test_a_file_that_raises_is_told_with_its_own_line(write: Write) -> None:
    message = refusal(lambda: load_job(write(a=GOOD + "\nint('x')\n"), "send"))
    assert message == "jobs/a.py:15: jobs/a.py cannot be loaded: ValueError: invalid literal for int() with base 10: 'x'"


def test_a_fault_in_the_projects_own_package_is_told_there(write: Write) -> None:
    folder = write(a="import myapp\n" + GOOD)
    (folder / "myapp.py").write_text("\n1 / 0")
    assert refusal(lambda: load_job(folder, "send")).startswith("myapp.py:2: jobs/a.py cannot be loaded: ZeroDivisionError")
    (folder / "myapp.py").write_text("\n\nx = = 2")
    assert refusal(lambda: load_job(folder, "send")).startswith(
        "myapp.py:3: jobs/a.py cannot be loaded: SyntaxError: invalid syntax"
    )


def test_an_exit_while_loading_is_an_error(write: Write) -> None:
    assert "SystemExit: 0" in refusal(lambda: load_job(write(a=GOOD + "\nraise SystemExit(0)"), "send"))


def test_a_missing_module_says_where_to_install_it(write: Write) -> None:
    message = refusal(lambda: load_job(write(a="import no_such_module\n" + GOOD), "send"))
    assert "jobs/a.py:1: jobs/a.py cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'" in message
    assert f"(install it where batchrun is installed: {sys.executable})" in message


def test_a_wrong_option_of_the_decorator_is_told_with_its_line(write: Write) -> None:
    message = refusal(lambda: load_job(write(a=GOOD.replace("timeout", "timeuot")), "send"))
    assert message.startswith(
        "jobs/a.py:4: jobs/a.py cannot be loaded: ConfigError: @job send: timeuot: there is no such option; did you mean"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def send", "async def send", "is async; batchrun runs plain functions"),
        ('    """Send each', '    yield\n    """Send each', "is a generator"),
        ("session, order_id, *", "session, order_id, more, *", "send(session, order_id, more, *, factor: int = 1)"),
        ("session, order_id, *", "*", "send(*, factor: int = 1)"),
        ("since", "workers", "the parameter workers of job send is named like an option of batchrun run"),
        ("def orders", "async def orders", "The items function of send is async"),
        ("@send.items\n", "", "does not say where its items come from. Add below it:\n\n    @send.items\n"),
        ("@job(", "import functools\n@functools.cache\n@job(", "@job must be the topmost decorator of send"),
        ("@send.items", "other = send; send = 5\n@other.items", "something else took its name"),
    ],
)
def test_a_job_that_cannot_be_called_is_refused_with_place_and_signature(write: Write, old: str, new: str, message: str) -> None:
    shown = refusal(lambda: load_job(write(a=GOOD.replace(old, new)), "send"))
    assert shown.startswith("jobs/a.py:")
    assert message in shown


def test_an_async_task_is_refused_with_its_signature(write: Write) -> None:
    assert "send(session, order_id, *, factor: int = 1)" in refusal(
        lambda: load_job(write(a=GOOD.replace("def send", "async def send")), "send")
    )


def test_the_transaction_of_the_command_line_decides_what_a_task_takes(write: Write) -> None:
    folder = write(a=GOOD.replace("session, order_id", "order_id"))
    assert "cannot be called as task(session, item)" in refusal(lambda: load_job(folder, "send"))
    assert load_job(folder, "send", transaction="none").name == "send"


# ------------------------------------------------------------------------------------------------------------- items
def test_the_items_function_gets_a_session_only_if_it_asks_for_one() -> None:
    opened: list[str] = []

    def make() -> str:
        opened.append("session")
        return "session"

    assert run_items(Job("send", print, lambda session, /, since: [session, since]), make, {"since": 1}) == ["session", 1]
    assert run_items(Job("send", print, lambda since: [since]), make, {"since": 1, "other": 2}) == [1]
    assert opened == ["session"]


def test_an_items_function_may_yield() -> None:
    def items(session: Any) -> Iterator[int]:
        yield session

    assert list(run_items(Job("send", print, items), 7, {})) == [7]


def test_a_session_that_is_asked_for_and_missing_is_told() -> None:
    assert "asks for a session, but the run has no database" in refusal(
        lambda: run_items(Job("send", print, lambda session: []), None, {})
    )
    assert "has no items function" in refusal(lambda: run_items(Job("send", print), None, {}))


# ------------------------------------------------------------------------------------------------------ fingerprints
def fingerprint(write: Write, stem: str, text: str) -> str:
    return code_fingerprint(load_job(write(**{stem: text}), "send"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('    """Send each order.\n\n    More.\n    """', '    """Send orders."""  # another comment\n'),
        ('@job(timeout="30s")', "@job(retries=5)"),
        ("return [session, since]", "return [\n        session,\n        since,\n    ]"),
        ('since: str = ""', "since: str = ''"),
    ],
)
def test_comments_docstrings_format_and_options_do_not_change_the_fingerprint(write: Write, old: str, new: str) -> None:
    first = fingerprint(write, "one", GOOD)
    (write() / "jobs" / "one.py").unlink()
    assert fingerprint(write, "two", GOOD.replace(old, new)) == first


@pytest.mark.parametrize(("old", "new"), [("factor: int = 1", "factor: int = 2"), ("[session, since]", "[since, session]")])
def test_a_change_of_task_or_items_changes_the_fingerprint(write: Write, old: str, new: str) -> None:
    first = fingerprint(write, "one", GOOD)
    (write() / "jobs" / "one.py").unlink()
    assert fingerprint(write, "two", GOOD.replace(old, new)) != first


def test_functions_without_source_go_by_their_bytecode() -> None:
    space: dict[str, Any] = {}
    exec("def a(x): return x + 1\ndef b(x): return x + 2\ndef c(x): return x + 1", space)  # noqa: S102 - no source file
    assert code_fingerprint(space["a"]) == code_fingerprint(space["c"]) != code_fingerprint(space["b"])


def test_two_lambdas_on_one_line_are_told_apart() -> None:
    one, other = (lambda x: x + 1), (lambda x: x + 2)
    assert code_fingerprint(one) != code_fingerprint(other)
    assert code_fingerprint(functools.partial(one, 1)) == code_fingerprint(one)


def test_anything_callable_has_a_fingerprint() -> None:
    class Adder:
        def __call__(self, x: int) -> int:
            return x + 1

        def method(self, x: int) -> int:
            return x + 2

    found = {code_fingerprint(one) for one in (Adder(), Adder().method, len, str, print)}
    assert len(found) == 5
