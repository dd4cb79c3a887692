"""run_parallel and iter_parallel do what the design says of them, sentence by sentence."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from batchrun import BatchrunError, Context, Outcome, Report, Retry, Skip, iter_parallel, job, keyset, run_parallel
from batchrun.errors import AlreadyRunning, ConfigError, DatabaseError, ItemsFailed, JobError, RunChanged
from tests.support.databases import engine_for
from tests.support.effects import effect, effects, make, once, rows, scalar
from tests.support.waiting import wait_until


def adds_up(report: Report) -> bool:
    """The law of the counts: they add up, and nothing is pending."""
    settled = report.done + report.failed + report.skipped + report.quarantined + report.unknown
    return report.planned == settled + report.pending and report.pending == 0


def outcome_of(report: Report, item: Any) -> Outcome:
    return next(outcome for outcome in report.failures if outcome.item == item)


def is_alive(pid: int) -> bool:
    """A zombie counts as dead: nobody has looked at it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------------ the report


def test_a_clean_run_reports_done_and_each_effect_is_there_once(any_url: str) -> None:
    make(any_url)
    report = run_parallel(effect, range(300), any_url, workers=2)
    assert effects(any_url) == once(range(300))
    assert report.status == "done"
    assert report.ok
    assert report.raise_for_failures() is report
    assert (report.planned, report.done, report.retries, report.failures, report.results) == (300, 300, 0, (), None)
    assert adds_up(report)
    assert report.elapsed > 0
    assert report.run.isalnum()
    assert not report.run.isdigit()
    assert report.name is None
    assert report.guarantee == "at-least-once"


def test_the_counts_add_up_whatever_becomes_of_the_items(database_url: str) -> None:
    make(database_url)

    def task(session: Session, item: int) -> None:
        effect(session, item)
        if item % 10 == 3:
            raise ValueError(f"bad {item}")
        if item % 10 == 7:
            raise Skip("not wanted")
        if item == 55:
            os._exit(1)

    report = run_parallel(task, range(100), database_url, workers=2, name="mixed")
    assert (report.planned, report.done, report.failed, report.skipped, report.quarantined) == (100, 79, 10, 10, 1)
    assert adds_up(report)
    assert report.status == "failed"
    assert not report.ok
    assert report.guarantee == "exactly-once"
    assert effects(database_url) == once(n for n in range(100) if n % 10 not in (3, 7) and n != 55)
    assert {outcome.item for outcome in report.failures} == {55, *range(3, 100, 10)}
    assert outcome_of(report, 55).status == "quarantined"
    with pytest.raises(ItemsFailed, match=r"11 of 100 items are not done"):
        report.raise_for_failures()


def test_failures_holds_the_first_thousand() -> None:
    def task(item: int) -> None:
        raise ValueError(item)

    report = run_parallel(task, range(1500), workers=1)
    assert (report.failed, len(report.failures)) == (1500, 1000)


def test_an_error_is_plain_data_with_sqlstate_and_traceback(pg_url: str) -> None:
    def task(session: Session, item: int) -> None:
        session.execute(text("SELECT 1 / 0"))

    (failure,) = run_parallel(task, [7], pg_url, workers=1).failures
    assert (failure.item, failure.status, failure.value, failure.attempts) == (7, "failed", None, 1)
    assert failure.error is not None
    assert failure.error.type.endswith("DataError")
    assert "division by zero" in failure.error.message
    assert failure.error.sqlstate == "22012"
    assert "SELECT 1 / 0" in failure.error.traceback


def test_an_empty_source_is_a_run_of_no_items(database_url: str) -> None:
    for name in (None, "empty"):
        report = run_parallel(effect, [], database_url, workers=2, name=name)
        assert (report.status, report.planned, report.done, report.ok) == ("done", 0, 0, True)


# ------------------------------------------------------------------------------------------------------ databases


def test_the_database_may_be_a_url_an_engine_or_a_factory(database_url: str) -> None:
    make(database_url)
    engine = engine_for(database_url)
    url = engine.url

    def factory() -> Any:
        return create_engine(url)

    for item, database in enumerate((database_url, url, engine, factory)):
        assert run_parallel(effect, [item], database, workers=1).ok
    assert effects(database_url) == once(range(4))


def test_a_factory_is_called_in_the_child(sqlite_url: str) -> None:
    make(sqlite_url)
    parent = os.getpid()

    def factory() -> Any:
        made = create_engine(sqlite_url)
        made.dialect.maker = os.getpid()  # type: ignore[attr-defined]
        return made

    def task(session: Session, item: int) -> int:
        return int(session.get_bind().dialect.maker)  # type: ignore[attr-defined]

    values = {outcome.value for outcome in iter_parallel(task, range(10), factory, workers=1)}
    assert len(values) == 1
    assert parent not in values


def test_without_a_database_the_task_gets_the_item_alone() -> None:
    report = run_parallel(lambda item: item * 2, range(100), workers=2, results=True)
    assert report.results == [n * 2 for n in range(100)]
    assert report.guarantee == "at-least-once"


def test_an_anonymous_run_makes_no_tables(database_url: str) -> None:
    make(database_url)
    run_parallel(effect, range(3), database_url, workers=1)
    tables = "sqlite_master" if database_url.startswith("sqlite") else "pg_tables"
    column = "name" if database_url.startswith("sqlite") else "tablename"
    assert scalar(database_url, f"SELECT count(*) FROM {tables} WHERE {column} LIKE 'batchrun%'") == 0


# ------------------------------------------------------------------------------------------------------ results


def test_results_come_in_the_items_order_with_none_where_not_done(database_url: str) -> None:
    def task(session: Session, item: int, ctx: Context) -> str:
        if item % 50 == 49:
            raise ValueError(item)
        if item % 50 == 48:
            raise Skip
        if item % 50 == 47 and ctx.attempt == 1:
            raise Retry(after=0)
        time.sleep(item % 3 / 1000)  # work
        return f"item {item}"

    report = run_parallel(task, range(200), database_url, workers=2, results=True)
    assert report.results == [None if n % 50 in (48, 49) else f"item {n}" for n in range(200)]


def test_a_batched_task_may_return_a_value_for_each_item(sqlite_url: str) -> None:
    def task(session: Session, items: list[int]) -> list[int]:
        return [item * item for item in items]

    report = run_parallel(task, range(500), sqlite_url, workers=2, batched=True, results=True)
    assert report.results == [n * n for n in range(500)]


def test_results_are_refused_with_a_name(sqlite_url: str) -> None:
    with pytest.raises(ConfigError, match=r"results=True cannot be combined with name="):
        run_parallel(effect, range(3), sqlite_url, results=True, name="named")


# ------------------------------------------------------------------------------------------------------ iter_parallel


def test_outcomes_say_what_became_of_each_item(database_url: str) -> None:
    def task(session: Session, item: int, ctx: Context) -> int:
        if item == 1:
            raise ValueError("one")
        if item == 2:
            raise Skip("two")
        if item == 3 and ctx.attempt < 3:
            raise Retry("three", after=0)
        return item + 100

    found = {outcome.item: outcome for outcome in iter_parallel(task, range(5), database_url, workers=2)}
    assert {item: outcome.status.value for item, outcome in found.items()} == {
        0: "done", 1: "failed", 2: "skipped", 3: "done", 4: "done",
    }  # fmt: skip
    assert {item: outcome.value for item, outcome in found.items()} == {0: 100, 1: None, 2: None, 3: 103, 4: 104}
    assert [found[item].attempts for item in range(5)] == [1, 1, 1, 3, 1]
    assert found[0].error is None
    assert found[1].error is not None
    assert (found[1].error.type, found[1].error.message) == ("ValueError", "one")
    assert found[2].error is not None
    assert found[2].error.message == "two"


def test_a_bad_call_is_refused_before_the_first_outcome_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="workers"):
        iter_parallel(lambda item: item, range(3), workers=-1)
    with pytest.raises(JobError, match="cannot be called"):
        iter_parallel(lambda one, two, three: None, range(3))


class Endless:
    """0, 1, 2 ... and how many of them were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count():
            self.taken += 1
            yield number


def test_a_stalled_consumer_holds_up_the_source() -> None:
    """Control: a pool's own imap swallows the whole source while its consumer has taken one."""
    source = Endless()
    stream = iter_parallel(lambda item: item, source, workers=2)
    for _ in range(20):
        next(stream)
    before = source.taken
    assert before < 20 + 2 * 2 * 10_000  # two orders at each of two workers
    pause(0.3)
    assert source.taken == before
    stream.close()  # type: ignore[attr-defined]

    eager = Endless()
    with ThreadPool(2) as pool:
        swallowed = pool.imap(lambda item: item, itertools.islice(iter(eager), 100_000))
        assert next(swallowed) == 0
        assert wait_until(lambda: eager.taken == 100_000, what="the pool takes everything")


def pause(seconds: float) -> None:
    """Give what must not happen the time to happen."""
    deadline = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > deadline, seconds + 5)


@pytest.mark.parametrize("name", [None, "closed"])
def test_closing_the_iterator_interrupts_the_run_and_leaves_no_process(database_url: str, name: str | None) -> None:
    make(database_url)

    def task(session: Session, item: int) -> int:
        effect(session, item)
        time.sleep(0.002)  # work
        return os.getpid()

    stream = iter_parallel(task, range(1000), database_url, workers=2, name=name)
    pids = {next(stream).value for _ in range(40)}
    assert pids
    assert os.getpid() not in pids
    stream.close()  # type: ignore[attr-defined]
    assert not [pid for pid in pids if is_alive(pid)]
    done = effects(database_url)
    assert 40 <= len(done) < 1000
    assert set(done.values()) == {1}
    if name:
        assert scalar(database_url, "SELECT status FROM batchrun_run") == "interrupted"


def test_an_iterator_that_was_never_begun_starts_nothing(sqlite_url: str) -> None:
    stream = iter_parallel(effect, range(3), sqlite_url, workers=2, name="never")
    stream.close()  # type: ignore[attr-defined]
    assert not Path(sqlite_url.removeprefix("sqlite:///")).exists()


# ------------------------------------------------------------------------------------------------------ named runs


def test_the_same_call_again_continues_an_interrupted_run(any_url: str) -> None:
    make(any_url)

    def task(session: Session, item: int) -> None:
        effect(session, item)
        time.sleep(0.001)  # work

    stream = iter_parallel(task, range(400), any_url, workers=2, name="backfill")
    for _ in range(30):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(effects(any_url)) < 400
    first = scalar(any_url, "SELECT id FROM batchrun_run")
    report = run_parallel(task, range(400), any_url, workers=2, name="backfill")
    assert (report.run, report.name) == (first, "backfill")
    assert (report.status, report.planned, report.done) == ("done", 400, 400)
    assert effects(any_url) == once(range(400))


def test_a_finished_run_returns_its_report_at_once_without_running_anything(database_url: str) -> None:
    make(database_url)

    def task(session: Session, item: int) -> None:
        effect(session, item)
        if item == 3:
            raise ValueError("three")

    first = run_parallel(task, range(10), database_url, workers=1, name="done")
    again = run_parallel(task, range(10), database_url, workers=1, name="done")
    assert effects(database_url) == once(n for n in range(10) if n != 3)
    assert (again.run, again.status, again.counts) == (first.run, first.status, first.counts)
    assert again.guarantee == first.guarantee == "exactly-once"
    assert [(one.item, one.status, one.error.message) for one in again.failures if one.error] == [(3, "failed", "three")]
    assert list(iter_parallel(task, range(10), database_url, workers=1, name="done")) == []
    assert first.elapsed > again.elapsed == 0.0


def test_a_named_run_needs_a_database_to_be_recorded_in(sqlite_url: str) -> None:
    with pytest.raises(ConfigError, match="recorded in a database"):
        run_parallel(lambda item: item, range(3), name="nowhere")
    assert run_parallel(lambda item: item, range(3), ledger=sqlite_url, name="here", workers=1).done == 3


@pytest.mark.parametrize("given", ["", "x" * 201, 7, b"x"])
def test_a_name_is_a_text_of_1_to_200_characters(sqlite_url: str, given: Any) -> None:
    with pytest.raises(ConfigError, match=r"name: .* is not a text of 1 to 200 characters"):
        run_parallel(effect, range(3), sqlite_url, name=given)


def test_a_changed_input_is_refused_and_named_and_accept_changes_goes_on(database_url: str) -> None:
    make(database_url)
    stopped_after(database_url, "input", list(range(50)), 10)
    with pytest.raises(RunChanged, match=r"items was 'list of 50 items', is 'list of 51 items'"):
        run_parallel(slow_effect, list(range(51)), database_url, workers=1, name="input")
    assert len(effects(database_url)) < 50
    report = run_parallel(slow_effect, list(range(51)), database_url, workers=1, name="input", accept_changes=True)
    assert report.done == 51
    assert effects(database_url) == once(range(51))


def test_items_that_are_others_than_before_are_refused_though_there_are_as_many(sqlite_url: str) -> None:
    make(sqlite_url)
    stopped_after(sqlite_url, "others", list(range(50)), 10)
    with pytest.raises(RunChanged, match="are not what they were"):
        run_parallel(slow_effect, list(range(1, 51)), sqlite_url, workers=1, name="others")


def test_a_changed_query_is_refused_and_named(database_url: str) -> None:
    from sqlalchemy import column, select, table

    make(database_url)
    numbers = table("numbers", column("n"))
    with engine_for(database_url).begin() as connection:
        connection.execute(text("CREATE TABLE numbers (n INTEGER PRIMARY KEY)"))
        connection.execute(text("INSERT INTO numbers VALUES " + ", ".join(f"({n})" for n in range(50))))
    stopped_after(database_url, "query", keyset(select(numbers.c.n)), 10)
    with pytest.raises(RunChanged, match="query was"):
        run_parallel(slow_effect, keyset(select(numbers.c.n).where(numbers.c.n > 5)), database_url, workers=1, name="query")
    assert run_parallel(slow_effect, keyset(select(numbers.c.n)), database_url, workers=1, name="query").done == 50
    assert effects(database_url) == once(range(50))


def test_changed_code_is_refused_and_named(database_url: str) -> None:
    make(database_url)
    stopped_after(database_url, "code", range(50), 10)

    def slow_effect(session: Session, item: int) -> None:
        effect(session, item)
        time.sleep(0.003)  # work

    with pytest.raises(RunChanged, match=r"the code of the task"):
        run_parallel(slow_effect, range(50), database_url, workers=1, name="code")
    assert run_parallel(slow_effect, range(50), database_url, workers=1, name="code", accept_changes=True).done == 50
    assert effects(database_url) == once(range(50))


def slow_effect(session: Session, item: Any) -> None:
    effect(session, item)
    time.sleep(0.002)  # work


def stopped_after(url: str, name: str, items: Any, outcomes: int) -> None:
    """Begin a named run and interrupt it."""
    stream = iter_parallel(slow_effect, items, url, workers=1, name=name)
    for _ in range(outcomes):
        next(stream)
    stream.close()  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------ sources


def test_a_source_that_raises_midway_settles_what_came_before_and_is_resumable(database_url: str) -> None:
    make(database_url)
    broken = [True]

    def numbers() -> Iterator[int]:
        for n in range(60):
            if n == 40 and broken[0]:
                raise OSError("the file share is away")
            yield n

    with pytest.raises(JobError, match=r"raised OSError: the file share is away\. The 40 items before it") as caught:
        run_parallel(slow_effect, numbers(), database_url, workers=2, name="broken")
    assert isinstance(caught.value.__cause__, OSError)
    assert effects(database_url) <= once(range(40))
    assert scalar(database_url, "SELECT status FROM batchrun_run") == "interrupted"
    broken[0] = False
    report = run_parallel(slow_effect, numbers(), database_url, workers=2, name="broken")
    assert (report.status, report.done) == ("done", 60)
    assert effects(database_url) == once(range(60))


def test_a_generator_is_closed_when_the_iterator_is() -> None:
    closed = []

    def numbers() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    stream = iter_parallel(lambda item: item, numbers(), workers=1)
    assert next(stream).status == "done"
    stream.close()  # type: ignore[attr-defined]
    assert closed == [True]


@pytest.mark.parametrize(
    ("items", "advice"),
    [("abc", r"lines\(path\)"), ({"a": 1}, "items"), (7, "cannot be iterated"), (print, "call it")],
)
def test_what_is_no_list_of_items_is_refused_with_advice(items: Any, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        run_parallel(lambda item: item, items, workers=1)


# ------------------------------------------------------------------------------------------------------ steering


def test_skip_leaves_the_item_out_with_its_work(database_url: str) -> None:
    make(database_url)

    def task(session: Session, item: int) -> None:
        effect(session, item)
        if item % 2:
            raise Skip("odd")

    report = run_parallel(task, range(20), database_url, workers=1, name="skips")
    assert (report.status, report.done, report.skipped, report.failures) == ("done", 10, 10, ())
    assert effects(database_url) == once(range(0, 20, 2))


@pytest.mark.parametrize("retries", [0, 2])
def test_n_retries_are_n_plus_1_attempts(database_url: str, tmp_path: Path, retries: int) -> None:
    log = tmp_path / "attempts"

    def task(session: Session, item: int, ctx: Context) -> None:
        with log.open("a") as opened:
            opened.write(f"{ctx.attempt}\n")
        effect(session, item)
        raise Retry("not yet", after=0)

    make(database_url)
    report = run_parallel(task, [1], database_url, workers=1, retries=retries, name="retries")
    assert log.read_text().split() == [str(n) for n in range(1, retries + 2)]
    assert (report.failed, report.retries) == (1, retries)
    (failure,) = report.failures
    assert failure.error is not None
    assert (failure.attempts, failure.error.type, failure.error.message) == (retries + 1, "Retry", "not yet")
    assert not effects(database_url)


def test_retry_after_waits_so_long_and_holds_no_worker(database_url: str, tmp_path: Path) -> None:
    make(database_url)
    raised = tmp_path / "raised"

    def task(session: Session, item: int, ctx: Context) -> float:
        effect(session, item, ctx.attempt)
        if item == 0 and ctx.attempt == 1:
            raised.write_text(repr(time.monotonic()))
            raise Retry(after=0.8)
        return time.monotonic()

    ended = {one.item: one.value for one in iter_parallel(task, range(12), database_url, workers=1)}
    again = ended.pop(0)
    assert again - float(raised.read_text()) >= 0.8
    assert max(ended.values()) < again
    assert sorted(rows(database_url))[:2] == [("0", 2), ("1", 1)]


class Flaky(Exception):
    """An error of the tests' own."""


@pytest.mark.parametrize(
    ("raised", "retry_on", "attempts"),
    [
        (ConnectionError, (), 3), (ConnectionResetError, (), 3), (TimeoutError, (), 3),
        (ValueError, (), 1), (Flaky, (), 1), (Flaky, (Flaky,), 3), (Flaky, (Exception,), 3),
    ],
)  # fmt: skip
@pytest.mark.parametrize("workers", [0, 1])
def test_only_errors_that_may_pass_are_tried_again(
    raised: type[Exception], retry_on: tuple[type[Exception], ...], attempts: int, workers: int
) -> None:
    def task(item: int) -> None:
        raise raised("again")

    (failure,) = run_parallel(task, [1], workers=workers, retries=2, retry_on=retry_on).failures
    assert failure.attempts == attempts


def test_more_than_max_failures_halts(database_url: str) -> None:
    def task(session: Session, item: int) -> None:
        if item < 3:
            raise ValueError(item)
        time.sleep(0.005)  # work

    for limit, halts in ((2, True), (3, False)):
        report = run_parallel(task, range(200), database_url, workers=1, max_failures=limit, name=f"at most {limit}")
        assert report.status == ("halted" if halts else "failed")
        assert report.failed == 3
        assert (report.done < 197) is halts
        assert not report.ok


def test_a_percentage_of_failures_counts_from_the_100th_item_on() -> None:
    def early(item: int) -> None:
        if item < 50:
            raise ValueError(item)

    def late(item: int) -> None:
        if item % 3:
            raise ValueError(item)
        time.sleep(0.001)  # work

    assert run_parallel(early, range(1000), workers=0, max_failures="50%").done == 950  # 50 of the first 100 are not more
    halted = run_parallel(late, range(5000), workers=1, max_failures="50%")
    assert halted.status == "halted"
    assert 100 <= halted.done + halted.failed < 4000


# ------------------------------------------------------------------------------------------------------ jobs


@job(retries=0, transaction="item")
def doubled(session: Session, item: int, *, factor: int = 2) -> int:
    """Multiply."""
    effect(session, item * factor)
    if item == 1:
        raise Retry(after=0)
    return item * factor


@doubled.items
def numbers(upto: int = 3) -> range:
    """As many numbers."""
    return range(upto)


def test_a_job_brings_its_options_its_items_and_its_parameters(database_url: str) -> None:
    make(database_url)
    report = run_parallel(doubled, database=database_url, workers=1, params={"upto": "5", "factor": 10})
    assert (report.job, report.planned, report.done, report.failed) == ("doubled", 5, 4, 1)
    assert report.failures[0].attempts == 1  # the decorator's retries=0
    assert effects(database_url) == once([0, 20, 30, 40])
    again = run_parallel(doubled, database=database_url, workers=1, retries=1)
    assert again.failures[0].attempts == 2  # the caller's own word wins
    assert run_parallel(doubled, [4], database_url, workers=1).planned == 1  # other items than its own
    with pytest.raises(ConfigError, match="facto"):
        run_parallel(doubled, database=database_url, workers=1, params={"facto": 1})


def test_there_must_be_items() -> None:
    with pytest.raises(ConfigError, match="no items"):
        run_parallel(effect, database="sqlite:///x.db")


# ------------------------------------------------------------------------------------------------------ errors


def test_errors_are_subclasses_with_an_exit_code() -> None:
    codes = {ConfigError: 2, RunChanged: 2, JobError: 4, DatabaseError: 6, AlreadyRunning: 75}
    assert {kind: kind.exit_code for kind in codes} == codes
    assert all(issubclass(kind, BatchrunError) for kind in codes)


def test_a_database_that_cannot_be_reached_is_a_database_error_in_under_two_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    for url in ("postgresql://nobody@127.0.0.1:1/none", f"sqlite:///{tmp_path}/no/folder/x.db"):
        with pytest.raises(DatabaseError):
            run_parallel(effect, range(3), url, workers=1, name="away")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("workers", "4", "workers: '4' is not a whole number from 0 to 1,024"),
        ("workers", 10**9, "workers"), ("workers", True, "workers"), ("threads", 0, "threads"),
        ("timeout", "10 parsecs", "timeout: '10 parsecs' is no duration"), ("timeout", 0, "timeout"), ("timeout", -5, "timeout"),
        ("transaction", "items", "transaction"), ("start_method", "clone", "start_method"),
        ("max_failures", "-1", "max_failures"), ("executor", "dask", "executor"), ("retries", -1, "retries"),
    ],
)  # fmt: skip
def test_a_bad_option_is_a_config_error_that_names_it(option: str, value: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        run_parallel(lambda item: item, range(3), **{option: value})


def test_durations_are_seconds_timedeltas_or_texts() -> None:
    from datetime import timedelta

    for timeout in (30, 30.0, "30s", "5m", "2h", timedelta(seconds=30)):
        assert run_parallel(lambda item: item, range(3), workers=0, timeout=timeout, kill_after="1s", grace=timedelta(0)).ok


def test_a_batchrun_error_in_the_source_is_raised_as_it_is(sqlite_url: str, tmp_path: Path) -> None:
    from batchrun import csv_rows

    (tmp_path / "bad.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(ConfigError, match=r"bad\.csv:3"):
        run_parallel(lambda session, item: None, csv_rows(tmp_path / "bad.csv"), sqlite_url, workers=1, name="bad csv")


def test_the_counter_of_this_module_counts() -> None:
    """The oracle itself: what happens twice must show."""
    assert once([1, 1]) == Counter({"1": 2}) != once([1])
