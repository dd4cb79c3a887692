"""``batchrun schedule`` as people use it: the list, the crontab, and the loop with its leader on a real ledger."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batchrun.database.engines import spec_of
from batchrun.ledger.schedules import ScheduleBook
from batchrun.schedule.opening import open_book
from tests.support.commands import CommandLine
from tests.support.databases import engine_for
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
JOBS = """
from batchrun import job
from pathlib import Path

@job(schedule="0 3 * * *", transaction="none")
def totals(item: int) -> None:
    with open(Path(__file__).parents[1] / "done", "a") as file:
        file.write(f"{item}\\n")

@totals.items
def items():
    return [1, 2]
"""
CRONTAB = """#!/bin/sh
# Keeps a crontab in a file, and says what Debian's says.
case "$1" in
-l) cat "$KEPT" 2>/dev/null || { echo "no crontab for you" >&2; exit 1; } ;;
-) cat > "$KEPT" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text('[run]\nworkers = 0\n\n[jobs.totals]\ntimezone = "UTC"\n')
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "some.py").write_text(JOBS)
    return tmp_path


# ----------------------------------------------------------------------------------------------- list and crontab
def test_the_list_has_three_firings_and_the_last_result_and_a_broken_file_is_a_warning(
    project: Path, batchrun: CommandLine
) -> None:
    (project / "jobs" / "broken.py").write_text(JOBS.replace("totals", "other") + "import nowhere_to_be_found\n")
    config = project / "config.toml"
    config.write_text(config.read_text() + '\n[jobs.other]\nschedule = "0 4 * * 1"\nenabled = false\n')
    assert batchrun("run", "totals", "-q", cwd=project).returncode == 0
    table = batchrun("schedule", "list", cwd=project)
    assert "every day at 03:00" in " ".join(table.stdout.split())
    assert "(not enabled)" in table.stdout
    assert "cannot be loaded: ModuleNotFoundError" in table.stderr
    shown = json.loads(batchrun("schedule", "list", "--json", cwd=project).stdout)
    other, totals = shown["jobs"]
    assert (shown["schema"], other["enabled"], other["next"]) == (1, False, [])
    assert (totals["words"], totals["zone"], totals["last"]["status"]) == ("every day at 03:00", "UTC", "done")
    assert [moment[11:] for moment in totals["next"]] == ["03:00:00+00:00"] * 3


def test_install_and_uninstall_change_the_block_of_this_project_alone(project: Path, batchrun: CommandLine) -> None:
    program, kept = project / "bin" / "crontab", project / "kept"
    program.parent.mkdir()
    program.write_text(CRONTAB)
    program.chmod(stat.S_IRWXU)
    variables = {"PATH": f"{program.parent}:{os.environ['PATH']}", "KEPT": str(kept), "TZ": "UTC"}
    mine = b"MAILTO=me\n5 * * * * mine \xff %\n"
    kept.write_bytes(mine)
    assert "In the crontab now: totals (every day at 03:00)." in batchrun("schedule", "install", cwd=project, **variables).stderr
    installed = kept.read_bytes()
    assert installed.startswith(mine)
    exported = batchrun("schedule", "export", "--crontab", cwd=project, **variables).stdout
    assert installed == mine + exported.encode()
    assert "is up to date" in batchrun("schedule", "install", cwd=project, **variables).stderr
    assert kept.read_bytes() == installed
    assert batchrun("schedule", "uninstall", cwd=project, **variables).returncode == 0
    assert kept.read_bytes() == mine
    assert "Nothing to do" in batchrun("schedule", "uninstall", cwd=project, **variables).stderr
    kept.unlink()
    assert batchrun("schedule", "install", cwd=project, **variables).returncode == 0
    assert kept.read_text() == exported


def test_an_exported_line_runs_the_job_from_cron_s_bare_environment_and_says_nothing(
    tmp_path: Path, batchrun: CommandLine
) -> None:
    folder = tmp_path / "it's 100% $HOME"
    (folder / "jobs").mkdir(parents=True)
    (folder / "jobs" / "some.py").write_text(JOBS)
    (folder / "config.toml").write_text("[run]\nworkers = 0\n")
    lines = batchrun("schedule", "export", "--crontab", cwd=folder, TZ="UTC").stdout.splitlines()
    (line,) = [one for one in lines if not one.startswith("#")]
    assert line.startswith("0 3 * * * /")
    command = line.split(" ", 5)[5].replace("\\%", "%")  # as cron hands it to the shell
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SHELL": "/bin/sh"}
    done = subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (folder / "done").read_text().split() == ["1", "2"]


def test_what_cannot_be_done_is_refused_with_a_way_out(project: Path, batchrun: CommandLine) -> None:
    empty = project / "empty"
    empty.mkdir()
    for arguments, said in (
        (["install"], "There is no program crontab here."),
        (["export"], "Say which: --crontab"),
        (["export", "--crontab", "-o", "x"], "-o is for --systemd."),
        (["export", "--crontab", "--database-url", "sqlite:///x.db"], "may hold a password"),
    ):
        refused = batchrun("schedule", *arguments, cwd=project, PATH=str(empty), TZ="UTC")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert said in refused.stderr
    (project / "jobs" / "some.py").write_text(JOBS.replace('schedule="0 3 * * *", ', ""))
    for name in ("run", "install"):
        refused = batchrun("schedule", name, cwd=project)
        assert refused.returncode == 2
        assert 'Give one to a job: @job(schedule="0 3 * * *")' in refused.stderr


# ------------------------------------------------------------------------------------------------------- the loop
@contextmanager
def loop(project: Path, url: str, log: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """``batchrun schedule run`` as a process, with what it says in a file."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BATCHRUN_")}
    environ = {**kept, "PYTHONPATH": str(ROOT), "BATCHRUN_DATABASE_URL": url}
    said = project / log
    with said.open("wb") as file:
        command = [sys.executable, "-m", "batchrun", "schedule", "run"]
        process = subprocess.Popen(command, cwd=project, env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield process, said
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def half_a_day_from_now(project: Path) -> None:
    """Nothing fires while the test looks."""
    config = project / "config.toml"
    hour = (datetime.now(UTC).hour + 12) % 24
    config.write_text(config.read_text().replace("[jobs.totals]", f'[jobs.totals]\nschedule = "0 {hour} * * *"'))


def missed(url: str, hours: float) -> None:
    """The ledger says that the firing last dealt with was so long ago."""
    with open_book(spec_of(url), None) as book:
        ago = time.time() - hours * 3600
        assert book.lead() is None
        book.fired(["totals"], ago)
        assert book.mark("totals", ago, is_reset=True)
        book.release()


def test_a_firing_that_was_missed_runs_once_and_sigterm_ends_the_loop(project: Path, database_url: str) -> None:
    half_a_day_from_now(project)
    missed(database_url, 100)
    with loop(project, database_url, "first") as (process, said):
        wait_until(lambda: "totals: done" in said.read_text(), 30, what=said.read_text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    lines = said.read_text().splitlines()
    assert [" ".join(line.split()[2:5]) for line in lines] == [
        "Leads the schedule", "totals: missed " + lines[1].split()[4], "totals: done, " + lines[2].split()[4],
        "SIGTERM: nothing is",
    ]  # fmt: skip
    assert (project / "done").read_text().split() == ["1", "2"]


def test_missed_skip_leaves_it_out_and_a_running_child_is_ended_and_waited_for(project: Path, sqlite_url: str) -> None:
    config = project / "config.toml"
    config.write_text(config.read_text() + '\n[jobs.often]\nschedule = "* * * * *"\n[schedule]\nmissed = "skip"\n')
    waiting = (
        JOBS.replace("totals", "often")
        .replace('schedule="0 3 * * *", ', "")
        .replace("with open", "import time; time.sleep(60)\n    with open")
    )
    (project / "jobs" / "more.py").write_text(waiting)
    half_a_day_from_now(project)
    missed(sqlite_url, 100)
    with open_book(spec_of(sqlite_url), None) as book:  # one of each minute stands for all that were missed
        assert book.lead() is None
        book.fired(["often"], time.time() - 600)
        book.release()
    with loop(project, sqlite_url, "first") as (process, said):
        wait_until(lambda: "often: due" in said.read_text() or "often: missed" in said.read_text(), 30, what=said.read_text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert "is not made up for ([schedule] missed)" in said.read_text()
    assert "SIGTERM: ends often and waits" in said.read_text()
    assert "often: interrupted" in said.read_text()
    assert not (project / "done").exists()


def test_one_stands_by_and_takes_over_when_the_leader_is_killed(project: Path, pg_url: str) -> None:
    with loop(project, pg_url, "first") as (first, said):
        wait_until(lambda: "Leads the schedule" in said.read_text(), 30, what=said.read_text)
        with loop(project, pg_url, "second") as (second, heard):
            wait_until(lambda: f"Stands by: process {first.pid} on" in heard.read_text(), 30, what=heard.read_text)
            first.kill()
            first.wait()
            wait_until(lambda: "Leads the schedule" in heard.read_text(), 30, what=heard.read_text)
            second.send_signal(signal.SIGTERM)
            assert second.wait(10) == 0


def test_one_leads_and_each_firing_is_dealt_with_once(database_url: str) -> None:
    with open_book(spec_of(database_url), None) as book, open_book(spec_of(database_url), None) as other:
        assert book.lead() is None
        holder = other.lead()
        assert holder is not None
        assert holder.shown.startswith(f"process {os.getpid()} on ")
        assert book.fired(["totals"], 100.0) == {"totals": 100.0}
        assert book.mark("totals", 200.0)
        assert not book.mark("totals", 200.0)
        assert not other.mark("totals", 300.0)  # it does not lead
        age(database_url, book)
        assert other.lead() is None
        assert not book.renew()
        assert not book.mark("totals", 300.0)  # nor does this one any more
        assert other.fired(["totals"], 0.0) == {"totals": 200.0}
        assert other.mark("totals", 300.0)
        other.release()
        assert book.lead() is None


def age(url: str, book: ScheduleBook) -> None:
    """The leader has been silent for longer than its lease."""
    with engine_for(url).begin() as connection:
        connection.execute(book.tables.schedule.update().values(heartbeat=book.tables.schedule.c.heartbeat - 60))
