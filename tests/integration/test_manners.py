"""How a run behaves that nobody watches: overlap, what a reboot leaves, silence, logs as JSON, pings and figures."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from tests.integration.test_cli import Project, Result, closing, make_project
from tests.support.commands import CommandLine
from tests.support.monitor import Monitor, monitor
from tests.support.waiting import wait_until

TALK = '''
"""A job that logs, prints and warns."""
import logging, sys
from batchrun import job

log = logging.getLogger("mine")


@job(retries=0)
def talk(session, item: int, ctx, *, bad: int = -1) -> None:
    """Talk."""
    ctx.logger.info("at %s with password=%s", item, "hunter2secret")
    print("printed by", item)
    if item == bad:
        try:
            raise OSError("disk on fire")
        except OSError:
            log.exception("caught it")
        raise ValueError("a bad item")


@talk.items
def talk_items(n: int = 3):
    log.info("makes items")
    return range(n)
'''


@pytest.fixture
def project(tmp_path: Path, database_url: str, batchrun: CommandLine) -> Iterator[Project]:
    yield from closing(make_project(tmp_path, database_url, batchrun))


@pytest.fixture
def lite(tmp_path: Path, sqlite_url: str, batchrun: CommandLine) -> Iterator[Project]:
    made = make_project(tmp_path, sqlite_url, batchrun)
    (tmp_path / "jobs" / "talking.py").write_text(TALK)
    yield from closing(made)


@pytest.fixture
def server() -> Iterator[Monitor]:
    with monitor() as made:
        yield made


def configure(project: Project, *lines: str) -> None:
    """Add to config.toml, and keep it to ourselves, as its ping_url is a secret."""
    file = project.folder / "config.toml"
    file.write_text(file.read_text() + "\n".join(lines) + "\n")
    file.chmod(0o600)


def here(project: Project, *arguments: str) -> Result:
    """Run a command in this process; the traceback of an exception that a task logs is none of batchrun's."""
    done = project.batchrun(*arguments, cwd=project.folder, BATCHRUN_DATABASE_URL=project.url)
    return Result(done.returncode, done.stdout, done.stderr)


def execute(project: Project, *statements: str) -> None:
    engine = create_engine(project.url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


# --------------------------------------------------------------------------------------------------------- overlap
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite: the next test
def test_a_firing_skips_fails_or_waits_while_the_job_is_running(project: Project) -> None:
    first = project.start("run", "held")
    wait_until(project.waiting, 30, what="a task that waits")
    skipped = project.run("run", "held", "--if-running", "skip", "--json")
    assert (skipped.code, skipped.out) == (0, "")
    (line,) = skipped.err.splitlines()
    assert line.startswith("Skipped, nothing was started. Job held is already running: run ")
    silent = project.run("run", "held", "--if-running", "skip", "--json", "-q")
    assert (silent.code, silent.out, silent.err) == (0, "", "")
    failed = project.run("run", "held", "--if-running", "fail", "--json")
    assert (failed.code, failed.out) == (75, "")
    waiting = project.start("run", "held", "--if-running", "wait", "--json")
    assert waiting.stderr is not None
    assert waiting.stderr.readline().startswith("Waiting. Job held is already running: run ")
    project.go()
    assert project.end(first).code == 0
    second = project.end(waiting)
    assert (second.code, second.json["done"]) == (0, 12)


def test_a_signal_ends_the_wait_at_once(lite: Project) -> None:
    first = lite.start("run", "held")
    wait_until(lite.waiting, 30, what="a task that waits")
    configure(lite, '[jobs.held]\nif_running = "wait"')
    waiting = lite.start("run", "held")
    assert waiting.stderr is not None
    assert waiting.stderr.readline().startswith("Waiting. ")
    waiting.send_signal(signal.SIGTERM)
    result = lite.end(waiting)
    assert (result.code, result.out, result.err) == (143, "", "Interrupted by SIGTERM before the run was open.\n")
    lite.go()
    assert lite.end(first).code == 0


# ------------------------------------------------------------------------------------------------- what was cut short
def test_the_next_firing_goes_on_with_a_run_whose_whole_tree_was_killed(project: Project) -> None:
    configure(project, '[jobs.held]\non_unfinished = "resume"')
    first = project.start("run", "held")
    wait_until(project.waiting, 30, what="a task that waits")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    run = project.run("show", "--json").json["run"]
    project.go()
    second = project.run("run", "held", "--json")
    assert (second.code, second.json["run"], second.json["done"]) == (0, run, 12), second.err
    assert project.effects() == list(range(12))


@pytest.mark.parametrize(
    ("status", "asked", "code", "said"),
    [
        ("halted", "", 3, "was halted by max_failures, so it was left alone"),
        ("paused", "pause", 5, "was paused by a person, so it was left alone"),
        ("paused", "", 0, ""),
        ("cancelled", "cancel", 0, ""),
    ],
)
def test_a_firing_leaves_alone_what_a_person_or_a_limit_has_stopped(
    lite: Project, status: str, asked: str, code: int, said: str
) -> None:
    configure(lite, '[jobs.count]\non_unfinished = "resume"')
    run = lite.run("run", "count", "bad=3", "--max-failures", "0", "--json", "-j", "1").json["run"]
    execute(
        lite,
        f"UPDATE batchrun_run SET status = '{status}'",
        f"INSERT INTO batchrun_request (run, wanted, asked) VALUES ('{run}', '{asked}', 0)",
    )
    result = lite.run("run", "count", "bad=3", "--json", "-q")
    assert said in result.err
    if code:
        assert (result.code, result.out) == (code, "")
        assert f"`batchrun resume {run}`" in result.err
    else:
        assert (result.code, result.json["run"] == run) == (1, status == "paused")


def test_a_firing_over_changed_code_says_how_to_go_on_by_hand(lite: Project) -> None:
    configure(lite, '[jobs.count]\non_unfinished = "resume"')
    run = lite.run("run", "count", "bad=3", "--max-failures", "0", "--json", "-j", "1").json["run"]
    execute(lite, "UPDATE batchrun_run SET status = 'interrupted'")
    path = lite.folder / "jobs" / "trials.py"
    path.write_text(path.read_text().replace("if item == bad:", "if item == bad + 0:"))
    result = lite.run("run", "count", "bad=3", "-q")
    assert result.code == 2
    assert f"Go on with `batchrun resume {run} --accept-changes`" in result.err


# --------------------------------------------------------------------------------------------------------- silence
def test_quiet_success_writes_not_one_byte_with_pings_and_figures(lite: Project, server: Monitor) -> None:
    configure(lite, f'[notify]\nping_url = "{server.url}/{{job}}"\n[metrics]\ntextfile = "figures/batchrun.prom"')
    (lite.folder / "figures").mkdir()
    result = lite.process("run", "talk", "-q")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert server.paths == ["/a-secret-of-the-project/talk/start", "/a-secret-of-the-project/talk"]
    figures = (lite.folder / "figures" / "batchrun.prom").read_text()
    assert 'batchrun_last_items{job="talk",outcome="done"} 3\n' in figures
    assert 'batchrun_last_success_timestamp_seconds{job="talk"} ' in figures


def test_quiet_failure_says_the_items_the_sum_and_the_commands_that_go_on(lite: Project) -> None:
    result = lite.run("run", "count", "bad=5", "-q")
    run = lite.run("show", "--json").json["run"]
    assert result.code == 1
    lines = result.err.splitlines()
    assert lines[0].startswith("Item 5 failed: ValueError: item 5 is ")
    assert "  20 planned = 19 done + 1 failed" in lines
    assert lines[-2:] == [
        f"  see what went wrong:    batchrun failures {run}",
        f"  try those items again:  batchrun retry {run}",
    ]


# ------------------------------------------------------------------------------------------------- who else is told
ON_FAILURE = 'on_failure = ["sh", "-c", "env | grep ^BATCHRUN_ > told; cat > log; batchrun --version > /dev/null || true"]'


def told(project: Project) -> dict[str, str]:
    lines = (project.folder / "told").read_text().splitlines()
    return dict(line.partition("=")[::2] for line in lines)


def test_a_failure_is_told_with_the_last_lines_of_the_log_and_mended_by_a_retry(lite: Project, server: Monitor) -> None:
    configure(lite, f'[notify]\nping_url = "{server.url}"\n{ON_FAILURE}')
    assert here(lite, "run", "talk", "bad=1", "-q").code == 1
    run = lite.run("show", "--json").json["run"]
    start, fail = server.pings
    assert (start.path, fail.path) == ("/a-secret-of-the-project/start", "/a-secret-of-the-project/fail")
    assert f"batchrun.job.talk [run {run}, item 1]: at 1 with password=***" in fail.body
    assert "OSError: disk on fire" in fail.body
    assert fail.body.endswith(f"  try those items again:  batchrun retry {run}")
    assert (lite.folder / "log").read_text() == fail.body + "\n"
    found = told(lite)
    expected = {"RUN": run, "JOB": "talk", "STATUS": "failed", "EXIT_CODE": "1", "DONE": "2", "FAILED": "1", "PLANNED": "3"}
    assert {name: found[f"BATCHRUN_{name}"] for name in expected} == expected
    path = lite.folder / "jobs" / "talking.py"
    path.write_text(path.read_text().replace('raise ValueError("a bad item")', "pass"))
    assert here(lite, "retry", "last", "-q").code == 0
    assert server.paths[-2:] == ["/a-secret-of-the-project/start", "/a-secret-of-the-project"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "talk", "--database-url", "postgresql://app:hunter2secret@127.0.0.1:1/app"], 6, "127.0.0.1"),
        (["run", "broken"], 4, "oh no"),
        (["run", "talk", "bad=x"], 2, "is no int"),
    ],
    ids=["database", "code", "parameter"],
)
def test_a_run_that_cannot_begin_is_told_as_a_failure(
    lite: Project, server: Monitor, arguments: list[str], code: int, said: str
) -> None:
    configure(lite, f'[notify]\nping_url = "{server.url}"\n{ON_FAILURE}\n[metrics]\ntextfile = "batchrun.prom"')
    (lite.folder / "jobs" / "broken.py").write_text(
        "from batchrun import job\nraise RuntimeError('oh no')\n@job\ndef broken(session, item): ...\n"
    )
    assert lite.run(*arguments).code == code
    assert server.paths == ["/a-secret-of-the-project/fail"]
    assert said in server.pings[0].body
    assert "hunter2secret" not in server.pings[0].body
    assert (told(lite)["BATCHRUN_STATUS"], told(lite)["BATCHRUN_EXIT_CODE"]) == ("unopened", str(code))
    figures = lite.folder / "batchrun.prom"
    assert figures.exists() == (code != 4)  # a job that nobody knows makes no series
    assert code == 4 or f'batchrun_last_exit_code{{job="talk"}} {code}\n' in figures.read_text()


def test_nobody_is_told_of_a_firing_that_found_its_job_running(lite: Project, server: Monitor) -> None:
    first = lite.start("run", "held")
    wait_until(lite.waiting, 30, what="a task that waits")
    configure(lite, f'[notify]\nping_url = "{server.url}"\n{ON_FAILURE}\n[metrics]\ntextfile = "batchrun.prom"')
    assert lite.run("run", "held").code == 75
    assert lite.run("run", "held", "--if-running", "skip").code == 0
    lite.go()
    assert lite.end(first).code == 0
    assert server.pings == []
    assert not (lite.folder / "told").exists()
    assert not (lite.folder / "batchrun.prom").exists()


def test_what_goes_wrong_with_telling_is_a_warning_and_no_more(lite: Project, server: Monitor) -> None:
    server.answers = [404, 404]
    configure(lite, f'[notify]\nping_url = "{server.url}"\non_failure = ["false"]\n[metrics]\ntextfile = "no/such/folder/x.prom"')
    result = lite.run("run", "count", "bad=1", "-q", "--json")
    assert (result.code, result.json["done"]) == (1, 19)
    warned = [line for line in result.err.splitlines() if line.startswith("Warning: ")]
    where = f"Warning: [metrics] textfile: {lite.folder}/no/such/folder/x.prom could not be written: No such file or directory"
    assert [line for line in warned if line.startswith(where)] == [f"{where}. The run is not affected."] * 2
    assert sum("ping to http://127.0.0.1/*** failed: it answered 404 Not Found" in line for line in warned) == 2
    assert "Warning: [notify] on_failure: 'false' ended with 1." in warned
    assert "a-secret-of-the-project" not in result.err


# ------------------------------------------------------------------------------------------------------------ logs
def objects(err: str) -> list[dict[str, Any]]:
    """Each line of stderr as the object it must be."""
    found = [json.loads(line) for line in err.splitlines()]
    assert all({"time", "level", "logger", "message", "run", "job"} <= set(one) for one in found)
    return found


@pytest.mark.parametrize("workers", ["0", "2"])
def test_as_json_every_line_on_stderr_is_an_object_with_its_ids(lite: Project, workers: str) -> None:
    result = here(lite, "run", "talk", "bad=1", "-j", workers, "--log-format", "json", "--json")
    assert result.code == 1
    found, run = objects(result.err), result.json["run"]
    assert "hunter2secret" not in result.err
    records = {one["message"]: one for one in found}
    at = records["at 2 with password=***"]
    assert (at["logger"], at["level"], at["run"], at["job"], at["item"], at["attempt"]) == (
        "batchrun.job.talk", "INFO", run, "talk", 2, 1,
    )  # fmt: skip
    assert ("worker" in at) == (workers != "0")
    assert (records["printed by 1"]["logger"], records["printed by 1"]["item"]) == ("print", 1)
    assert records["caught it"]["traceback"].endswith("OSError: disk on fire")
    failed = records["Item 1 failed: ValueError: a bad item"]
    assert (failed["level"], failed["item"], failed["error"]) == ("ERROR", 1, "ValueError")
    assert (found[-1]["status"], found[-1]["done"], found[-1]["failed"]) == ("failed", 2, 1)
    assert records["makes items"]["run"] is None


def test_as_json_a_signal_and_an_error_are_objects_too(lite: Project) -> None:
    configure(lite, '[log]\nformat = "json"')
    process = lite.start("run", "held", "-q")
    wait_until(lite.waiting, 30, what="a task that waits")
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    said = json.loads(process.stderr.readline())
    assert said["message"].startswith("SIGTERM: finishing what is running; ")
    lite.go()
    result = lite.end(process)
    assert result.code == 143
    assert objects(result.err)[-1]["status"] == "interrupted"
    refused = lite.run("run", "held", "nothing=1", "--log-format", "json")
    (error,) = objects(refused.err)
    assert (refused.code, error["level"]) == (2, "ERROR")
    assert lite.run("run", "held", "--progress", "bar").code == 2


def test_the_format_of_the_command_line_wins(lite: Project) -> None:
    configure(lite, '[log]\nformat = "json"')
    assert lite.run("run", "count", "--log-format", "text").err.startswith("Run ")
    wrong = lite.run("run", "count", "--log-format", "xml")
    assert (wrong.code, wrong.err) == (2, "Error: --log-format: 'xml' is not one of text, json\n")
