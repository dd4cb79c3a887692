"""The command line from end to end: a project with jobs, on SQLite and PostgreSQL. What a process makes different runs as one."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from batchrun.reporting.jsonout import RUN_KEYS
from tests.support.commands import CommandLine
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
JOBS = '''
"""Jobs of the tests."""
import logging, os, sys, time
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import text

from batchrun import job

MARKS = Path(__file__).parents[1] / "marks"


@job(retries=0)
def count(session, item: int, *, bad: int = -1) -> None:
    """Count every item once."""
    if item == bad:
        raise ValueError(f"item {item} is \\x1b[31mbad\\x1b[0m")
    session.execute(text("INSERT INTO effects (item) VALUES (:item)"), {"item": item})


@count.items
def items(session, n: int = 20):
    return range(n)


@job(retries=0)
def held(session, item: int) -> None:
    """Wait in every item but the first ones until the file "go" is there."""
    if item >= 3:
        (MARKS / f"waiting-{os.getpid()}").touch()
        while not (MARKS / "go").exists():
            time.sleep(0.01)  # the work of this task
    session.execute(text("INSERT INTO effects (item) VALUES (:item)"), {"item": item})


@held.items
def held_items():
    return range(12)


@job(retries=0)
def loud(session, item: int, *, token: SecretStr = SecretStr("")) -> None:
    """Print, log and fail with a secret."""
    print("printed by", item)
    os.system("echo printed by a child of the task")
    logging.getLogger("mine").warning("logged with %s", token.get_secret_value())
    raise ValueError(f"refused {token.get_secret_value()}")


@loud.items
def loud_items():
    print("printed by the items function")
    logging.getLogger("mine").warning("logged by the items function")
    return [1, 2]


@job(retries=0)
def endless(session, item: int) -> None:
    """Never gets its items."""


@endless.items
def endless_items():
    (MARKS / "opening").touch()
    while True:
        time.sleep(0.01)  # an items function that hangs
'''


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out
        found: dict[str, Any] = json.loads(lines[0])
        return found


@dataclass
class Project:
    """A project folder with the jobs above."""

    folder: Path
    url: str
    batchrun: CommandLine
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start batchrun in a session of its own, as a shell would start it in the background: SIGINT ignored."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BATCHRUN_")}
        command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-m", "batchrun", *arguments]
        process = subprocess.Popen(
            command, cwd=self.folder, env={**kept, "PYTHONPATH": str(ROOT), "BATCHRUN_DATABASE_URL": self.url},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> Result:
        """Wait for its end."""
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return Result(process.returncode, out, err)

    def run(self, *arguments: str) -> Result:
        """Run a command to its end, in this process."""
        done = self.batchrun(*arguments, cwd=self.folder, BATCHRUN_DATABASE_URL=self.url)
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def process(self, *arguments: str) -> Result:
        """Run a command to its end, in a process of its own."""
        return self.end(self.start(*arguments))

    def effects(self) -> list[int]:
        """The items whose effects are in the database."""
        engine = create_engine(self.url)
        try:
            with engine.connect() as connection:
                return sorted(row[0] for row in connection.execute(text("SELECT item FROM effects")))
        finally:
            engine.dispose()

    def waiting(self) -> list[Path]:
        """The marks of workers whose task waits."""
        return list((self.folder / "marks").glob("waiting-*"))

    def go(self) -> None:
        """Let the tasks that wait go on."""
        (self.folder / "marks" / "go").touch()


def make_project(folder: Path, url: str, batchrun: CommandLine) -> Project:
    """Write a project and its table."""
    (folder / "jobs").mkdir()
    (folder / "marks").mkdir()
    (folder / "config.toml").write_text("[run]\nworkers = 2\n")
    (folder / "jobs" / "trials.py").write_text(JOBS)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE effects (item INTEGER NOT NULL)"))
    engine.dispose()
    return Project(folder, url, batchrun)


def closing(project: Project) -> Iterator[Project]:
    """Hand a project out, and end what it started."""
    yield project
    for process in project.started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in filter(None, (process.stdout, process.stderr)):
            stream.close()


@pytest.fixture
def project(tmp_path: Path, database_url: str, batchrun: CommandLine) -> Iterator[Project]:
    yield from closing(make_project(tmp_path, database_url, batchrun))


@pytest.fixture
def lite(tmp_path: Path, sqlite_url: str, batchrun: CommandLine) -> Iterator[Project]:
    """On SQLite alone, for what does not depend on the database."""
    yield from closing(make_project(tmp_path, sqlite_url, batchrun))


# ----------------------------------------------------------------------------------------------------------- run
def test_run_does_every_item_once_and_writes_nothing_to_stdout(project: Project) -> None:
    result = project.process("run", "count", "n=30")
    assert (result.code, result.out) == (0, ""), result.err
    assert project.effects() == list(range(30))
    assert "30 planned = 30 done" in result.err
    assert "exactly-once" in result.err


def test_run_json_is_one_object_with_exactly_the_documented_keys(project: Project) -> None:
    result = project.run("run", "count", "n=7", "-j", "1", "--json", "-q")
    assert result.code == 0
    assert result.err == ""
    found = result.json
    assert tuple(found) == RUN_KEYS
    assert re.fullmatch(r"(?!\d+$)[0-9a-z]{8,}", found["run"])
    expected = {
        "schema": 1,
        "job": "count",
        "status": "done",
        "planned": 7,
        "done": 7,
        "pending": 0,
        "workers": 1,
        "guarantee": "exactly-once",
    }
    assert {key: found[key] for key in expected} == expected


def test_an_empty_source_is_done_with_0_items_and_recorded(lite: Project) -> None:
    result = lite.run("run", "count", "n=0", "--json")
    assert result.code == 0
    assert result.json["planned"] == 0
    assert "0 items" in result.err
    assert lite.run("show", "--json").json["run"] == result.json["run"]


def test_a_failed_item_ends_with_1_and_is_listed_in_every_format(project: Project) -> None:
    result = project.run("run", "count", "bad=5", "--json")
    assert result.code == 1
    assert (result.json["status"], result.json["done"], result.json["failed"]) == ("failed", 19, 1)
    run = result.json["run"]
    assert "Item 5 failed: ValueError: item 5 is \\x1b[31mbad\\x1b[0m" in result.err
    assert f"batchrun retry {run}" in result.err
    assert "ValueError" in project.run("failures").out
    rows = list(csv.DictReader(project.run("failures", run, "--format", "csv").out.splitlines()))
    assert [(row["item"], row["status"], row["error"]) for row in rows] == [("5", "failed", "ValueError")]
    assert json.loads(project.run("failures", "count", "--format", "jsonl").out)["item"] == 5


def test_more_failures_than_allowed_halt_the_run_with_3(lite: Project) -> None:
    result = lite.run("run", "loud", "--max-failures", "0", "-j", "1", "--json")
    assert result.code == 3
    assert result.json["status"] == "halted"
    assert "batchrun resume" in result.err


def test_limit_plans_at_most_so_many_items(lite: Project) -> None:
    assert lite.run("run", "count", "n=50", "--limit", "4", "--json").json["planned"] == 4


@pytest.mark.parametrize(("database_url", "workers"), [("sqlite", "0"), ("postgresql", "2")], indirect=["database_url"])
def test_prints_and_logs_go_to_stderr_and_secrets_nowhere(project: Project, workers: str) -> None:
    """Inline and in workers stdout holds the JSON alone."""
    result = project.process("run", "loud", "token=hunter2secret", "-j", workers, "--json")
    assert result.code == 1
    assert result.json["failed"] == 2
    for line in (
        "printed by 1",
        "printed by the items function",
        "logged by the items function",
        "printed by a child of the task",
    ):
        assert line in result.err
    assert "hunter2secret" not in result.out + result.err


def test_quiet_shows_failed_items_and_warnings_only(lite: Project) -> None:
    result = lite.run("run", "count", "bad=5", "-q")
    assert result.err.splitlines()[0].startswith("Item 5 failed")
    assert result.out == ""


# ------------------------------------------------------------------------------------------------- looking at runs
def test_runs_and_show_agree_with_the_run(lite: Project) -> None:
    project = lite
    made = [project.run("run", "count", f"n={n}", "--json", "-q").json for n in (3, 4)]
    listed = project.run("runs", "--json").json
    assert listed["schema"] == 1
    assert [one["run"] for one in listed["runs"]] == [made[1]["run"], made[0]["run"]]
    assert [one["planned"] for one in project.run("runs", "--json", "--limit", "1").json["runs"]] == [4]
    for name in ("last", "count", made[1]["run"], made[1]["run"][:6]):
        found = project.run("show", name, "--json").json
        same = set(RUN_KEYS) - {"elapsed_s", "items_per_s"}
        assert {key: found[key] for key in same} == {key: made[1][key] for key in same}
    assert made[0]["run"] in project.run("runs").out
    assert "3 planned = 3 done" in project.process("show", made[0]["run"]).out


# --------------------------------------------------------------------------------------------------- interruptions
def test_a_signal_ends_a_run_after_its_running_items_and_resume_does_the_rest(lite: Project) -> None:
    """What is said. Every signal, on every database: tests/chaos, the scenario ``signals``."""
    project = lite
    process = project.start("run", "held", "--json")
    wait_until(project.waiting, 30, what="a task that waits")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    said = next(line for line in process.stderr if "finishing what is running" in line)
    project.go()
    result = project.end(process)
    assert result.code == 130, said + result.err
    assert result.json["status"] == "interrupted"
    assert 0 < result.json["done"] < 12
    run = result.json["run"]
    assert f"batchrun resume {run}" in said
    assert project.run("show", "--json").json["status"] == "interrupted"
    resumed = project.run("resume", "--json")
    assert resumed.code == 0, resumed.err
    assert (resumed.json["run"], resumed.json["done"], resumed.json["pending"]) == (run, 12, 0)
    assert project.effects() == list(range(12))


def test_a_second_signal_ends_it_at_once_and_nothing_is_lost(lite: Project) -> None:
    project = lite
    process = project.start("run", "held")
    wait_until(project.waiting, 30, what="a task that waits")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert any("finishing what is running" in line for line in process.stderr)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert project.end(process).code == 130
    assert time.monotonic() - began < 3
    project.go()
    assert project.run("resume", "last").code == 0
    assert project.effects() == list(range(12))


def test_a_signal_before_the_run_is_open_leaves_with_its_code_and_nothing_on_stdout(lite: Project) -> None:
    process = lite.start("run", "endless", "--json")
    wait_until((lite.folder / "marks" / "opening").exists, 30)
    process.send_signal(signal.SIGTERM)
    result = lite.end(process)
    assert (result.code, result.out) == (143, "")
    assert "before the run was open" in result.err


def test_a_run_that_is_running_refuses_a_second_with_75(project: Project) -> None:
    first = project.start("run", "held")
    wait_until(project.waiting, 30, what="a task that waits")
    for command in (["run", "held", "--json"], ["resume"], ["resume", "held"]):
        second = project.run(*command)
        assert (second.code, second.out) == (75, ""), second.err
        assert "already running" in second.err
    assert project.run("show", "--json").json["status"] == "running"
    project.go()
    assert project.end(first).code == 0


# ---------------------------------------------------------------------------------------------------- resume, retry
def test_nothing_to_do_is_no_error(lite: Project) -> None:
    assert lite.run("run", "count").code == 0
    for command in (["resume"], ["resume", "last"], ["retry", "last"]):
        result = lite.run(*command)
        assert result.code == 0
        assert "nothing to do" in result.err.lower()
        assert result.out == ""


def test_retry_puts_failed_items_back_into_the_same_run_with_fixed_code(project: Project) -> None:
    first = project.run("run", "count", "bad=5", "--json").json
    again = project.run("resume", "last")
    assert again.code == 0
    assert f"batchrun retry {first['run']}" in again.err
    path = project.folder / "jobs" / "trials.py"
    path.write_text(path.read_text().replace("if item == bad:", "if False:"))
    result = project.run("retry", "last", "--json")
    assert result.code == 0, result.err
    assert (result.json["run"], result.json["done"], result.json["failed"]) == (first["run"], 20, 0)
    assert project.effects() == list(range(20))


def test_a_resume_over_changed_code_needs_accept_changes(lite: Project) -> None:
    process = lite.start("run", "held")
    wait_until(lite.waiting, 30, what="a task that waits")
    process.send_signal(signal.SIGTERM)
    lite.go()
    assert lite.end(process).code == 143
    path = lite.folder / "jobs" / "trials.py"
    path.write_text(path.read_text().replace("if item >= 3:", "if item >= 300:"))
    refused = lite.run("resume")
    assert refused.code == 2
    assert "--accept-changes" in refused.err
    assert lite.run("resume", "--accept-changes").code == 0
    assert lite.effects() == list(range(12))


# --------------------------------------------------------------------------------------------------- it cannot begin
def test_a_database_that_is_not_there_ends_with_6_in_under_two_seconds(lite: Project) -> None:
    with socket.socket() as taken:  # bound, but nobody listens: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"postgresql://app:hunter2secret@127.0.0.1:{taken.getsockname()[1]}/app"
        for command in (["run", "count", "--json"], ["runs"], ["resume"]):
            began = time.monotonic()
            result = lite.run(*command, "--database-url", url)
            assert time.monotonic() - began < 5  # the bound of 2 s, less what a loaded machine needs
            assert (result.code, result.out) == (6, "")
            assert "127.0.0.1" in result.err
            assert "hunter2secret" not in result.err


def test_a_wrong_password_ends_with_6_and_is_said_once(lite: Project, wrong_password_url: str) -> None:
    result = lite.run("run", "count", "--json", "--database-url", wrong_password_url)
    assert (result.code, result.out) == (6, "")
    assert result.err.count("Error: ") == 1


def test_ledger_sql_prints_statements_that_make_the_ledger(project: Project) -> None:
    sql = project.process("ledger", "sql")
    assert sql.code == 0
    engine = create_engine(project.url)
    with engine.begin() as connection:
        for statement in filter(str.strip, sql.out.split(";\n")):
            connection.execute(text(statement))
    engine.dispose()
    assert project.run("run", "count", "--json").json["done"] == 20


def test_a_bar_is_drawn_on_a_terminal_and_notices_stand_above_it(lite: Project, terminal: Callable[..., str]) -> None:
    screen = terminal("run", "count", "n=300", "bad=5")
    assert re.search(r"\d+%\|.*\d+/300 done, \d failed, 0 retried", screen)
    assert "Item 5 failed: ValueError: item 5 is \\x1b[31mbad" in screen
    assert "300 planned = 299 done + 1 failed" in screen


@pytest.fixture
def terminal(lite: Project) -> Callable[..., str]:
    """Run batchrun on a pseudo-terminal and return what was written to it."""

    def run(*arguments: str) -> str:
        import pty

        ours, theirs = pty.openpty()
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "BATCHRUN_DATABASE_URL": lite.url, "TERM": "xterm", "COLUMNS": "80"}
        command = [sys.executable, "-m", "batchrun", *arguments]
        process = subprocess.Popen(command, cwd=lite.folder, env=environ, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(ours, 65536):
                written += piece
        except OSError:  # the other end is closed
            pass
        os.close(ours)
        process.wait()
        return written.decode()

    return run
