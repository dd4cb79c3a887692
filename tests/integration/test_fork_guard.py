"""fork inside a program with threads: a web server, a notebook. The parent's connections stay its own, and nothing hangs.

Four threads of the parent use one engine the whole time, with pooled and with checked-out connections, and each checks
that every answer is the one to its own question.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import queue
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text

from batchrun import iter_parallel, run_parallel
from batchrun.database.engines import abandon_inherited_engines
from batchrun.execution import processes
from tests.support import scripts
from tests.support.databases import engine_for
from tests.support.effects import effect, effects, make, once
from tests.support.waiting import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")


class Users:
    """Threads of the parent that never stop asking."""

    def __init__(self, engine: Engine, count: int = 4) -> None:
        self.engine = engine
        self.asked = [0] * count
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._use, args=(number,)) for number in range(count)]

    def __enter__(self) -> Users:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: all(self.asked), 30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _use(self, number: int) -> None:
        chance = random.Random(number)
        held = self.engine.connect() if number % 2 else None
        try:
            while not self._stop.is_set():
                self._ask(number, chance.randrange(10**9), held)
        except Exception as error:
            self.wrong.append(repr(error))
        finally:
            if held is not None:
                held.close()

    def _ask(self, number: int, wanted: int, held: Any) -> None:
        with contextlib.nullcontext(held) if held is not None else self.engine.connect() as connection:
            got = connection.execute(text(f"SELECT {wanted}")).scalar()
            connection.rollback()
        self.asked[number] += 1
        if got != wanted:
            self.wrong.append(f"{wanted}: {got}")
        self._stop.wait(0.001)  # leaves the processor to the others


def task(session: Any, item: int) -> int:
    found: int = session.execute(text(f"SELECT {item} + 1000")).scalar()
    return found


@pytest.fixture
def engine(any_url: str) -> Iterator[Engine]:
    made = create_engine(engine_for(any_url).url, pool_size=3, max_overflow=3)
    yield made
    made.dispose()


@pytest.mark.parametrize("any_url", ["sqlite"], indirect=True)  # PostgreSQL: the scenario of tests/chaos/forks.py
def test_threads_of_the_parent_get_their_own_answers_while_workers_are_forked(any_url: str, engine: Engine) -> None:
    with Users(engine) as users:
        report = run_parallel(task, range(12), engine, workers=2, progress=False, results=True, start_method="fork")
        assert report.results == [item + 1000 for item in range(12)]
        before = sum(users.asked)
        wait_until(lambda: sum(users.asked) > before + 50, 30)
    assert users.wrong == []


class Hesitant(logging.Handler):
    """A handler with a lock of its own, which logging does not know and a fork copies as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.own = queue.Queue[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.own.put(record.getMessage())
        with contextlib.suppress(queue.Empty):
            self.own.get_nowait()


def test_many_forks_while_threads_log_and_check_out_connections_hang_no_worker(pg_url: str) -> None:
    engine = create_engine(engine_for(pg_url).url, pool_size=1, max_overflow=4)
    logger, handler = logging.getLogger("sqlalchemy.pool"), Hesitant()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with Users(engine) as users:
            for _ in range(10):
                report = run_parallel(lambda item: item, range(3), workers=3, progress=False, start_method="fork")
                assert report.done == 3
        assert users.wrong == []
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        engine.dispose()


def test_locks_that_were_held_at_the_fork_are_not_waited_for(sqlite_url: str) -> None:
    """The worst moment, for certain: everything is locked by another thread when the worker is forked."""
    engine = create_engine(sqlite_url)
    with engine.connect():
        pass
    logger, handler = logging.getLogger("sqlalchemy.pool"), Hesitant()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        pool: Any = engine.pool
        with handler.own.mutex, pool._pool.mutex, pool._overflow_lock, processes._STARTER._lock:
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    try:
        report = run_parallel(lambda item: item + 1, range(3), workers=1, progress=False, start_method="fork", results=True)
        assert report.results == [1, 2, 3]
    finally:
        done.set()
        holder.join()
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        engine.dispose()


def test_engines_are_found_without_asking_proxies_and_their_pools_are_not_freed(sqlite_url: str) -> None:
    class Proxy:
        """As frameworks have them: whoever asks for its class asks the thing behind it."""

        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            raise RuntimeError("outside of a request")

    proxy, engine = Proxy(), create_engine(sqlite_url)
    pool = engine.pool
    raw = engine.raw_connection()
    connection: Any = raw.dbapi_connection
    raw.close()
    assert abandon_inherited_engines() >= 1
    assert engine.pool is not pool
    connection.execute("SELECT 1")  # open
    del proxy
    pool.dispose()


# ------------------------------------------------------------------------------------------ other threads, loops
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_run_survives_the_end_of_the_thread_that_started_its_workers(method: str) -> None:
    """As a web server does that streams: each step of the iterator is taken in another thread."""
    outcomes = iter_parallel(os_pid, range(40), workers=1, progress=False, start_method=method)
    seen = []
    while True:
        found: list[Any] = []
        stepper = threading.Thread(target=lambda found=found: found.append(next(outcomes, None)))
        stepper.start()
        stepper.join()
        if found[0] is None:
            break
        seen.append(found[0])
    assert [outcome.status for outcome in seen] == ["done"] * 40
    assert len({outcome.value for outcome in seen}) == 1  # no worker died


def os_pid(item: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_two_runs_at_once_in_two_threads(pg_url: str, method: str) -> None:
    engine = engine_for(pg_url)

    def one(_: int) -> list[Any] | None:
        return run_parallel(task, range(20), engine, workers=2, progress=False, results=True, start_method=method).results

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(one, range(2))) == [[item + 1000 for item in range(20)]] * 2


def test_a_run_inside_a_run_under_fork() -> None:
    def inner(item: int) -> int:
        return item + 1

    def outer(item: int) -> Any:
        return run_parallel(inner, range(item), workers=1, progress=False, results=True, start_method="fork").results

    assert run_parallel(outer, [2], workers=1, progress=False, results=True, start_method="fork").results == [[1, 2]]


def test_inside_a_running_loop_whose_signals_stay_its_own(tmp_path: Path) -> None:
    """A signal to a forked worker must not reach the parent's loop, over the socket that both would have."""
    told: list[str] = []

    def signalled(item: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return asyncio.run(asyncio.sleep(0, item))  # work

    async def main() -> list[Any] | None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, told.append, "SIGTERM")
        try:
            report = run_parallel(signalled, range(3), workers=1, progress=False, results=True, start_method="fork")
            await asyncio.sleep(0)  # work: the loop's turn
            await asyncio.sleep(0)  # work: the loop's turn
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
        return report.results

    assert asyncio.run(main()) == [0, 1, 2]
    assert told == []


def test_a_forked_copy_of_a_run_does_not_end_its_workers(tmp_path: Path) -> None:
    source = """
    import os, sys
    from batchrun import iter_parallel
    outcomes = iter_parallel(lambda item: item, range(300), workers=1, progress=False)
    next(outcomes)
    if (child := os.fork()) == 0:
        sys.exit(0)  # runs the copy's handlers at exit
    os.waitpid(child, 0)
    rest = list(outcomes)
    print(len(rest), {str(outcome.status) for outcome in rest})
    """
    code, said, _ = scripts.run(tmp_path, source)
    assert (code, said) == (0, "299 {'done'}\n")


def test_without_a_start_method_the_program_with_threads_is_never_forked(tmp_path: Path) -> None:
    """Python 3.12 and later warn of that; here every warning is an error."""
    source = """
    import os, threading
    from batchrun import run_parallel
    stop = threading.Event()
    threading.Thread(target=stop.wait).start()
    def forked(): print("forked")
    os.register_at_fork(before=forked)
    print(run_parallel(lambda item: item, range(4), workers=1, progress=False).done)
    stop.set()
    """
    assert scripts.run(tmp_path, source) == (0, "4\n", "")


def test_sqlite_is_not_forked_beside_other_threads(sqlite_url: str) -> None:
    """A copy of SQLite's own locks, made while another thread writes, would wait for ever."""

    def parent_of(session: Any, item: int) -> int:
        return os.getppid()

    def run() -> list[Any]:
        report = run_parallel(parent_of, range(2), sqlite_url, workers=1, progress=False, results=True, start_method="fork")
        return report.results or []

    assert set(run()) == {os.getpid()}
    with ThreadPoolExecutor(1) as threads:
        assert os.getpid() not in threads.submit(run).result()


def run_in_a_child(url: str) -> None:
    run_parallel(effect, range(20, 40), url, workers=2, progress=False)


def test_a_forked_copy_of_a_program_that_has_a_fork_server_starts_one_of_its_own(pg_url: str) -> None:
    """A web server that ran a job before it forked its workers: they would wait for a child that is not theirs."""
    make(pg_url)
    run_parallel(effect, range(20), pg_url, workers=1, progress=False)
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    child = multiprocessing.get_context("fork").Process(target=run_in_a_child, args=(pg_url,))
    child.start()
    child.join()
    assert child.exitcode == 0
    run_parallel(effect, range(40, 60), pg_url, workers=1, progress=False)
    assert forkserver._forkserver._forkserver_pid == server  # type: ignore[attr-defined]
    assert effects(pg_url) == once(range(60))
