"""How items share transactions, workers, threads and time: each mode of run_parallel keeps its promise."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from batchrun import Context, ItemTimeout, Outcome, Retry, Skip, iter_parallel, job, run_parallel
from batchrun.errors import ConfigError, JobError
from tests.support.effects import effect, effects, make, once, rows, scalar
from tests.support.waiting import wait_until

# ------------------------------------------------------------------------------------------------------ time limits


def sleeping(session: Session, item: int) -> None:
    effect(session, item)
    if item == 3:
        time.sleep(60)  # work


def in_a_loop(session: Session, item: int) -> None:
    effect(session, item)
    while item == 3:
        pass


def in_a_statement(session: Session, item: int) -> None:
    effect(session, item)
    if item == 3:
        session.execute(text("SELECT pg_sleep(60)"))


def in_c(session: Session, item: int) -> None:
    """Holds the interpreter's lock, so that no signal and no exception reaches Python."""
    effect(session, item)
    if item == 3:
        ctypes.PyDLL(None).usleep(60_000_000)


def in_a_huge_power(session: Session, item: int) -> None:
    effect(session, item)
    if item == 3:
        assert 3 ** (10**9)


TASKS = {"sleeping": sleeping, "loop": in_a_loop, "statement": in_a_statement, "C": in_c, "power": in_a_huge_power}


@pytest.mark.parametrize(
    ("kind", "threads"), [("sleeping", 1), ("loop", 1), ("loop", 2), ("statement", 1), ("statement", 2), ("C", 1), ("power", 1)]
)
def test_an_item_that_overruns_fails_alone_with_item_timeout(pg_url: str, kind: str, threads: int) -> None:
    make(pg_url)
    began = time.monotonic()
    report = run_parallel(
        TASKS[kind], range(8), pg_url, workers=2, threads=threads, timeout=0.5, kill_after=0.5, name="late"
    )  # fmt: skip
    assert time.monotonic() - began < 15
    assert (report.done, report.failed, report.quarantined) == (7, 1, 0)
    (failure,) = report.failures
    assert (failure.item, failure.attempts) == (3, 1)
    assert failure.error is not None
    assert failure.error.type == "ItemTimeout"
    assert "time limit of 0.5 s" in failure.error.message
    assert effects(pg_url) == once(n for n in range(8) if n != 3)


@pytest.mark.parametrize("kind", ["sleeping", "loop", "C"])
def test_an_overrun_is_rolled_back_on_sqlite_too(sqlite_url: str, kind: str) -> None:
    make(sqlite_url)
    report = run_parallel(TASKS[kind], range(8), sqlite_url, workers=2, timeout=0.5, kill_after=0.5, name="late")
    assert (report.done, report.failed) == (7, 1)
    assert effects(sqlite_url) == once(n for n in range(8) if n != 3)


def test_a_worker_whose_task_heeds_the_limit_is_not_killed() -> None:
    def task(item: int) -> int:
        if item == 1:
            time.sleep(60)  # work
        return os.getpid()

    outcomes = list(iter_parallel(task, range(4), workers=1, timeout=0.3, kill_after=20))
    assert len({one.value for one in outcomes if one.status == "done"}) == 1
    assert [one.item for one in outcomes if one.status == "failed"] == [1]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("retry_on", [(), (ItemTimeout,), (ConnectionError,)])
def test_a_time_out_is_tried_again_only_where_retry_on_names_it(workers: int, retry_on: tuple[type[Exception], ...]) -> None:
    def task(item: int) -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            pass

    (failure,) = run_parallel(task, [1], workers=workers, timeout=0.1, retries=1, retry_on=retry_on).failures
    assert failure.error is not None
    assert failure.error.type == "ItemTimeout"
    assert failure.attempts == (2 if ItemTimeout in retry_on else 1)


def test_time_spent_waiting_for_a_turn_is_not_the_items(sqlite_url: str) -> None:
    """Four workers, one writer at a time: each waits for the others longer than its limit."""
    make(sqlite_url)

    def task(session: Session, item: int) -> None:
        effect(session, item)
        time.sleep(0.4)  # work

    report = run_parallel(task, range(8), sqlite_url, workers=4, timeout=0.9, kill_after=0.1, name="turns")
    assert (report.done, report.failed) == (8, 0)


def test_deadline_says_when_time_is_up() -> None:
    def task(item: int, ctx: Context) -> float | None:
        return ctx.deadline - time.monotonic() if ctx.deadline is not None else None

    assert run_parallel(task, [1], workers=1, results=True).results == [None]
    (left,) = run_parallel(task, [1], workers=1, timeout=30, results=True).results or []
    assert 25 < left <= 30


# ------------------------------------------------------------------------------------------------------ initializer


def written(log: Path) -> Counter[str]:
    return Counter(log.read_text().split()) if log.exists() else Counter()


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (1, 1), (2, 1), (2, 3)])
def test_the_initializer_is_called_once_in_each_worker_and_its_rest_at_the_end(
    tmp_path: Path, workers: int, threads: int
) -> None:
    log = tmp_path / "log"

    def note(what: str) -> None:
        with log.open("a") as opened:
            opened.write(f"{what}:{os.getpid()}\n")

    def initializer() -> Iterator[str]:
        note("begun")
        yield f"state of {os.getpid()}"
        note("ended")

    def task(item: int, ctx: Context) -> tuple[int, str]:
        time.sleep(0.001)  # work
        return os.getpid(), ctx.state

    report = run_parallel(task, range(300), workers=workers, threads=threads, initializer=initializer, results=True)
    assert report.results is not None
    assert {state for _, state in report.results} == {f"state of {pid}" for pid, _ in report.results}
    pids = {pid for pid, _ in report.results}
    assert set(written(log).values()) == {1}
    assert {f"{what}:{pid}" for pid in pids for what in ("begun", "ended")} <= set(written(log))
    assert len(written(log)) == 2 * max(1, workers)


def test_what_an_initializer_returns_is_the_state() -> None:
    def task(item: int, ctx: Context) -> Any:
        return ctx.state["n"] + item

    assert run_parallel(task, range(3), workers=1, initializer=lambda: {"n": 10}, results=True).results == [10, 11, 12]
    assert run_parallel(lambda item, ctx: ctx.state, range(2), workers=1, results=True).results == [None, None]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_initializer_that_raises_is_one_clean_job_error_and_not_a_loop(tmp_path: Path, workers: int) -> None:
    log = tmp_path / "log"

    def initializer() -> None:
        with log.open("a") as opened:
            opened.write("called\n")
        raise ValueError("no licence")

    with pytest.raises(JobError, match="ValueError: no licence"):
        run_parallel(lambda item: item, range(100), workers=workers, initializer=initializer)
    assert written(log)["called"] <= max(1, workers)


def test_an_initializer_that_kills_its_worker_ends_the_run_after_three(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def initializer() -> None:
        with log.open("a") as opened:
            opened.write("called\n")
        os._exit(3)

    with pytest.raises(Exception, match="3 workers in a row exited with code 3 before they were ready"):
        run_parallel(lambda item: item, range(100), workers=1, initializer=initializer)
    assert written(log)["called"] <= 4


# ------------------------------------------------------------------------------------------------------ context


def test_the_context_says_what_is_running(database_url: str) -> None:
    def task(session: Session, item: str, ctx: Context, *, factor: int = 1) -> dict[str, Any]:
        return {
            "run": ctx.run, "job": ctx.job, "item": ctx.item, "key": ctx.key, "attempt": ctx.attempt, "params": dict(ctx.params),
            "logger": isinstance(ctx.logger, logging.Logger), "stop": ctx.should_stop(), "deadline": ctx.deadline,
        }  # fmt: skip

    report = run_parallel(task, ["a", "b"], database_url, workers=1, params={"factor": 2}, results=True)
    first, second = report.results or []
    assert first == {
        "run": report.run, "job": "task", "item": "a", "key": first["key"], "attempt": 1, "params": {"factor": 2},
        "logger": True, "stop": False, "deadline": None,
    }  # fmt: skip
    assert first["key"] != second["key"]


@pytest.mark.parametrize("transaction", ["item", "chunk"])
def test_the_key_is_the_same_for_every_attempt_and_after_a_resume(database_url: str, tmp_path: Path, transaction: str) -> None:
    log = tmp_path / "keys"

    def task(session: Session, item: int, ctx: Context) -> None:
        with log.open("a") as opened:
            opened.write(f"{item} {ctx.key} {ctx.attempt}\n")
        if item % 20 == 7 and ctx.attempt < 3:
            raise Retry(after=0.02)
        time.sleep(0.001)  # work

    calls: dict[str, Any] = {"workers": 2, "name": "keys", "transaction": transaction}
    stream = iter_parallel(task, range(120), database_url, **calls)
    for _ in range(20):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert run_parallel(task, range(120), database_url, **calls).done == 120
    lines = [line.split() for line in log.read_text().splitlines()]
    keys = {(item, key) for item, key, _ in lines}
    assert len(keys) == len({item for item, _ in keys}) == len({key for _, key in keys}) == 120
    assert {attempt for item, _, attempt in lines if item == "7"} == {"1", "2", "3"}


# ------------------------------------------------------------------------------------------------------ no transaction


def test_transaction_none_gives_no_session_but_the_ledger_keeps_count(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def task(item: int, ctx: Context) -> None:
        with log.open("a") as opened:
            opened.write(f"{item}\n")
        if item == 2:
            raise ValueError("two")
        if item == 4:
            raise Skip("four")
        if item == 6 and ctx.attempt == 1:
            raise Retry(after=0)

    report = run_parallel(task, range(20), database_url, workers=2, transaction="none", name="outside")
    assert (report.done, report.failed, report.skipped, report.retries) == (18, 1, 1, 1)
    assert report.guarantee == "at-least-once"
    assert written(log) == once([*range(20), 6])
    with pytest.raises(JobError, match="there is none"):
        run_parallel(effect, range(3), database_url, transaction="none")


@pytest.mark.parametrize("other", [{"batched": True}, {"read_only": True}])
def test_what_needs_a_session_is_refused_without_one(database_url: str, other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs a session"):
        run_parallel(lambda item: item, range(3), database_url, transaction="none", **other)
    with pytest.raises(ConfigError, match="needs a session"):
        run_parallel(lambda item: item, range(3), **other)


@pytest.mark.parametrize("where", [{"database": True}, {"ledger": True}])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_item_that_is_cut_off_outside_a_transaction_is_unknown(
    database_url: str, tmp_path: Path, where: dict[str, bool], threads: int
) -> None:
    log = tmp_path / "log"
    place = dict.fromkeys(where, database_url)

    def task(item: int, ctx: Context) -> None:
        with log.open("a") as opened:
            opened.write(f"{item}\n")
        if item == 9 and ctx.attempt == 1:
            raise Retry(after=0)
        if item in (5, 9, 29):
            time.sleep(0.05)  # work
            os._exit(1)

    options: dict[str, Any] = {"transaction": "none", "name": "cut off", **place}
    outcomes = list(iter_parallel(task, range(30), workers=1, threads=threads, **options))
    report = run_parallel(task, range(30), **options)
    assert Counter(one.item for one in outcomes) == Counter(range(30))
    unknown = {one.item for one in outcomes if one.status == "unknown"}
    assert unknown >= {5, 9, 29}
    assert len(unknown) <= 3 * threads
    assert (report.done, report.unknown, report.pending, report.ok) == (30 - len(unknown), len(unknown), 0, False)
    ran, wanted = written(log), once([*range(30), 9])
    assert ran <= wanted
    missing = {int(item) for item in wanted - ran}
    assert missing <= (unknown if threads > 1 else set())  # cut off by another thread's death, before they had begun


def test_an_idempotent_job_runs_again_what_was_cut_off(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"

    @job(transaction="none", idempotent=True)
    def task(item: int, ctx: Context) -> None:
        with log.open("a") as opened:
            opened.write(f"{item}\n")
        if item in (5, 29) and ctx.attempt == 1:
            os._exit(1)

    report = run_parallel(task, range(30), database_url, workers=1, name="again")
    assert (report.done, report.unknown, report.pending, report.ok) == (30, 0, 0, True)
    assert written(log) == once([*range(30), 5, 29])


# ------------------------------------------------------------------------------------------------------ chunks, batches


@pytest.mark.parametrize("workers", [0, 2])
def test_chunk_mode_shares_transactions_and_gives_each_item_a_session(any_url: str, workers: int) -> None:
    make(any_url)
    counted = "SELECT pg_current_xact_id()::text" if not any_url.startswith("sqlite") else "SELECT count(*) FROM effects"

    def task(session: Session, item: int) -> tuple[str, int]:
        seen = len(session.identity_map), session.info.setdefault("items", 0)
        session.info["items"] += 1
        effect(session, item)
        session.commit()  # deferred: the chunk's is the one that counts
        return str(session.scalar(text(counted))), seen[1]

    outcomes = list(iter_parallel(task, range(300), any_url, workers=workers, transaction="chunk", name="chunks"))
    assert effects(any_url) == once(range(300))
    assert {one.value[1] for one in outcomes} == {0}
    if not any_url.startswith("sqlite"):
        assert len({one.value[0] for one in outcomes}) < 150


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", [{"transaction": "chunk"}, {"batched": True}])
def test_only_the_guilty_item_of_a_chunk_or_list_fails(database_url: str, workers: int, mode: dict[str, Any]) -> None:
    make(database_url)

    def task(session: Session, given: Any) -> None:
        for item in given if isinstance(given, list) else [given]:
            effect(session, item)
            if item in (50, 77, 78, 199):
                session.flush()
                raise ValueError(item)
            if item == 120:
                raise Skip("not this one")

    report = run_parallel(task, range(200), database_url, workers=workers, name="guilty", **mode)
    assert (report.done, report.failed, report.skipped, report.pending) == (195, 4, 1, 0)
    assert {one.item for one in report.failures} == {50, 77, 78, 199}
    assert effects(database_url) == once(n for n in range(200) if n not in (50, 77, 78, 120, 199))


@pytest.mark.parametrize("mode", [{"transaction": "chunk"}, {"batched": True}])
def test_a_death_in_a_chunk_or_list_is_billed_to_the_guilty_item_alone(database_url: str, mode: dict[str, Any]) -> None:
    make(database_url)

    def task(session: Session, given: Any) -> None:
        for item in given if isinstance(given, list) else [given]:
            effect(session, item)
            if item == 77:
                os._exit(1)

    report = run_parallel(task, range(120), database_url, workers=2, name="deadly", **mode)
    assert (report.done, report.quarantined, report.failed) == (119, 1, 0)
    assert effects(database_url) == once(n for n in range(120) if n != 77)


def test_a_batched_task_gets_lists_that_cover_the_items_in_order(sqlite_url: str) -> None:
    make(sqlite_url)

    def task(session: Session, items: list[int]) -> dict[str, list[int]]:
        for item in items:
            effect(session, item)
        return {"items": items}

    outcomes = list(iter_parallel(task, range(500), sqlite_url, workers=1, batched=True))
    assert all(one.item in one.value["items"] for one in outcomes)
    lists = [one.value["items"] for one in outcomes]
    assert all(items == list(range(items[0], items[0] + len(items))) for items in lists)
    assert max(map(len, lists)) > 10
    assert effects(sqlite_url) == once(range(500))


def test_a_batch_that_conflicts_is_tried_again_as_it_is(sqlite_url: str, tmp_path: Path) -> None:
    make(sqlite_url)
    first = tmp_path / "first"

    def task(session: Session, items: list[int]) -> None:
        if len(items) > 4 and not first.exists():
            first.write_text(str(len(items)))
            raise ConnectionError("passing")
        for item in items:
            effect(session, item)

    report = run_parallel(task, range(200), sqlite_url, workers=1, batched=True, name="conflicts")
    assert (report.done, report.failed) == (200, 0)
    assert effects(sqlite_url) == once(range(200))


# ------------------------------------------------------------------------------------------------------ reading


def test_read_only_reads_and_the_database_refuses_writes(any_url: str) -> None:
    make(any_url)

    def task(session: Session, item: int) -> int:
        if item == 5:
            effect(session, item)
        return int(session.scalar(text("SELECT count(*) FROM effects")) or 0) + item

    report = run_parallel(task, range(100), any_url, workers=2, read_only=True, results=True)
    assert report.results == [None if n == 5 else n for n in range(100)]
    assert (report.done, report.failed, report.guarantee) == (99, 1, "at-least-once")
    (failure,) = report.failures
    assert failure.error is not None
    assert "read" in failure.error.message.lower()
    assert not effects(any_url)


def test_read_only_marks_once_a_chunk(any_url: str) -> None:
    """Watched from inside: the marks of items settled so far lag behind by whole chunks, and are all there at the end."""
    make(any_url)

    def task(session: Session, item: int, ctx: Context) -> int:
        if item % 10 == 3:
            raise ValueError(item)
        if item % 10 == 5 and ctx.attempt == 1:
            raise Retry(after=0)
        where = "WHERE run = :r AND size > 3 AND pos BETWEEN 1 AND size - 1"
        return int(session.scalar(text(f"SELECT count(*) FROM batchrun_chunk {where}"), {"r": ctx.run}) or 0)

    outcomes = list(iter_parallel(task, range(200), any_url, workers=1, read_only=True, name="reading"))
    assert Counter(one.status.value for one in outcomes) == {"done": 180, "failed": 20}
    assert {one.value for one in outcomes if one.status == "done"} == {0}  # never between two items of a chunk
    assert scalar(any_url, "SELECT sum(pos) FROM batchrun_chunk") == 200


# ------------------------------------------------------------------------------------------------------ threads


def test_threads_multiply_the_throughput_of_a_task_that_waits(pg_url: str) -> None:
    """1 s of waiting in all by one thread; eight threads need an eighth, and starting up."""
    make(pg_url)

    def task(session: Session, item: int) -> tuple[int, int]:
        effect(session, item)
        session.execute(text("SELECT pg_sleep(0.02)"))
        return os.getpid(), threading.get_ident()

    def took(threads: int) -> float:
        stream = iter_parallel(task, range(200), pg_url, workers=1, threads=threads, name=f"{threads} threads")
        outcomes: list[Outcome] = [next(stream)]
        began = time.monotonic()
        outcomes += stream
        assert len({one.value for one in outcomes}) == threads
        return time.monotonic() - began

    assert took(1) / took(8) > 2.5
    assert effects(pg_url) == Counter({str(n): 2 for n in range(200)})  # two runs


def test_as_many_items_run_at_once_as_workers_have_threads(pg_url: str, tmp_path: Path) -> None:
    """Each of the first waits until all are there: one worker's idle thread, and none would ever go on."""
    make(pg_url)

    def task(session: Session, item: int) -> None:
        effect(session, item)
        (tmp_path / f"{os.getpid()}-{threading.get_ident()}").touch()
        wait_until(lambda: len(list(tmp_path.iterdir())) >= 12, 30.0)

    assert run_parallel(task, range(100), pg_url, workers=3, threads=4, name="at once").done == 100
    assert len(list(tmp_path.iterdir())) == 12
    assert effects(pg_url) == once(range(100))


@pytest.mark.parametrize("mode", [{}, {"transaction": "chunk"}, {"batched": True}])
def test_threads_keep_exactly_once_though_workers_die(database_url: str, mode: dict[str, Any]) -> None:
    make(database_url)

    def task(session: Session, given: Any, ctx: Context) -> None:
        for item in given if isinstance(given, list) else [given]:
            effect(session, item)
            if item == 91:
                os._exit(1)
            if item == 33:
                raise ValueError(item)

    report = run_parallel(task, range(200), database_url, workers=2, threads=3, name="threads", **mode)
    assert (report.done, report.failed, report.quarantined) == (198, 1, 1)
    assert effects(database_url) == once(n for n in range(200) if n not in (33, 91))


# ------------------------------------------------------------------------------------------------------ inline


def inline_and_in_workers(url: str, task: Any, items: Any, **options: Any) -> list[tuple[Any, ...]]:
    """What the same call comes to, inline and in a worker."""
    found = []
    for workers in (0, 1):
        report = run_parallel(task, items, url, workers=workers, name=f"{workers}", retries=1, **options)
        failures = sorted((one.item, one.status, one.attempts, one.error and one.error.type) for one in report.failures)
        found.append((report.status, report.counts, report.guarantee, failures))
    return found


@pytest.mark.parametrize("options", [{}, {"transaction": "chunk"}, {"read_only": True}])
def test_inline_comes_to_the_same_as_workers(database_url: str, options: dict[str, Any]) -> None:
    make(database_url)

    def task(session: Session, item: int, ctx: Context) -> None:
        if not options.get("read_only"):
            effect(session, item)
        match item % 10:
            case 1:
                raise ValueError(item)
            case 2:
                raise Skip
            case 3:
                raise Retry(after=0)
            case 4:
                session.execute(text("SELECT * FROM nowhere"))
            case 5 if ctx.attempt == 1:
                raise ConnectionError
            case 6:
                raise SystemExit(3)
        session.commit()

    inline, worker = inline_and_in_workers(database_url, task, range(60), **options)
    assert inline == worker
    assert inline[1].done == 30
    if not options.get("read_only"):
        assert effects(database_url) == Counter({str(n): 2 for n in range(60) if n % 10 in (0, 5, 7, 8, 9)})


def test_inline_runs_in_this_very_process_and_results_are_in_order(sqlite_url: str) -> None:
    make(sqlite_url)
    seen = []

    def task(session: Session, item: int) -> tuple[int, int]:
        seen.append(item)
        effect(session, item)
        return os.getpid(), item

    report = run_parallel(task, range(50), sqlite_url, workers=0, results=True)
    assert report.results == [(os.getpid(), n) for n in range(50)]
    assert seen == list(range(50))


def test_a_keyboard_interrupt_in_an_inline_task_is_raised_again_and_the_run_resumable(database_url: str) -> None:
    make(database_url)
    broken = [True]

    def task(session: Session, item: int) -> None:
        effect(session, item)
        if item == 7 and broken[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_parallel(task, range(20), database_url, workers=0, name="interrupted")
    assert scalar(database_url, "SELECT status FROM batchrun_run") == "interrupted"
    assert len(rows(database_url)) == 7
    broken[0] = False
    assert run_parallel(task, range(20), database_url, workers=0, name="interrupted").done == 20
    assert effects(database_url) == once(range(20))
