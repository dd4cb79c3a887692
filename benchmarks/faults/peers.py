"""One function a peer: how its documentation says to run a task over items, with an engine in each process.

Each gets the items that are left and notes what became of them. What a sensible user adds is the same for all and is in
``carry_out``: what is not known as done is submitted again, once, after a pause, and to a new pool where that needs one.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures as standard
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.faults import work
from benchmarks.faults.cases import RETRY_AFTER_S, WORKERS, Case, Notes

Attempt = Callable[[Case, Notes, list[int]], None]


@dataclass(frozen=True)
class Peer:
    """A column of the table. package: whose version is shown; "" = Python's. setting: what is used, for people."""

    title: str
    package: str
    setting: str
    attempt: Attempt
    retries: int = 1


def carry_out(peer: Peer, case: Case, notes: Notes) -> None:
    """Run a peer over what is left, with the naive retry. Raises what the last attempt raised."""
    if case.fault == "fork":
        warm(case)
    for attempt in range(peer.retries + 1):
        left = [item for item in range(case.items) if item not in notes.done]
        if not left:
            return
        if attempt:
            time.sleep(RETRY_AFTER_S)
        try:
            peer.attempt(case, notes, left)
        except Exception as error:
            if attempt == peer.retries:
                raise
            print(f"attempt {attempt}: {type(error).__name__}: {error}", flush=True)


def warm(case: Case) -> None:
    """Make an engine in the parent and use it: its pool holds an open connection when the pool of workers is made."""
    work.connect(case)
    assert work.ENGINE is not None
    with work.ENGINE.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    case.happens_once()


def initializer(case: Case) -> dict[str, Any]:
    """The initializer as most peers spell it; none where the parent's engine is to be used."""
    return {} if case.fault == "fork" else {"initializer": work.initialize, "initargs": (case,)}


def bound(case: Case) -> Callable[[int], object]:
    return functools.partial(work.task, case)


# ------------------------------------------------------------------------------------------------------ futures
def collect(case: Case, notes: Notes, futures: Mapping[Any, int], completed: Callable[[Any], Iterable[Any]]) -> None:
    """Note what became of each future; with a time limit each is waited for in turn, as their ``timeout`` allows."""
    for future in futures if case.timeout_s else completed(futures):
        try:
            error = future.exception(timeout=case.timeout_s)
        except (TimeoutError, standard.TimeoutError, standard.CancelledError) as late:
            error = late
        settle(notes, futures[future], error)


def settle(notes: Notes, item: int, error: BaseException | None) -> None:
    if error is None:
        notes.note("done", item)
    else:
        notes.note("failed", item, f"{type(error).__name__}: {error}")


# -------------------------------------------------------------------------------------------------- the attempts
def pool(case: Case, notes: Notes, items: list[int]) -> None:
    with multiprocessing.Pool(WORKERS, **initializer(case)) as workers:
        pending = {item: workers.apply_async(work.task, (case, item)) for item in items}
        for item, result in pending.items():
            try:
                result.get(case.timeout_s)
            except Exception as error:
                settle(notes, item, error)
            else:
                settle(notes, item, None)


def process_pool_executor(case: Case, notes: Notes, items: list[int]) -> None:
    with standard.ProcessPoolExecutor(WORKERS, **initializer(case)) as workers:
        futures = submit_all(workers.submit, case, notes, items)
        collect(case, notes, futures, standard.as_completed)


def submit_all(submit: Callable[..., Any], case: Case, notes: Notes, items: list[int]) -> dict[Any, int]:
    """Submit every item. An executor may break while it is fed; what it did not take is noted as failed."""
    futures: dict[Any, int] = {}
    for item in items:
        try:
            futures[submit(work.task, case, item)] = item
        except Exception as error:
            settle(notes, item, error)
    return futures


def loky(case: Case, notes: Notes, items: list[int]) -> None:
    import loky

    workers = loky.ProcessPoolExecutor(WORKERS, **initializer(case))
    try:
        futures = submit_all(workers.submit, case, notes, items)
        collect(case, notes, futures, standard.as_completed)
    finally:
        workers.shutdown(wait=True, kill_workers=True)


def joblib(case: Case, notes: Notes, items: list[int]) -> None:
    import joblib

    run = joblib.Parallel(
        n_jobs=WORKERS, backend="loky", batch_size=1, return_as="generator_unordered", timeout=case.timeout_s, **initializer(case)
    )
    for item in run(joblib.delayed(noted)(case, item) for item in items):
        notes.note("done", item)


def noted(case: Case, item: int) -> tuple[int, object] | int:
    """The task for peers that give back results without saying whose they are."""
    value = work.task(case, item)
    return item if value == item else (item, value)


def mpire(case: Case, notes: Notes, items: list[int]) -> None:
    from mpire import WorkerPool

    init = None if case.fault == "fork" else functools.partial(work.initialize, case)
    with WorkerPool(WORKERS) as workers:
        unordered = workers.imap_unordered(
            functools.partial(noted, case), items, chunk_size=1, worker_init=init, task_timeout=case.timeout_s
        )
        for item in unordered:
            notes.note("done", item)


def pebble(case: Case, notes: Notes, items: list[int]) -> None:
    from pebble import ProcessPool

    with ProcessPool(WORKERS, **initializer(case)) as workers:
        futures = {workers.schedule(work.task, (case, item), timeout=case.timeout_s): item for item in items}
        for future in standard.as_completed(futures):
            try:
                settle(notes, futures[future], future.exception())
            except standard.CancelledError as error:
                settle(notes, futures[future], error)


def dask(case: Case, notes: Notes, items: list[int]) -> None:
    from dask.distributed import Client, LocalCluster, WorkerPlugin, as_completed

    class OneEngine(WorkerPlugin):  # type: ignore[misc]
        """An engine for each worker process, also for one that the nanny starts anew."""

        def setup(self, worker: Any) -> None:
            work.initialize(case)

    with ExitStack() as stack:
        cluster = stack.enter_context(
            LocalCluster(n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None)
        )
        client = stack.enter_context(Client(cluster))
        if case.fault != "fork":
            client.register_plugin(OneEngine())
        submitted = client.map(bound(case), items, pure=False, retries=0)
        items_of = dict(zip((future.key for future in submitted), items, strict=True))
        if case.timeout_s:
            for future in submitted:
                note_future(notes, items_of[future.key], future, case.timeout_s)
            return
        completed = as_completed(submitted)
        del submitted  # a result that nobody holds any more need not be computed again when its worker dies
        for future in completed:
            note_future(notes, items_of[future.key], future, None)


def note_future(notes: Notes, item: int, future: Any, timeout_s: float | None) -> None:
    try:
        future.result(timeout=timeout_s)
    except Exception as error:
        settle(notes, item, error)
    else:
        settle(notes, item, None)


def batchrun(case: Case, notes: Notes, items: list[int]) -> None:
    from batchrun import run_parallel

    database: Any = case.url
    if case.fault == "fork":
        database = work.ENGINE
    init = functools.partial(work.initialize, case) if case.fault == "initializer" else None

    def task(session: Any, item: int) -> object:
        work.work(case, session, item)
        return work.result(case, item)

    report = run_parallel(
        task, range(case.items), database, name="faults", workers=WORKERS, timeout=case.timeout_s, initializer=init
    )
    for outcome in report.failures:
        notes.note("failed", outcome.item, str(outcome.error and f"{outcome.error.type}: {outcome.error.message}"))
    if report.status not in ("done", "failed"):
        raise RuntimeError(f"the run is {report.status}: {report.note}")
    for item in items:
        if item not in notes.failed:
            notes.note("done", item)


PEERS = {
    "pool": Peer("mp.Pool", "", "Pool(4, initializer); apply_async and get, one item a task", pool),
    "ppe": Peer("ProcessPoolExecutor", "", "ProcessPoolExecutor(4, initializer); submit, as_completed", process_pool_executor),
    "loky": Peer("loky", "loky", "ProcessPoolExecutor(4, initializer); submit, as_completed; shutdown(kill_workers=True)", loky),
    "joblib": Peer(
        "joblib", "joblib", "Parallel(4, 'loky', batch_size=1, return_as='generator_unordered', initializer, timeout)", joblib
    ),
    "mpire": Peer("mpire", "mpire", "WorkerPool(4); imap_unordered(chunk_size=1, worker_init, task_timeout)", mpire),
    "pebble": Peer("pebble", "Pebble", "ProcessPool(4, initializer); schedule(timeout), as_completed", pebble),
    "dask": Peer(
        "Dask",
        "distributed",
        "LocalCluster(4, threads_per_worker=1); WorkerPlugin; map(pure=False, retries=0), as_completed",
        dask,
    ),
    "batchrun": Peer("batchrun", "batchrun-db", "run_parallel(name=..., workers=4), otherwise its defaults", batchrun, retries=0),
}
"""In the order of the table. The keys are what ``--peers`` takes."""
