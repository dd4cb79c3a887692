"""The command line's surface: help, options in both positions, bad input and its exit codes; nothing here opens a run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import CommandLine, Result

ROOT = Path(__file__).parents[2]
SHARED = {"--config", "--database-url", "--profile", "--debug", "--help"}
RUN_OPTIONS = {
    *("--workers", "--threads", "--retries", "--timeout", "--max-failures", "--progress", "--quiet", "--json"),
    *("--log-format", "--rate", "--window", "--max-runtime"),
}
COMMANDS = {
    "run": RUN_OPTIONS | {"--limit", "--sample", "--seed", "--dry-run", "--transaction", "--if-running", "--joblog"},
    "resume": RUN_OPTIONS | {"--accept-changes", "--joblog"},
    "retry": RUN_OPTIONS | {"--accept-changes", "--joblog", "--only"},
    "runs": {"--limit", "--job", "--status", "--json"},
    "show": {"--watch", "--item", "--json"},
    "report": {"--output"},
    "pause": set(),
    "cancel": set(),
    "tune": {"--workers", "--rate"},
    "verify": {"--json"},
    "failures": {"--format", "--class", "--sqlstate", "--limit"},
    "jobs": set(),
    "init": set(),
    "config": set(),
    "doctor": {"--json"},
    "ledger sql": set(),
    "ledger upgrade": {"--sql"},
    "ledger prune": {"--older-than", "--named", "--unfinished", "--dry-run", "--quiet", "--json"},
    "schedule list": {"--json"},
    "schedule export": {"--crontab", "--systemd", "--output", "--user"},
    "schedule install": set(),
    "schedule uninstall": set(),
    "schedule run": {"--quiet"},
}
JOBS = '''
"""Jobs of the tests."""
from pydantic import SecretStr
from batchrun import job

@job(timeout="30s")
def send(session, item: int, *, token: SecretStr = SecretStr("nothing")) -> None:
    """Send every item."""

@send.items
def items(session, count: int, since: str = "today"):
    return range(count)
'''


Run = Callable[..., Result]


def process(shell: str, cwd: Path) -> Result:
    """Run a line of shell, in which $batchrun is the command line."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BATCHRUN_")}
    environ = {**kept, "PYTHONPATH": str(ROOT), "batchrun": f"{sys.executable} -m batchrun"}
    done = subprocess.run(["bash", "-c", shell], cwd=cwd, env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text("[run]\nretries = 5\n\n[profile.night.run]\nworkers = 7\n")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "sending.py").write_text(JOBS)
    return tmp_path


@pytest.fixture
def run(project: Path, batchrun: CommandLine) -> Run:
    def called(*arguments: str, **variables: str) -> Result:
        result = batchrun(*arguments, cwd=project, **variables)
        assert "Traceback" not in result.stderr
        return result

    return called


# ---------------------------------------------------------------------------------------------------------- help
def test_help_lists_every_command(run: Run) -> None:
    shown = run("--help").stdout
    assert shown.startswith("Usage: batchrun [OPTIONS]")
    listed = shown.partition("Commands:\n")[2]
    names = {line.split()[0] for line in listed.splitlines() if line.startswith("  ") and not line.startswith("   ")}
    assert names == {name.split()[0] for name in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_lists_exactly_its_options_within_80_columns(command: str, run: Run) -> None:
    result = run(*command.split(), "--help")
    assert result.returncode == 0
    named = {word.rstrip(",") for line in result.stdout.splitlines() if line.startswith("  -") for word in line.split()}
    assert {name for name in named if name.startswith("--")} == COMMANDS[command] | SHARED
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_without_a_command_it_shows_its_help_and_fails(run: Run) -> None:
    for arguments in ([], ["ledger"], ["schedule"]):
        result = run(*arguments)
        assert result.returncode == 2
        assert "Usage: batchrun" in result.stderr
        assert result.stdout == ""


def test_version_is_one_line(run: Run) -> None:
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout.startswith("batchrun ")


# ------------------------------------------------------------------------------------------------- shared options
def test_shared_options_stand_before_or_after_the_command_and_the_latter_wins(
    project: Path, tmp_path: Path, batchrun: Run
) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    config = str(project / "config.toml")
    missing = str(other / "missing.toml")
    for arguments in (
        ["--config", config, "--profile", "night", "config"],
        ["config", "--config", config, "--profile", "night"],
        ["--config", missing, "--profile", "none", "config", "--config", config, "--profile", "night"],
    ):
        result = batchrun(*arguments, cwd=other)
        assert result.returncode == 0, result.stderr
        line = next(line for line in result.stdout.splitlines() if line.startswith("run.workers"))
        assert line.split()[1] == "7"
        assert "profile night" in line


def test_shared_options_stand_at_three_places_of_a_group(project: Path, tmp_path: Path, batchrun: CommandLine) -> None:
    url = ["--database-url", "postgresql://nobody@localhost/none"]
    for arguments in ([*url, "ledger", "sql"], ["ledger", *url, "sql"], ["ledger", "sql", *url]):
        assert "CREATE TABLE" in batchrun(*arguments, cwd=project).stdout


# ------------------------------------------------------------------------------------------------------ bad usage
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["runn"], 2, "Did you mean 'run'"),
        (["run", "send", "--limt", "3"], 2, "No such option: --limt. Did you mean --limit?"),
        (["run"], 2, "Missing argument 'JOB'"),
        (["retry"], 2, "Missing argument 'RUN'"),
        (["run", "send", "count=1", "-j", "x"], 2, "--workers: 'x' is not a whole number from 0 to 1,024, such as 4"),
        (["run", "send", "count=1", "-j", "-1"], 2, "--workers: -1 is not a whole number from 0 to 1,024"),
        (["run", "send", "count=1", "-j", "2.5"], 2, "--workers: '2.5' is not a whole number"),
        (["run", "send", "count=1", "--workers", "1000000000"], 2, "from 0 to 1,024"),
        (["run", "send", "count=1", "--threads", "0"], 2, "--threads: 0 is not a whole number from 1"),
        (["run", "send", "count=1", "--sample", "lots"], 2, "--sample: 'lots' is neither a number of items from 1 to 10,000"),
        (["run", "send", "count=1", "--sample", "5", "--limit", "5"], 2, "--sample and --limit cannot be combined"),
        (["run", "send", "count=1", "--seed", "5"], 2, "--seed: it repeats a sample, so give --sample as well"),
        (["run", "send", "count=1", "--sample", "5", "--seed", "x"], 2, "--seed: 'x' is not a whole number from 0"),
        (["run", "send", "count=1", "--limit", "-1"], 2, "--limit: -1 is not a whole number from 0"),
        (["run", "send", "count=1", "--timeout", "10 parsecs"], 2, "--timeout: '10 parsecs' is no duration"),
        (["run", "send", "count=1", "--timeout", "0"], 2, "--timeout: '0' is not above 0"),
        (["run", "send", "count=1", "--timeout", "-5"], 2, "--timeout: '-5' is no duration"),
        (["run", "send", "count=1", "--max-failures", "lots"], 2, "--max-failures: 'lots' is neither a number"),
        (["run", "send", "count=1", "--rate", "fast"], 2, "--rate: 'fast' is no rate; write items a second or a text such as 50"),
        (["run", "send", "count=1", "--rate", "0"], 2, "--rate: 0 is no rate"),
        (["run", "send", "count=1", "--window", "night"], 2, "--window: 'night' is no window; write hours such as '22:00-06:00'"),
        (["run", "send", "count=1", "--window", "22:00-22:00"], 2, "it ends when it begins"),
        (["run", "send", "count=1", "--window", "22:00-06:00 Mars"], 2, "'Mars' is no time zone"),
        (["run", "send", "count=1", "--max-runtime", "0"], 2, "--max-runtime: 0 is not above 0"),
        (["tune", "last"], 2, "There is nothing to tune: give -j N, --rate 50/s, or both"),
        (["tune", "last", "-j", "0"], 2, "--workers: '0' is no number of workers that a run can be given while it goes on"),
        (["tune", "last", "-j", "auto"], 2, "--workers: 'auto' is no number of workers"),
        (["tune", "last", "--rate", "slow"], 2, "--rate: 'slow' is no rate"),
        (["pause"], 2, "Missing argument 'RUN'"),
        (["cancel", "nothing"], 2, "There is no run yet"),
        (["run", "send", "count=1", "--transaction", "all"], 2, "--transaction: 'all' is not one of item, chunk, none"),
        (["run", "send", "count=1", "--progress", "fancy"], 2, "--progress: 'fancy' is not one of auto, bar, plain, none"),
        (["run", "send"], 2, "count: this parameter is missing"),
        (["run", "send", "count=x"], 2, "count: 'x' is no int"),
        (["run", "send", "count=1", "sinse=x"], 2, "did you mean 'since'?"),
        (["run", "send", "count=1", "count=2"], 2, "'count=2' is given twice"),
        (["run", "send", "count"], 2, "'count' is no parameter: they are written name=value"),
        (["run", "sendd"], 4, "Did you mean send?"),
        (["run", "os:system"], 4, "is no name of a job"),
        (["run", "../evil"], 4, "is no name of a job"),
        (["failures", "--format", "xml"], 2, "--format: 'xml' is not one of table, csv, jsonl"),
        (["runs", "--limit", "0"], 2, "--limit: '0' is not a whole number from 1"),
        (["show"], 2, "There is no run yet"),
        (["show", "nothing"], 2, "There is no run yet"),
        (["resume", "nothing"], 2, "There is no run yet"),
        (["runs", "--profile", "nigth"], 2, "did you mean 'night'?"),
        (["config", "--config", "missing.toml"], 2, "there is no file"),
        (["init"], 2, "batchrun init overwrites nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_ends_with_one_message_and_its_exit_code(arguments: list[str], code: int, said: str, run: Run) -> None:
    result = run(*arguments)
    assert result.returncode == code, result.stderr
    assert said in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert result.stdout == ""


def test_a_wrong_parameter_shows_the_parameters_of_the_job(run: Run) -> None:
    for argument in ("count", "count=x", "nothing=1"):
        lines = run("run", "send", argument).stderr.splitlines()
        assert lines[-4:] == [
            "Parameters of send:",
            "  count: int (required)",
            "  since: str = today",
            "  token: SecretStr = ***",
        ]


def test_without_a_project_the_paths_searched_are_named_and_how_to_make_one(tmp_path: Path, batchrun: CommandLine) -> None:
    for command in (["run", "send"], ["jobs"], ["resume"], ["retry", "last"], ["runs"], ["show"]):
        result = batchrun(*command, cwd=tmp_path)
        assert result.returncode == 2
        assert "batchrun init" in result.stderr
        assert str(tmp_path / "config.toml") in result.stderr


def test_a_bare_resume_with_nothing_unfinished_is_no_error(run: Run) -> None:
    result = run("resume")
    assert result.returncode == 0
    assert "nothing to do" in result.stderr.lower()
    assert result.stdout == ""


def test_a_job_that_raises_on_import_names_its_line(project: Path, run: Run) -> None:
    (project / "jobs" / "broken.py").write_text(
        "from batchrun import job\nraise RuntimeError('oh no')\n@job\ndef oops(session, item): ...\n"
    )
    result = run("run", "oops")
    assert result.returncode == 4
    assert "jobs/broken.py:2" in result.stderr
    assert "oh no" in result.stderr


# ---------------------------------------------------------------------------------------------------- debug, secrets
def test_a_traceback_is_shown_only_with_debug(project: Path, batchrun: CommandLine) -> None:
    for arguments, variables in ((["--debug", "show"], {}), (["show", "--debug"], {}), (["show"], {"BATCHRUN_DEBUG": "1"})):
        result = batchrun(*arguments, cwd=project, **variables)
        assert result.returncode == 2
        assert "Traceback" in result.stderr
        assert "Error: There is no run yet" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["config"], ["--debug", "runs"], ["--debug", "run", "send", "count=1"], ["--debug", "jobs", "send"]]
)
def test_no_secret_is_written_not_even_in_a_traceback(arguments: list[str], project: Path, batchrun: CommandLine) -> None:
    url = "postgresql://app:hunter2secret@127.0.0.1:1/app"
    result = batchrun(*arguments, "--database-url", url, cwd=project)
    assert "hunter2secret" not in result.stdout + result.stderr


def test_a_secret_parameter_is_hidden_in_messages(run: Run) -> None:
    result = run("run", "send", "count=x", "token=hunter2secret", "token=hunter2secret")
    assert result.returncode == 2
    assert "hunter2secret" not in result.stderr


def test_a_message_cannot_command_the_terminal(run: Run) -> None:
    result = run("run", "send", "count=\x1b[2J\r")
    assert "\x1b" not in result.stderr
    assert "\\x1b" in result.stderr


# -------------------------------------------------------------------------------------------------------- listings
def test_jobs_lists_each_job_with_its_place_and_what_it_does(run: Run) -> None:
    result = run("jobs")
    assert result.returncode == 0
    assert result.stdout.splitlines()[1].split(maxsplit=2) == ["send", "jobs/sending.py:7", "Send every item."]


def test_jobs_of_one_job_shows_parameters_with_types_and_options_with_origins(run: Run) -> None:
    rows = [line.split() for line in run("jobs", "send").stdout.splitlines()]
    assert ["count", "int", "required"] in rows
    assert ["since", "str", "today"] in rows
    assert ["token", "SecretStr", "***"] in rows
    assert ["timeout", "30.0", "@job", "send"] in rows
    assert ["retries", "5", "config.toml:2"] in rows
    assert ["threads", "1", "built-in"] in rows


def test_config_shows_every_value_with_its_origin(run: Run) -> None:
    rows = [line.split() for line in run("config", BATCHRUN_RUN_THREADS="3").stdout.splitlines()]
    assert ["run.retries", "5", "config.toml:2"] in rows
    assert ["run.threads", "3", "environment", "BATCHRUN_RUN_THREADS"] in rows
    assert ["run.transaction", "item", "built-in"] in rows


def test_init_makes_a_project_and_says_what_to_run(tmp_path: Path, batchrun: CommandLine) -> None:
    result = batchrun("init", "new", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.splitlines() == ["new/config.toml", "new/jobs/example.py", "new/tests/test_jobs.py"]
    assert "cd new && batchrun run measure_words" in result.stderr


# ------------------------------------------------------------------------------------------------ as a process
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full"])
def test_the_exit_code_follows_the_result_when_a_standard_stream_is_gone(closed: str, project: Path) -> None:
    for arguments, code in (("config", 0), ("run sendd", 4)):
        assert process(f"exec $batchrun {arguments} {closed}", project).returncode == code, arguments


def test_a_reader_that_leaves_is_no_error(project: Path) -> None:
    for arguments in ("config", "--help"):
        result = process(f"$batchrun {arguments} | true; exit ${{PIPESTATUS[0]}}", project)
        assert result.returncode == 0
        assert result.stderr.splitlines()[1:] == []


def test_a_debug_variable_shows_a_traceback(project: Path) -> None:
    result = process("BATCHRUN_DEBUG=1 $batchrun show", project)
    assert result.returncode == 2
    assert "Traceback" in result.stderr


def test_what_a_job_prints_when_it_is_imported_goes_to_stderr(project: Path) -> None:
    (project / "jobs" / "loud.py").write_text("import os\nprint('from python')\nos.system('echo from a child')\n" + JOBS)
    (project / "jobs" / "sending.py").unlink()
    result = process("$batchrun jobs send", project)
    assert result.returncode == 0
    assert "from" not in result.stdout
    assert "from python" in result.stderr
    assert "from a child" in result.stderr
