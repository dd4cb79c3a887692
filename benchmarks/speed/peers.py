"""The peers on processes of this machine, each in its shortest correct form, and batchrun.

Each function carries out one trial and takes the second reading when the caller holds every result: for a peer's pool
before it is closed, for batchrun when its call returns, with its workers ended.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent import futures as standard
from dataclasses import dataclass
from importlib import import_module

from benchmarks.speed import bare, streams, work
from benchmarks.speed.queues import run
from benchmarks.speed.trial import Measured, Trial, stop_clock

QUEUES = "benchmarks-queues"
REDIS = "redis-server"


@dataclass(frozen=True)
class Peer:
    """Who runs the items.

    package: whose version is shown; "" = Python's own. setting: how, for people. module: what must be importable;
    "" = it is there. extra: which of pyproject.toml brings it. program: what must be on PATH as well.
    """

    title: str
    package: str
    setting: str
    run: Callable[[Trial], Measured]
    module: str = ""
    extra: str = "benchmarks"
    program: str = ""


def pool(trial: Trial) -> Measured:
    items, chunk = work.items_of(trial), trial.options["chunk"]
    context = multiprocessing.get_context(trial.options.get("start"))
    with context.Pool(trial.workers, work.initializer(trial)) as workers:
        if trial.options.get("lazy"):
            list(workers.imap_unordered(work.performed(trial), items, chunk))
        else:
            workers.map(work.performed(trial), items, chunk)
        return stop_clock(trial)


def process_pool_executor(trial: Trial) -> Measured:
    items = work.items_of(trial)
    with standard.ProcessPoolExecutor(trial.workers, initializer=work.initializer(trial)) as workers:
        list(workers.map(work.performed(trial), items, chunksize=trial.options["chunk"]))
        return stop_clock(trial)


def loky(trial: Trial) -> Measured:
    loky = import_module("loky")
    items = work.items_of(trial)
    with loky.ProcessPoolExecutor(trial.workers, initializer=work.initializer(trial)) as workers:
        list(workers.map(work.performed(trial), items, chunksize=trial.options["chunk"]))
        return stop_clock(trial)


def joblib(trial: Trial) -> Measured:
    joblib = import_module("joblib")
    items, perform = work.items_of(trial), joblib.delayed(work.performed(trial))
    parallel = joblib.Parallel(
        trial.workers, backend="loky", batch_size=trial.options["chunk"], initializer=work.initializer(trial)
    )
    parallel(perform(item) for item in items)
    return stop_clock(trial)


def mpire(trial: Trial) -> Measured:
    WorkerPool = import_module("mpire").WorkerPool
    items = work.items_of(trial)
    with WorkerPool(trial.workers) as workers:
        workers.map_unordered(
            work.performed(trial), items, chunk_size=trial.options["chunk"], worker_init=work.initializer(trial)
        )
        return stop_clock(trial)


def pebble(trial: Trial) -> Measured:
    ProcessPool = import_module("pebble").ProcessPool
    items = work.items_of(trial)
    with ProcessPool(trial.workers, initializer=work.initializer(trial)) as workers:
        list(workers.map(work.performed(trial), items, chunksize=trial.options["chunk"]).result())
        return stop_clock(trial)


def batchrun(trial: Trial) -> Measured:
    """The options are those of ``run_parallel``; without a name the call is anonymous."""
    from batchrun import run_parallel

    report = run_parallel(
        work.TASKS[trial.task],
        work.items_of(trial),
        trial.url or None,
        workers=trial.workers,
        initializer=work.arrival(trial),
        progress=False,
        **trial.options,
    )
    measured = stop_clock(trial)
    if report.done != trial.items:
        raise RuntimeError(f"{report.done} of {trial.items} items are done: {report.failures[:1]}")
    return measured


PEERS = {
    "pool": Peer("mp.Pool", "", "Pool(workers, initializer).map(chunksize)", pool),
    "ppe": Peer("ProcessPoolExecutor", "", "ProcessPoolExecutor(workers, initializer).map(chunksize)", process_pool_executor),
    "loky": Peer("loky", "loky", "ProcessPoolExecutor(workers, initializer).map(chunksize)", loky, "loky"),
    "joblib": Peer("joblib", "joblib", "Parallel(workers, 'loky', batch_size, initializer)", joblib, "joblib"),
    "mpire": Peer("mpire", "mpire", "WorkerPool(workers).map_unordered(chunk_size, worker_init)", mpire, "mpire"),
    "pebble": Peer("pebble", "Pebble", "ProcessPool(workers, initializer).map(chunksize)", pebble, "pebble"),
    "raw": Peer(
        "psycopg2 loop", "psycopg2-binary", "a process for each worker, a connection, a plain loop over its share", bare.raw
    ),
    "pgbench": Peer("pgbench", "", "-c workers -j workers, the same statements, no Python", bare.pgbench),
    "batchrun": Peer("batchrun", "batchrun-db", "run_parallel", batchrun),
    "dask": Peer("Dask", "distributed", "LocalCluster(workers, threads_per_worker=1), map over batches", run.dask, "distributed"),
    "ray": Peer("Ray", "ray", "ray.util.multiprocessing.Pool(workers).imap_unordered(chunksize)", run.ray, "ray", QUEUES),
    "celery": Peer(
        "Celery", "celery", "prefork, results ignored, worker_prefetch_multiplier", run.celery, "celery", QUEUES, REDIS
    ),
    "dramatiq": Peer("Dramatiq", "dramatiq", "-p workers -t threads", run.dramatiq, "dramatiq", QUEUES, REDIS),
    "huey": Peer("huey", "huey", "-k process -w workers, no results; Redis, or else a file", run.huey, "huey", QUEUES),
    "procrastinate": Peer(
        "Procrastinate", "procrastinate", "batch_defer; a worker program each", run.procrastinate, "procrastinate", QUEUES
    ),
    "rq": Peer("RQ", "rq", "enqueue_many; a SimpleWorker each, no results", run.rq, "rq", QUEUES, REDIS),
    "pool-stream": Peer("mp.Pool", "", "Pool(workers, initializer).imap_unordered(chunksize)", streams.pool),
    "batchrun-stream": Peer("batchrun", "batchrun-db", "iter_parallel", streams.batchrun),
}
"""The keys are what ``--peers`` takes."""
