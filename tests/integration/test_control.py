"""A run is paused, cancelled and tuned from elsewhere; held to a rate, to hours, to a longest time; slowed for the database."""

from __future__ import annotations

import os
import re
import threading
import time
import zoneinfo
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from batchrun import Report, run_parallel, windows
from batchrun.api import Place, open_reading, resume_job, start_job, verify_run
from batchrun.controlling import _cancelled, cancel_run, pause_run, tune_run
from batchrun.database.engines import control_engine, spec_of
from batchrun.database.health import look
from batchrun.errors import ConfigError
from batchrun.events import Event, Notice, Progressed, RunOpened
from batchrun.jobs import Job
from batchrun.ledger import requests
from batchrun.ledger.owner import Owner
from batchrun.options import RunOptions, with_options
from batchrun.plans import StopRequest
from batchrun.runs import RunStatus
from batchrun.throttling import Throttle
from tests.postgres import Server
from tests.support.commands import CommandLine
from tests.support.databases import engine_for
from tests.support.effects import effect, effects, make, once
from tests.support.standby import Standby
from tests.support.waiting import wait_until

MANY = 100_000


def slowly(session: Session, item: int) -> None:
    effect(session, item)
    time.sleep(0.01)  # work


def quickly(session: Session, item: int) -> None:
    effect(session, item)


def leaves_a_word():  # type: ignore[no-untyped-def]
    yield
    Path(f"left-{os.getpid()}").touch()


@dataclass
class Shell:
    """A run of this process as its events tell of it, and a second shell that speaks to it from a thread."""

    url: str
    folder: Path
    throttle: Throttle = field(default_factory=Throttle)
    said: list[str] = field(default_factory=list)
    run: str = ""
    settled: int = 0
    report: Report | None = None

    @property
    def place(self) -> Place:
        return Place(self.url, self.folder, throttle=self.throttle)

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunOpened):
            self.run = event.run
        elif isinstance(event, Notice):
            self.said.append(event.text)
        elif isinstance(event, Progressed):
            self.settled = event.counts.settled

    def start(self, items: int = MANY, *, task: Callable[..., Any] = slowly, initializer: Any = None, **options: Any) -> Report:
        """Carry a new run out."""
        stop = options.pop("stop", None)
        given = with_options(RunOptions(), {"workers": 2, "start_method": "fork", **options})
        job = Job("controlled", task, items=lambda: range(items), initializer=initializer)
        return start_job(job, {}, given, self.place, observers=(self,), captures_output=False, stop=stop)

    def resume(self, items: int = MANY, *, task: Callable[..., Any] = slowly, **options: Any) -> Report:
        stop = options.pop("stop", None)
        given = with_options(RunOptions(), {"workers": 0, **options})
        job = Job("controlled", task, items=lambda: range(items))
        return resume_job(
            job, self.run, given, self.place, accept_changes=True, observers=(self,), captures_output=False, stop=stop
        )

    @contextmanager
    def second(self, speak: Callable[[], Any]) -> Iterator[list[Any]]:
        """``speak`` once the run is at work; what it returned stands in the list afterwards."""
        found: list[Any] = []

        def do() -> None:
            try:
                wait_until(lambda: self.settled > 0, 30.0)
                found.append(speak())
            except BaseException as error:
                found.append(error)

        thread = threading.Thread(target=do)
        thread.start()
        yield found
        thread.join(60)
        if found and isinstance(found[0], BaseException):
            raise found[0]

    def stored(self, column: str) -> Any:
        with engine_for(self.url).connect() as connection:
            return connection.scalar(text(f"SELECT {column} FROM batchrun_run"))


@pytest.fixture(autouse=True)
def often(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner looks at what is asked ten times a second; one of these tests waits as long as people do."""
    if "from_a_second_shell_and_resumed" not in request.node.name:
        monkeypatch.setattr("batchrun.runner.CHECKPOINT_S", 0.1)


@pytest.fixture
def shell(database_url: str, tmp_path: Path) -> Shell:
    make(database_url)
    return Shell(database_url, tmp_path)


@pytest.fixture
def on_sqlite(sqlite_url: str, tmp_path: Path) -> Shell:
    """What does not depend on the database."""
    make(sqlite_url)
    return Shell(sqlite_url, tmp_path)


def rests_by_request(shell: Shell) -> bool:
    with open_reading(shell.place) as reading:
        return reading.is_asked_to_pause(shell.run)


def nothing_said(line: str) -> None:
    """A second shell that shows nothing."""


# --------------------------------------------------------------------------------------------- pause and resume
def test_a_run_is_paused_from_a_second_shell_and_resumed_and_nothing_is_lost_or_doubled(shell: Shell) -> None:
    took: list[float] = []

    def pause() -> str:
        began = time.monotonic()
        answer = pause_run(shell.place, "controlled", nothing_said)
        took.append(time.monotonic() - began)
        assert answer.ok
        return answer.text

    with shell.second(pause) as said:
        report = shell.start()
    assert report.status is RunStatus.PAUSED
    assert report.note.startswith("asked to pause by ")
    assert report.pending < 100
    assert said[0].startswith(f"Run {shell.run} of controlled is paused ({report.planned:,} planned = {report.done:,} done")
    assert took[0] < 30.0  # 2 s where nobody else wants the processor; the chaos suite measures it
    assert sum(effects(shell.url).values()) == len(effects(shell.url)) == report.done
    assert pause_run(shell.place, shell.run, nothing_said).text == (
        f"Run {shell.run} is not running, it is paused; go on with: batchrun resume {shell.run}"
    )
    assert rests_by_request(shell)  # or cron's next firing would go on with it
    done = shell.resume(report.planned + 5, task=quickly, max_failures=0)
    assert done.status is RunStatus.DONE
    assert not rests_by_request(shell)
    assert effects(shell.url) == once(range(report.planned + 5))
    assert pause_run(shell.place, shell.run, nothing_said).text == f"There is nothing to pause: run {shell.run} is done."


def test_a_request_to_pause_that_nobody_obeyed_is_over_when_the_run_is_resumed(shell: Shell) -> None:
    report = shell.start(6, max_runtime=0.001, workers=0)
    assert (report.status, report.note) == (RunStatus.PAUSED, "its max_runtime of 0.0 s is over")
    assert not rests_by_request(shell)
    with open_reading(shell.place) as reading:
        requests.ask(*reading.parts, shell.run, requests.PAUSE)
    assert shell.resume(6).status is RunStatus.DONE
    assert effects(shell.url) == once(range(6))


# -------------------------------------------------------------------------------------------------------- cancel
def test_a_cancelled_run_leaves_the_rest_undone_and_never_goes_on(shell: Shell) -> None:
    with shell.second(lambda: cancel_run(shell.place, "last", nothing_said)) as said:
        report = shell.start()
    assert report.status is RunStatus.CANCELLED
    assert said[0].ok
    assert said[0].text.startswith(f"Run {shell.run} of controlled is cancelled (")
    assert report.planned == report.done + report.pending
    assert len(effects(shell.url)) == report.done
    assert verify_run(shell.place, shell.run).ok
    with pytest.raises(ConfigError, match=f"Run {shell.run} of controlled was cancelled, so it cannot go on"):
        resume_job(Job("controlled", slowly, items=lambda: range(3)), shell.run, RunOptions(), shell.place, retried=True)
    assert "was cancelled before" in cancel_run(shell.place, shell.run, nothing_said).text


def test_a_run_that_nobody_runs_is_cancelled_by_whoever_says_so(shell: Shell) -> None:
    report = shell.start(6, max_runtime=0.001, workers=0)
    assert report.status is RunStatus.PAUSED
    answer = cancel_run(shell.place, shell.run, nothing_said)
    assert answer.ok
    assert shell.stored("status") == "cancelled"
    assert str(shell.stored("note")).startswith("asked to cancel by ")
    assert verify_run(shell.place, shell.run).ok


def test_of_a_cancel_and_a_resume_at_the_same_moment_one_wins(shell: Shell) -> None:
    shell.start(6, max_runtime=0.001, workers=0)
    with open_reading(shell.place) as reading:
        seen = reading.stored(shell.run)
        assert seen is not None
        Owner(*reading.parts, shell.run).take_over(seen.epoch)  # somebody resumes it
        assert not _cancelled(shell.place, reading, seen)
        assert shell.stored("status") == "running"


def test_a_cancel_whose_asker_and_owner_both_died_is_obeyed_by_the_next_owner(shell: Shell) -> None:
    shell.start(6, max_runtime=0.001, workers=0)
    with open_reading(shell.place) as reading:
        requests.ask(*reading.parts, shell.run, requests.CANCEL)
        requests.ask(*reading.parts, shell.run, requests.PAUSE)  # to cancel beats to pause
    assert shell.resume(6).status is RunStatus.CANCELLED
    with engine_for(shell.url).connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM batchrun_request")) == 0


# ---------------------------------------------------------------------------------------------------------- tune
def test_a_run_is_tuned_from_a_second_shell_and_keeps_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shell.folder)

    def tune() -> tuple[str, str, str]:
        more = tune_run(shell.place, "last", {"workers": "3"}, nothing_said).text
        fewer = tune_run(shell.place, "last", {"workers": "1", "rate": "100/min"}, nothing_said).text
        wait_until(lambda: len(list(shell.folder.glob("left-*"))) == 2, 30.0)
        return more, fewer, cancel_run(shell.place, "last", nothing_said).text

    with shell.second(tune) as said:
        report = shell.start(workers=2, initializer=leaves_a_word)
    assert said[0][0] == f"Run {shell.run} of controlled: 3 workers."
    assert said[0][1] == f"Run {shell.run} of controlled: 1 worker; a rate of 100/min."
    assert report.workers == 1
    with open_reading(shell.place) as reading:
        assert reading.record(shell.run).options["given"] == {"workers": 1, "rate": "100/min"}
    assert len(effects(shell.url)) == report.done


def test_only_a_run_that_is_going_on_can_be_tuned(on_sqlite: Shell) -> None:
    on_sqlite.start(6, max_runtime=0.001, workers=0)
    with pytest.raises(ConfigError, match=f"it is paused; go on with these options: batchrun resume {on_sqlite.run} -j 3"):
        tune_run(on_sqlite.place, "last", {"workers": "3"}, nothing_said)


@pytest.mark.usefixtures("own_postgres")
def test_more_workers_are_added_only_as_far_as_there_are_connections(clones: Any, pg_url: str, tmp_path: Path) -> None:
    make(pg_url)
    shell = Shell(pg_url.replace("postgres@", "few@"), tmp_path)
    clones.execute("DROP ROLE IF EXISTS few")
    clones.execute("CREATE ROLE few LOGIN CONNECTION LIMIT 6")
    with engine_for(pg_url).begin() as connection:
        connection.execute(text("GRANT ALL ON SCHEMA public TO few"))
        connection.execute(text("GRANT ALL ON effects TO few"))

    def tune() -> str:
        told = tune_run(Place(pg_url, tmp_path), "last", {"workers": "9"}, nothing_said).text
        cancel_run(Place(pg_url, tmp_path), "last", nothing_said)
        return told

    with shell.second(tune) as said:
        shell.start(workers=2)
    assert said[0] == f"Run {shell.run} of controlled: 4 workers, as PostgreSQL has no connections for 9."
    assert any(line.startswith("4 instead of 9 workers, because PostgreSQL has no more free connections:") for line in shell.said)
    with engine_for(pg_url).begin() as connection:
        connection.execute(text("DROP OWNED BY few"))
    clones.execute("DROP ROLE few")


# ------------------------------------------------------------------------------------- rate, window, max_runtime
def moment(item: int) -> float:
    return time.monotonic()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_rate_is_kept_over_all_workers_and_steadily(workers: int) -> None:
    began = time.monotonic()
    report = run_parallel(moment, range(60), workers=workers, rate="100/s", results=True, start_method="fork", progress=False)
    assert report.status is RunStatus.DONE
    moments = sorted(report.results or [])
    burst = 20
    for place, when in enumerate(moments):
        assert place <= (when - began) * 100 + burst + 1


ENOUGH = StopRequest()


def until_enough(session: Session, item: int) -> None:
    effect(session, item)
    if item in (3, 40):
        ENOUGH.request("enough")


def test_a_chunk_that_was_cut_at_full_speed_is_handed_out_in_pieces_under_a_rate(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.chunks.ChunkSizer.size", lambda self, remaining: 100)
    monkeypatch.setattr(f"{__name__}.ENOUGH", StopRequest())
    assert shell.start(150, task=until_enough, workers=0, stop=ENOUGH).status is RunStatus.INTERRUPTED
    assert len(effects(shell.url)) == 4
    monkeypatch.setattr(f"{__name__}.ENOUGH", StopRequest())
    again = shell.resume(150, task=until_enough, rate="50/s", stop=ENOUGH)
    assert again.status is RunStatus.INTERRUPTED
    assert 40 - 3 <= len(effects(shell.url)) - 4 <= 50 * again.elapsed + 11
    assert shell.resume(150, task=quickly).status is RunStatus.DONE
    assert effects(shell.url) == once(range(150))


def closed_now() -> str:
    now = windows.now().astimezone()
    return f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}"


def test_a_run_that_is_started_outside_its_window_pauses_before_its_first_item_and_can_be_resumed(on_sqlite: Shell) -> None:
    closed = closed_now()
    report = on_sqlite.start(6, window=closed)
    assert (report.status, report.planned) == (RunStatus.PAUSED, 0)
    assert re.fullmatch(rf"its window {closed} is closed: it is \d\d:\d\d there, and it opens at {closed[:5]}", report.note)
    assert on_sqlite.resume(6, window=None).status is RunStatus.DONE


def test_an_anonymous_run_ends_as_paused_when_its_longest_time_is_over() -> None:
    report = run_parallel(moment, iter(range(MANY)), workers=0, rate="20/s", max_runtime=0.3, progress=False)
    assert report.status is RunStatus.PAUSED
    assert report.elapsed >= 0.3
    assert report.done <= 20 * report.elapsed + 5


JOBS = '''
"""A job of the tests."""
from sqlalchemy import text
from batchrun import job

@job(workers=0, timezone="Europe/Berlin")
def count(session, item: int) -> None:
    """Count."""
    session.execute(text("INSERT INTO effects VALUES (:item, 1)"), {"item": str(item)})

@count.items
def items(session):
    return range(5)
'''


def test_the_command_line_ends_with_5_outside_the_window_of_the_job_in_its_zone(on_sqlite: Shell, batchrun: CommandLine) -> None:
    folder = on_sqlite.folder
    (folder / "jobs").mkdir()
    (folder / "jobs" / "counting.py").write_text(JOBS)
    there = windows.now().astimezone(zoneinfo.ZoneInfo("Europe/Berlin"))
    closed = f"{there + timedelta(hours=2):%H:%M}-{there + timedelta(hours=3):%H:%M}"
    (folder / "config.toml").write_text(f"[database]\nurl = '{on_sqlite.url}'\n[jobs.count]\nwindow = '{closed}'\n")
    result = batchrun("run", "count", cwd=folder)
    assert result.returncode == 5
    assert f"is paused (its window {closed} Europe/Berlin is closed: it is " in result.stderr
    assert "batchrun resume " in result.stderr
    assert batchrun("pause", "last", cwd=folder).returncode == 0
    done = batchrun("resume", "--window", "none", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert effects(on_sqlite.url) == once(range(5))
    assert "There is nothing to cancel: run " in batchrun("cancel", "last", cwd=folder).stderr


# ------------------------------------------------------------------------------------------------------ throttle
SAYS: dict[str, Any] = {}


def is_quiet(connection: Any) -> Any:
    """The check of these tests: it says what they want it to."""
    connection.execute(text("SELECT 1"))
    return SAYS["answer"]


def test_a_run_is_slowed_and_held_while_a_check_says_so_and_the_reason_is_seen(shell: Shell) -> None:
    shell.throttle = Throttle(check="tests.integration.test_control:is_quiet", every=0.1)
    SAYS["answer"] = True
    before = [0]

    def stands_still() -> bool:
        last, before[0] = before[0], len(effects(shell.url))
        return last == before[0] > 0

    def second() -> Any:
        SAYS["answer"] = "the shop is busy"
        wait_until(lambda: shell.stored("note") == "held: the shop is busy", 30.0)
        wait_until(stands_still, 30.0, every_s=0.3)
        SAYS["answer"] = True
        wait_until(lambda: shell.stored("note") == "", 30.0)
        return cancel_run(shell.place, "last", nothing_said)

    with shell.second(second):
        report = shell.start(workers=2)
    assert shell.said[:3] == ["slowed to 1 worker: the shop is busy", "held: the shop is busy", "at full speed again: 2 workers"]
    assert len(effects(shell.url)) == report.done


def test_a_check_that_fails_is_told_once_and_slows_nothing(on_sqlite: Shell) -> None:
    on_sqlite.throttle = Throttle(check="tests.integration.test_control:is_quiet", every=0.1)
    SAYS["answer"] = 3
    assert on_sqlite.start(3, workers=0).status is RunStatus.DONE
    told = "The database's health cannot be asked. tests.integration.test_control:is_quiet returned int; "
    assert [line for line in on_sqlite.said if line.startswith(told)]


def test_sqlite_can_be_asked_nothing_but_a_check(on_sqlite: Shell) -> None:
    on_sqlite.throttle = Throttle(max_waiting_locks=1)
    with pytest.raises(ConfigError, match=r"\[throttle\]: only PostgreSQL can be asked for its health"):
        on_sqlite.start(3)
    assert not on_sqlite.run


def seen(url: str, throttle: Throttle) -> tuple[tuple[str, ...], tuple[str, ...]]:
    engine = control_engine(spec_of(url), application_name="batchrun-health")
    try:
        found = look(engine, throttle, None)
    finally:
        engine.dispose()
    return found.reasons, found.troubles


def test_waiting_locks_and_active_sessions_are_counted(pg_url: str) -> None:
    engine = engine_for(pg_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE rows (id int)"))
    assert seen(pg_url, Throttle(max_waiting_locks=0, max_active_sessions=1000, max_wal_backlog=1, max_replica_lag=1)) == ((), ())
    with engine.connect() as holder, engine.connect() as waiter:
        holder.execute(text("LOCK TABLE rows"))
        waiter.execute(text("SET LOCAL lock_timeout = '20s'"))
        thread = threading.Thread(target=lambda: waiter.execute(text("LOCK TABLE rows")))
        thread.start()
        reason = wait_until(lambda: seen(pg_url, Throttle(max_waiting_locks=0))[0])
        assert reason == ("sessions waiting for locks 1 > 0",)
        (active,) = seen(pg_url, Throttle(max_active_sessions=0))[0]
        assert active.startswith("active sessions ")
        assert active.endswith(" > 0")
        holder.rollback()
        thread.join(20)
        waiter.rollback()


def test_a_right_that_is_missing_is_told_with_the_grant_that_gives_it(clones: Any, pg_url: str) -> None:
    clones.execute("DROP ROLE IF EXISTS plain")
    clones.execute("CREATE ROLE plain LOGIN")
    try:
        reasons, troubles = seen(
            pg_url.replace("postgres@", "plain@"), Throttle(max_active_sessions=1000, max_wal_backlog=1, max_waiting_locks=1000)
        )
    finally:
        clones.execute("DROP ROLE plain")
    assert reasons == ()
    assert troubles == (
        "active sessions: role plain may not see it; let it, with: GRANT pg_monitor TO plain",
        "WAL to be archived: role plain may not see it; let it, with: GRANT pg_monitor TO plain",
    )


def test_a_replica_that_lags_behind_is_seen(own_postgres: Server, pg_url: str) -> None:
    throttle = Throttle(max_replica_lag=0.2)
    with Standby(own_postgres) as standby:
        assert wait_until(lambda: seen(pg_url, throttle) == ((), ()))
        with engine_for(standby.url()).connect() as connection:
            connection.execute(text("SELECT pg_wal_replay_pause()"))
            connection.rollback()
            plain = connection.execution_options(isolation_level="AUTOCOMMIT")
            plain.execute(text("ALTER SYSTEM SET wal_receiver_status_interval = '1s'"))
            plain.execute(text("SELECT pg_reload_conf()"))
        with engine_for(pg_url).begin() as connection:
            connection.execute(text("CREATE TABLE moved (id int)"))
        (reason,) = wait_until(lambda: seen(pg_url, throttle)[0], 30.0)
        assert reason.startswith("replica lag ")
        assert reason.endswith(" s > 0.2 s")
