"""Dry runs: the tasks run for real, in real workers, and of a checksum over everything not one character changes.

Each claim has its control: the same job, for real, changes what the dry run left alone.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import make_url, select, text
from sqlalchemy.orm import Session

from batchrun import Report, csv_rows
from batchrun.api import Place, resume_job, start_job
from batchrun.database.undoing import UNDONE
from batchrun.errors import ConfigError
from batchrun.events import Event, Notice, Progressed
from batchrun.jobs import Job
from batchrun.options import RunOptions
from batchrun.plans import StopRequest
from batchrun.reporting import jsonout, rehearsal
from batchrun.sources.sampling import sample_of
from tests.support import oracle
from tests.support.databases import engine_for
from tests.support.oracle import Effect
from tests.support.rehearsed import (
    MODES,
    accounts,
    awkward,
    by_row,
    dangling,
    deadly,
    making,
    numbers,
    outside,
    past,
    reading,
    single,
)

ITEMS = range(1, 41)
TABLES = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2"


@pytest.fixture
def pg_url(kept_url: str) -> str:
    return kept_url


@pytest.fixture
def url(database_url: str) -> str:
    return oracle.create(database_url, ITEMS)


def checksum(url: str) -> str:
    """Of everything that is in the database: which tables there are, and each row of each."""
    state = hashlib.sha256()
    if url.startswith("sqlite"):
        connection = sqlite3.connect(str(make_url(url).database))
        for line in connection.iterdump():
            state.update(line.encode())
        connection.close()
        return state.hexdigest()
    server = psycopg2.connect(url, application_name="tests")
    with server.cursor() as cursor:
        cursor.execute(TABLES)
        for schema, table in cursor.fetchall():
            cursor.execute(f'SELECT md5(string_agg(r::text, chr(10) ORDER BY r::text)) FROM "{schema}"."{table}" AS r')
            state.update(repr((schema, table, cursor.fetchone())).encode())
    server.close()
    return state.hexdigest()


def run(task: Callable[..., Any], url: str, items: Callable[..., Any] = accounts, **options: Any) -> Report:
    """A run of a job made of a task; ``dry_run`` and ``sample`` as ``start_job`` has them."""
    given = {name: options.pop(name) for name in ("dry_run", "sample", "observers", "stop") if name in options}
    chosen = RunOptions(**{"workers": 0, "retries": 0, **options})
    job = Job(task.__name__, task, items=items)
    return start_job(job, {}, chosen, Place(url, Path.cwd()), captures_output=False, **given)


@pytest.mark.parametrize("mode", MODES)
def test_a_dry_run_changes_not_one_row_and_the_run_itself_does(mode: str, url: str) -> None:
    task, options = MODES[mode]
    before = checksum(url)
    options = dict(options)
    report = run(task, url, dry_run=True, **options)
    assert (report.status, report.planned, report.done) == ("done", 40, 40)
    assert checksum(url) == before
    assert report.rehearsal is not None
    assert report.rehearsal.latency.items == 40
    run(task, url, **options)
    assert checksum(url) != before


def test_only_reading_is_rehearsed_as_well(url: str) -> None:
    before = checksum(url)
    report = run(reading, url, dry_run=True, read_only=True)
    assert report.done == 40
    assert checksum(url) == before
    assert report.rehearsal is not None
    assert report.rehearsal.commit_s is None


# --------------------------------------------------------------------------------------------------- what goes wrong
def test_outcomes_are_counted_by_class_with_an_example(url: str) -> None:
    before = checksum(url)
    report = run(awkward, url, dry_run=True)
    assert (report.done, report.failed, report.skipped) == (32, 4, 4)
    assert checksum(url) == before
    assert report.rehearsal is not None
    assert {name: one.items for name, one in report.rehearsal.errors.items()} == {"ValueError": 4}
    shown = "\n".join(rehearsal.lines(report.rehearsal, report.counts))
    assert "32  would be done" in shown
    assert "4  would be skipped" in shown
    assert "4  ValueError, such as: Item 3 failed: ValueError: item 3 is bad" in shown


@pytest.mark.parametrize("transaction", ["item", "chunk"])
def test_a_constraint_that_only_commit_checks_is_checked(transaction: str, pg_url: str) -> None:
    url = oracle.create(pg_url, ITEMS)
    for dry_run in (True, False):
        report = run(dangling, url, transaction=transaction, dry_run=dry_run)
        assert [outcome.item for outcome in report.failures] == [7]
        error = report.failures[0].error
        assert error is not None
        assert error.sqlstate == "23503"
        assert report.done == 39


def test_a_task_that_commits_past_its_session_is_told_of_loudly(url: str) -> None:
    report = run(past, url, dry_run=True)
    assert (report.failed, report.done) == (1, 39)
    assert report.rehearsal is not None
    assert report.rehearsal.partial == 1
    first = rehearsal.lines(report.rehearsal, report.counts)[0]
    assert first.startswith("Warning: 1 items ended their transaction past the session")
    assert "COMMITTED, although this was a dry run" in first
    assert applied(url) == [7]


def applied(url: str) -> list[int]:
    engine = engine_for(url)
    with engine.connect() as connection:
        found = list(connection.scalars(select(Effect.item).order_by(Effect.item)))
    engine.dispose()
    return found


def test_a_worker_that_is_killed_leaves_nothing_and_its_item_is_quarantined(url: str) -> None:
    before = checksum(url)
    report = run(deadly, url, dry_run=True, workers=2)
    assert (report.status, report.quarantined, report.done) == ("failed", 1, 39)
    assert checksum(url) == before


def test_without_a_session_a_dry_run_is_refused_and_says_why(url: str) -> None:
    with pytest.raises(ConfigError, match="for real") as caught:
        run(outside, url, dry_run=True, transaction="none")
    assert "they have none" in str(caught.value)


# ---------------------------------------------------------------------------------------------- beside the tasks
def test_what_the_items_function_writes_is_rolled_back_and_said(url: str) -> None:
    before, said = checksum(url), list[str]()
    run(single, url, making, dry_run=True, observers=[lambda event: _note(event, said)])
    assert checksum(url) == before
    assert UNDONE in said
    run(single, url, making)
    assert checksum(url) != before
    engine = engine_for(url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE made_by_items"))
    engine.dispose()


def _note(event: Event, said: list[str]) -> None:
    if isinstance(event, Notice):
        said.append(event.text)


def test_a_dry_run_leaves_no_file(tmp_path: Path) -> None:
    report = run(single, f"sqlite:///{tmp_path / 'none.db'}", numbers, dry_run=True)
    assert report.failed == 3
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_sqlite_database_stays_as_it_is(sqlite_url: str) -> None:
    file = Path(oracle.create(sqlite_url, ITEMS).removeprefix("sqlite:///"))
    before = file.read_bytes()
    run(single, sqlite_url, dry_run=True)
    assert file.read_bytes() == before
    assert [one.name for one in file.parent.iterdir()] == [file.name]
    run(single, sqlite_url)
    assert file.read_bytes() != before


def test_a_run_that_is_going_on_is_told_of(url: str) -> None:
    said: list[str] = []

    def in_between(event: Event) -> None:
        if isinstance(event, Progressed) and event.counts.done >= 5 and not said:
            run(reading, url, dry_run=True, read_only=True, workers=0, observers=[lambda event: _note(event, said)])

    run(reading, url, read_only=True, observers=[in_between])
    assert any("of reading is going on" in one for one in said), said


def test_the_report_is_one_object_without_a_run(url: str) -> None:
    report = run(single, url, dry_run=True, sample=sample_of("20", 3))
    found = jsonout.report_json(report)
    assert found["run"] is None
    assert found["planned"] == 20
    told = found["rehearsal"]
    assert (told["sample"], told["seed"], told["source_items"]) == ("20", 3, 40)
    assert [one["workers"] for one in told["expected"]] == [1, 2, 4, 8]
    assert 2 <= told["statements_per_item"] < 3  # the trial of a session's first statement counts as well
    assert told["item_s"]["p50"] > 0
    assert (told["wal_bytes_per_item"] is None) == url.startswith("sqlite")
    jsonout.dumped(found)


def test_postgresql_counts_the_bytes_of_the_workers_own_sessions(pg_url: str) -> None:
    url = oracle.create(pg_url, range(1, 201))
    told = run(single, url, dry_run=True, workers=1).rehearsal
    assert told is not None
    assert told.wal_bytes is not None
    assert 50 < told.wal_bytes < 20_000


# --------------------------------------------------------------------------------------------- samples, for real
@pytest.mark.parametrize("sample", ["50", "25%"])
def test_a_sampled_run_that_goes_on_does_its_sample_exactly_once(sample: str, database_url: str) -> None:
    url, stop = oracle.create(database_url, range(1, 201)), StopRequest()

    def stopping(event: Event) -> None:
        if isinstance(event, Progressed) and event.counts.done >= 10 and not stop.level:
            stop.request("enough")

    first = run(single, url, sample=sample_of(sample, 5), stop=stop, observers=[stopping])
    assert first.status == "interrupted"
    some = applied(url)
    assert 10 <= len(some) == first.done
    last = resume_job(Job("single", single, items=accounts), first.run, RunOptions(workers=0), Place(url, Path.cwd()))
    assert last.status == "done"
    done = applied(url)
    assert len(done) == len(set(done)) == last.done
    assert set(some) <= set(done)
    dry = run(single, url, sample=sample_of(sample, 5), dry_run=True)
    assert dry.planned == last.planned  # the same seed, the same number
    run(single, oracle.create(url, range(1, 201)), sample=sample_of(sample, 5))
    assert applied(url) == done


def test_a_sample_of_a_file_is_kept_with_the_run(url: str, tmp_path: Path) -> None:
    file = tmp_path / "numbers.csv"
    file.write_text("id\n" + "".join(f"{item}\n" for item in ITEMS))

    def rows(session: Session) -> object:
        return csv_rows(file)

    report = run(by_row, url, rows, sample=sample_of("10", 5))
    assert report.done == 10
    assert len(set(applied(url))) == 10
