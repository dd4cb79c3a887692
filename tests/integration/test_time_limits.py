"""Time limits: what was running is named, the worker is killed and replaced whatever it does, and deaths say their cause."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from batchrun import Outcome, iter_parallel, run_parallel
from batchrun.errors import BatchrunError, JobError
from batchrun.events import Notice
from batchrun.execution import pool
from tests.support.databases import engine_for
from tests.support.effects import effect, effects, make, once, scalar
from tests.support.waiting import wait_until

TIMEOUT, KILL_AFTER = 0.4, 0.4
HERE = "test_time_limits.py"
ON_LINUX = sys.platform == "linux"


def line_of(function: Callable[..., Any], comment: str) -> int:
    """The line of a function in this file that ends with a comment."""
    lines = Path(__file__).read_text().splitlines()
    first = function.__code__.co_firstlineno
    return next(n for n, line in enumerate(lines[first:], first + 1) if line.endswith(comment))


def failed(outcomes: list[Outcome]) -> Outcome:
    """The one that did not succeed."""
    (found,) = [outcome for outcome in outcomes if outcome.status != "done"]
    return found


def message(outcome: Outcome) -> str:
    assert outcome.error is not None
    return outcome.error.message


# ------------------------------------------------------------------------------------------------- the soft limit


@pytest.fixture(params=["psycopg2", "psycopg3"])
def both_drivers(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("pg_url" if request.param == "psycopg2" else "psycopg_url")
    return url


def sleeping_on_the_server(session: Session, item: int) -> int:
    effect(session, item)
    if item == 1:
        session.execute(text("SELECT pg_sleep(60)"))  # here
    return os.getpid()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_statement_that_was_cancelled_is_named_and_no_backend_goes_on(both_drivers: str, threads: int) -> None:
    make(both_drivers)
    outcomes = list(
        iter_parallel(
            sleeping_on_the_server, range(3), both_drivers, workers=1, threads=threads, timeout=TIMEOUT, kill_after=20,
            start_method="fork", retry_on=(ConnectionError,),
        )
    )  # fmt: skip
    late = failed(outcomes)
    assert late.error is not None
    assert (late.status, late.error.type, late.attempts) == ("failed", "ItemTimeout", 1)
    assert message(late).startswith("The item's time limit of 0.4 s is over; cancelled was: SELECT pg_sleep(60) (")
    assert f"{HERE}:{line_of(sleeping_on_the_server, '# here')} in sleeping_on_the_server" in message(late)
    assert len({one.value for one in outcomes if one.status == "done"}) == 1, "the worker was not killed"
    assert (
        scalar(both_drivers, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND state = 'active'") == 0
    )
    assert effects(both_drivers) == once([0, 2])


def busy(session: Session, item: int) -> None:
    until = time.monotonic() + 30
    while item == 1 and time.monotonic() < until:
        len(str(item))  # here


@pytest.mark.parametrize("workers", [0, 1])
def test_a_line_of_the_task_is_named_where_no_statement_runs(sqlite_url: str, workers: int) -> None:
    late = failed(list(iter_parallel(busy, range(2), sqlite_url, workers=workers, timeout=0.2, start_method="fork")))
    assert "time limit of 0.2 s is over; it was at " in message(late)
    assert f"{HERE}:" in message(late)
    assert " in busy" in message(late)


def late_but_deaf(item: int) -> None:
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        try:
            time.sleep(0.5)  # work
        except BatchrunError:
            continue


def test_a_task_that_swallows_its_time_out_is_told_so() -> None:
    (late,) = iter_parallel(late_but_deaf, [1], workers=0, timeout=0.2)
    assert message(late) == "The item's time limit of 0.2 s is over; the task ended only after it."


def settings(session: Session, item: int) -> list[str]:
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    return [str(session.scalar(text(f"SHOW {name}"))) for name in names]


def test_the_limits_of_the_server_follow_from_timeout_and_end_with_the_transaction(both_drivers: str) -> None:
    (one,) = iter_parallel(settings, [1], both_drivers, workers=0, timeout=20, kill_after=5)
    assert one.value == ["20s", "18s", "85s"]
    (one,) = iter_parallel(settings, [1], both_drivers, workers=0)
    assert one.value == ["0", "0", "0"]


# ---------------------------------------------------------------------------------------------------------- locks


def change(session: Session, item: int) -> None:
    session.execute(text("UPDATE effects SET attempt = attempt + 1 WHERE item = '1'"))


def change_later(session: Session, item: int) -> None:
    time.sleep(TIMEOUT / 2)  # work
    change(session, item)


def lock_the_table(session: Session, item: int) -> None:
    session.execute(text("LOCK TABLE effects IN EXCLUSIVE MODE"))


class Base(DeclarativeBase):
    """Mapped classes."""


class Effect(Base):
    """The table of tests.support.effects."""

    __tablename__ = "effects"
    item: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int]


def leave_it_to_the_flush(session: Session, item: int) -> None:
    found = session.get_one(Effect, "1")
    found.attempt += 1


@pytest.mark.parametrize("task", [change, change_later, lock_the_table, leave_it_to_the_flush])
def test_an_item_that_waits_for_a_lock_for_its_whole_limit_is_an_item_timeout(
    both_drivers: str, task: Callable[[Session, int], None]
) -> None:
    make(both_drivers)
    with engine_for(both_drivers).connect() as other:
        other.execute(text("INSERT INTO effects VALUES ('1', 1)"))
        other.commit()
        other.execute(text("UPDATE effects SET attempt = 7"))
        (late,) = iter_parallel(
            task, [1], both_drivers, workers=1, timeout=TIMEOUT, kill_after=20, start_method="fork", retries=3
        )
    assert late.error is not None
    assert (late.status, late.error.type, late.attempts) == ("failed", "ItemTimeout", 1)
    assert "time limit of 0.4 s is over: it waited for a lock, in: " in message(late)
    assert ("LOCK TABLE effects" if task is lock_the_table else "UPDATE effects SET attempt") in message(late)


def impatient(session: Session, item: int) -> None:
    session.execute(text("SET LOCAL lock_timeout = 30"))
    change(session, item)


def test_control_a_lock_timeout_of_the_tasks_own_may_pass_and_is_tried_again(pg_url: str) -> None:
    make(pg_url)
    with engine_for(pg_url).connect() as other:
        other.execute(text("INSERT INTO effects VALUES ('1', 1)"))
        other.commit()
        other.execute(text("UPDATE effects SET attempt = 7"))
        (late,) = iter_parallel(impatient, [1], pg_url, workers=0, timeout=20, retries=1)
    assert late.error is not None
    assert (late.error.sqlstate, late.attempts) == ("55P03", 2)


# ------------------------------------------------------------------------------------------------- the hard limit


def log(item: Any, folder: str) -> None:
    with Path(folder, "log").open("a") as opened:
        opened.write(f"{item} {os.getpid()} {time.monotonic()}\n")


def logged(folder: Path) -> list[tuple[str, int, float]]:
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    return [(item, int(pid), float(at)) for item, pid, at in lines]


def deadlocked() -> None:
    """A mutex taken twice: a call into C that holds the interpreter's lock and never comes back, without a busy loop."""
    mutex, c = ctypes.create_string_buffer(64), ctypes.PyDLL(None)
    c.pthread_mutex_lock(mutex)
    c.pthread_mutex_lock(mutex)  # stuck


def deaf() -> None:
    """Swallows whatever reaches it, like a bare except."""
    while True:
        try:
            time.sleep(60)  # work
        except BaseException:
            continue


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


HANGS: dict[str, Callable[[], None]] = {"deadlocked": deadlocked, "deaf": deaf, "stopped": stopped}
SAID = {
    "deadlocked": f"{HERE}:{line_of(deadlocked, '# stuck')} in deadlocked",
    "deaf": f"{HERE}:{line_of(deaf, '# work')} in deaf",
    "stopped": "it was stopped (SIGSTOP)",
}
MODES: dict[str, dict[str, Any]] = {
    "item": {},
    "chunk": {"transaction": "chunk"},
    "batched": {"batched": True},
    "read_only": {"read_only": True},
    "threads": {"threads": 2},
    "none": {"transaction": "none"},
}


def hanging(session: Session | None, item: Any, folder: str, kind: str) -> None:
    for one in item if isinstance(item, list) else [item]:
        log(one, folder)
        if one == 2:
            HANGS[kind]()


def hangs_in(mode: str, kind: str, folder: Path) -> Callable[..., None]:
    place = str(folder)
    if mode == "none":
        return lambda item: hanging(None, item, place, kind)
    return lambda session, item: hanging(session, item, place, kind)


@pytest.mark.parametrize(
    ("mode", "kind"), [*((mode, "deadlocked") for mode in MODES), ("item", "deaf"), ("item", "stopped"), ("threads", "deaf")]
)
def test_a_worker_that_does_not_heed_the_limit_is_killed_and_replaced_in_time(
    database_url: str, tmp_path: Path, mode: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[float] = []
    plain = pool.LocalPool._start_one

    def start_one(self: pool.LocalPool) -> None:
        plain(self)
        starts.append(time.monotonic())

    monkeypatch.setattr(pool.LocalPool, "_start_one", start_one)
    report = run_parallel(
        hangs_in(mode, kind, tmp_path), range(5), database_url, name="late", workers=1, timeout=TIMEOUT, kill_after=KILL_AFTER,
        start_method="fork", **MODES[mode],
    )  # fmt: skip
    began = next(at for item, _, at in logged(tmp_path) if item == "2")
    replaced = next(at for at in starts if at > began)
    assert replaced - began < TIMEOUT + KILL_AFTER + 1.0
    (late,) = report.failures
    assert (report.done, late.item, late.status) == (4, 2, "unknown" if mode == "none" else "failed")
    assert late.error is not None
    assert late.error.type == "ItemTimeout"
    assert "time limit of 0.4 s is over and its worker had to be killed; it was" in message(late)
    assert not ON_LINUX or SAID[kind] in message(late)


def fast_beside_a_slow_one(item: int) -> int:
    if item == 0:
        deaf()
    time.sleep(0.2)  # work
    return item


def test_with_threads_the_frame_is_the_late_threads_and_the_others_are_not_billed(notices: list[Notice]) -> None:
    outcomes = list(
        iter_parallel(
            fast_beside_a_slow_one, range(8), workers=1, threads=3, timeout=0.6, kill_after=0.3, start_method="fork"
        )
    )  # fmt: skip
    late = failed(outcomes)
    assert late.item == 0
    assert not ON_LINUX or SAID["deaf"] in message(late)
    assert not [notice for notice in notices if "tried again alone" in notice.text]


@pytest.mark.parametrize("kill_after", [0, 0.02])
def test_a_kill_without_delay_asks_first_all_the_same(tmp_path: Path, kill_after: float) -> None:
    (late,) = iter_parallel(
        hangs_in("none", "deadlocked", tmp_path), [2], workers=1, timeout=0.3, kill_after=kill_after, start_method="fork"
    )
    assert not ON_LINUX or SAID["deadlocked"] in message(late)


def test_a_statement_of_a_killed_worker_ends_on_the_server(pg_url: str, tmp_path: Path) -> None:
    def task(session: Session, item: int) -> None:
        with contextlib.suppress(BaseException):
            session.execute(text("SELECT pg_sleep(61)"))
        deaf()

    run_parallel(task, [1], pg_url, workers=1, timeout=0.3, kill_after=0.3, start_method="fork")
    asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'batchrun:%' AND state <> 'idle'"
    wait_until(lambda: scalar(pg_url, asked) == 0, 2.0)


def stop_itself(item: int) -> int:
    if item == 2:
        stopped()
    return item


def test_control_a_plain_pool_never_notices_a_stopped_worker() -> None:
    with multiprocessing.get_context("fork").Pool(1) as plain:
        answer = plain.map_async(stop_itself, range(4), chunksize=1)
        with pytest.raises(multiprocessing.TimeoutError):
            answer.get(timeout=2.0)
        for child in multiprocessing.active_children():
            child.kill()  # or the pool's own end would wait for it for ever, too


# --------------------------------------------------------------------------------------------------------- deaths


def crash(item: int) -> None:
    if item == 1:
        os.kill(os.getpid(), signal.SIGSEGV)


def exit_or_kill(item: int, folder: str) -> None:
    log(item, folder)
    if len(logged(Path(folder))) < 3:
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_death_names_the_signal_its_cause_and_the_item(notices: list[Notice]) -> None:
    (dead,) = run_parallel(crash, range(3), workers=1, start_method="fork").failures
    assert (dead.item, dead.status) == (1, "quarantined")
    assert message(dead).startswith("Its worker was killed by SIGSEGV (a crash in C code")
    assert "death 3 of this item" in message(dead)
    assert len(notices) == 3
    assert all("was killed by SIGSEGV (a crash in C code" in notice.text for notice in notices)
    assert all("while running item 1 of run" in notice.text for notice in notices)
    assert not any("lower --workers" in notice.text for notice in notices)


def test_deaths_of_several_kinds_are_not_told_as_three_of_the_last(notices: list[Notice], tmp_path: Path) -> None:
    folder = str(tmp_path)
    (dead,) = run_parallel(lambda item: exit_or_kill(item, folder), [1], workers=1, start_method="fork").failures
    assert message(dead) == (
        "Its worker was killed by SIGKILL (often the out-of-memory killer) while running it. "
        "That was death 3 of this item, and the last."
    )
    assert "exited with code 0 (os._exit() or something else ended the process" in notices[0].text
    assert "If it repeats, lower --workers" in notices[2].text


def test_an_idempotent_item_that_kills_its_worker_each_time_ends_as_unknown(sqlite_url: str, tmp_path: Path) -> None:
    from batchrun import job

    folder = str(tmp_path)

    @job(transaction="none", idempotent=True)
    def fatal(item: int) -> None:
        log(item, folder)
        os.kill(os.getpid(), signal.SIGKILL)

    report = run_parallel(fatal, [1], sqlite_url, name="fatal", workers=1, start_method="fork")
    assert (report.unknown, len(logged(tmp_path))) == (1, 3)


# --------------------------------------------------------------------------------------------------- initializers


def raising() -> None:
    raise ValueError("no licence")


def leaving() -> None:
    os._exit(7)


def crashing() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def exiting() -> None:
    sys.exit("no licence")


@pytest.mark.parametrize(
    ("initializer", "told"),
    [
        (raising, "ValueError: no licence"),
        (exiting, "SystemExit: no licence"),
        (leaving, "3 workers in a row exited with code 7 before they were ready, the last in its initializer"),
        (crashing, "3 workers in a row were killed by SIGSEGV before they were ready, the last in its initializer"),
    ],
)
def test_an_initializer_that_fails_is_one_error_of_the_job(initializer: Callable[[], None], told: str) -> None:
    with pytest.raises(JobError) as caught:
        run_parallel(crash, range(100), workers=2, initializer=initializer, start_method="fork")
    assert told in str(caught.value)
    assert caught.value.exit_code == 4


def test_an_initializer_that_exits_inline_does_not_end_the_caller() -> None:
    with pytest.raises(JobError, match="SystemExit: no licence"):
        run_parallel(crash, range(100), workers=0, initializer=exiting)


def test_a_slow_start_is_told_once(notices: list[Notice], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SLOW_START_S", 0.3)
    look = pool.LocalPool._look_at_starts

    def later(local: pool.LocalPool) -> None:
        """On a busy machine a worker may need longer than that to come to its initializer."""
        if all(worker.is_initializing for worker in local._workers.values()):
            look(local)

    monkeypatch.setattr(pool.LocalPool, "_look_at_starts", later)

    def slow() -> None:
        time.sleep(1.0)  # work

    assert run_parallel(lambda item: item, range(3), workers=1, initializer=slow, start_method="fork").ok
    (told,) = notices
    assert "Worker 0 (pid " in told.text
    assert "has been starting for 0.3 s: its initializer has not come to its end" in told.text


# --------------------------------------------------------------------------------------------- what a limit leaves behind
def test_an_inline_run_with_a_limit_leaves_no_thread_in_its_caller() -> None:
    before = set(threading.enumerate())
    assert run_parallel(abs, range(3), workers=0, timeout=60).ok
    assert set(threading.enumerate()) == before


def alarming(item: int) -> int:
    """As a decorator for time-outs may do: item 0 leaves the signal to its default, which ends the process."""
    if item == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return item
    until = time.monotonic() + 30
    while time.monotonic() < until:
        time.sleep(0.01)  # work
    return item


def sleeping_after_an_alarm(item: int) -> None:
    if item < 2:
        alarming(item)
    else:
        time.sleep(30)  # work


def test_a_handler_that_a_task_left_is_not_met_by_the_limit_and_is_replaced() -> None:
    """Item 1's limit finds the handler gone, and must not send the signal; at item 2's it is there and ends the sleep."""
    outcomes = iter_parallel(sleeping_after_an_alarm, range(3), workers=1, timeout=TIMEOUT, kill_after=20, start_method="fork")
    first, *late = sorted(outcomes, key=lambda one: int(one.item))
    assert first.status == "done"
    assert [one.error.type if one.error else "" for one in late] == ["ItemTimeout"] * 2
