"""Feed a queue and wait until its workers have done everything.

    program -> warm-ups, until every worker process is there -> first reading -> all items -> counted done -> second reading

Timed is putting the items in and working them off, which overlap. The broker is started here, and counted as client CPU.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import make_url

from benchmarks.speed import work
from benchmarks.speed.queues import job
from benchmarks.speed.trial import ARRIVAL_S, Measured, Trial, start_clock, stop_clock

DONE_S = 240.0
LOOK_S = 0.005
Feed = Callable[[Iterable[int]], object]


def measure(trial: Trial, feed: Feed) -> Measured:
    """Warm up, then time ``feed`` and what its workers do with the items."""
    warm(trial, feed)
    start_clock(trial.folder, os.getsid(0), trial.postmaster)
    feed(work.items_of(trial))
    await_count("done", trial.items, DONE_S)
    return stop_clock(trial)


def warm(trial: Trial, feed: Feed) -> None:
    """Feed warm-ups until each worker process has had one, and none is left."""
    sent = 0
    late = time.monotonic() + ARRIVAL_S
    while job.workers_there() < trial.workers:
        if time.monotonic() > late:
            raise TimeoutError(f"{job.workers_there()} of {trial.workers} workers are there after {ARRIVAL_S:g} s")
        feed([0] * trial.workers)
        sent += trial.workers
        await_count("warmed", sent, ARRIVAL_S)


def await_count(kind: str, wanted: int, limit_s: float) -> None:
    late = time.monotonic() + limit_s
    while job.counted(kind) < wanted:
        if time.monotonic() > late:
            raise TimeoutError(f"{job.counted(kind)} of {wanted} are {kind} after {limit_s:g} s")
        time.sleep(LOOK_S)


# ---------------------------------------------------------------------------------------------- what is started
@contextlib.contextmanager
def setting(trial: Trial, broker: str) -> Iterator[ExitStack]:
    """The environment that apps read, here and in workers; what is pushed on the stack is ended afterwards."""
    os.environ[job.TRIAL], os.environ[job.BROKER] = trial.text(), broker
    with ExitStack() as stack:
        yield stack


def run(stack: ExitStack, *command: str, count: int = 1) -> None:
    """Start worker programs; they end with the stack."""
    for _ in range(count):
        stack.callback(end, subprocess.Popen(command))


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def redis(stack: ExitStack) -> str:
    """Start a Redis that writes nothing to disk. Returns its URL."""
    program = shutil.which("redis-server")
    assert program is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run(stack, program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
    late = time.monotonic() + ARRIVAL_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return f"redis://127.0.0.1:{port}/0"
        if time.monotonic() > late:
            raise TimeoutError("redis-server takes no connections")
        time.sleep(0.05)


@contextlib.contextmanager
def with_redis(trial: Trial) -> Iterator[ExitStack]:
    with ExitStack() as outer, setting(trial, redis(outer)) as stack:
        yield stack


# ------------------------------------------------------------------------------------------------- the queues
def celery(trial: Trial) -> Measured:
    with with_redis(trial) as stack:
        app = import_module("benchmarks.speed.queues.celery_app")
        options = ("-P", "prefork", "-c", str(trial.workers), "-l", "ERROR", "--without-gossip", "--without-mingle")
        run(stack, sys.executable, "-m", "celery", "-A", "benchmarks.speed.queues.celery_app", "worker", *options)
        producer = stack.enter_context(app.app.producer_pool.acquire(block=True))

        def feed(items: Iterable[int]) -> None:
            for item in items:
                app.task.apply_async((item,), producer=producer)

        return measure(trial, feed)


def dramatiq(trial: Trial) -> Measured:
    with with_redis(trial) as stack:
        app = import_module("benchmarks.speed.queues.dramatiq_app")
        counts = ("-p", str(trial.workers), "-t", str(trial.options["threads"]))
        run(stack, sys.executable, "-m", "dramatiq", *counts, "--skip-logging", "benchmarks.speed.queues.dramatiq_app")
        return measure(trial, lambda items: [app.task.send(item) for item in items])


def huey(trial: Trial) -> Measured:
    with ExitStack() as outer:
        broker = redis(outer) if shutil.which("redis-server") else ""
        with setting(trial, broker) as stack:
            app = import_module("benchmarks.speed.queues.huey_app")
            options = ("-w", str(trial.workers), "-k", "process", "-q", "-d", "0.005", "-m", "0.05")
            run(stack, sys.executable, "-m", "huey.bin.huey_consumer", "benchmarks.speed.queues.huey_app.queue", *options)
            return measure(trial, lambda items: [app.task(item) for item in items])


def rq(trial: Trial) -> Measured:
    """SimpleWorker does not fork for each job, which is what its manual offers where speed matters more than isolation."""
    with with_redis(trial) as stack:
        connection = import_module("redis").from_url(os.environ[job.BROKER])
        queue = import_module("rq").Queue(connection=connection)
        options = ("-u", os.environ[job.BROKER], "-w", "rq.worker.SimpleWorker", "-q")
        rq_program = str(Path(sys.executable).with_name("rq"))
        run(stack, rq_program, "worker", *options, count=trial.workers)

        def feed(items: Iterable[int]) -> None:
            queue.enqueue_many([queue.prepare_data(job.perform, (item,), result_ttl=0) for item in items])

        return measure(trial, feed)


def procrastinate(trial: Trial) -> Measured:
    with setting(trial, own_database(trial.url, "procrastinate")) as stack:
        app = import_module("benchmarks.speed.queues.procrastinate_app")
        connector = import_module("procrastinate").SyncPsycopgConnector(conninfo=os.environ[job.BROKER])
        stack.enter_context(app.app.replace_connector(connector))
        stack.enter_context(app.app.open())
        app.app.schema_manager.apply_schema()
        options = ("--app", "benchmarks.speed.queues.procrastinate_app.app", "worker", "-c", "1")
        run(stack, sys.executable, "-m", "procrastinate", *options, count=trial.workers)

        def feed(items: Iterable[int]) -> None:
            app.task.batch_defer(*({"item": item} for item in items))

        return measure(trial, feed)


def own_database(url: str, name: str) -> str:
    """Make a database anew on the server of ``url``. Returns its URL, without a driver's name."""
    plain = make_url(url).set(drivername="postgresql")
    connection = psycopg2.connect(plain.render_as_string(hide_password=False))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    connection.close()
    return plain.set(database=name).render_as_string(hide_password=False)


# ---------------------------------------------------------------------------------------------- past one machine
def dask(trial: Trial) -> Measured:
    distributed = import_module("distributed")
    with setting(trial, "") as stack:
        options = {"processes": True, "dashboard_address": None, "local_directory": trial.folder}
        cluster = distributed.LocalCluster(n_workers=trial.workers, threads_per_worker=1, **options)
        stack.enter_context(cluster)
        client = stack.enter_context(distributed.Client(cluster))
        client.run(job.start)

        def feed(items: Iterable[int]) -> None:
            distributed.wait(client.map(job.perform_many, batches(list(items), trial.options["chunk"]), pure=False))

        return measure(trial, feed)


def ray(trial: Trial) -> Measured:
    with setting(trial, "") as stack:
        library = import_module("ray")
        options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR", "_temp_dir": trial.folder}
        library.init(num_cpus=trial.workers, **options)
        stack.callback(library.shutdown)
        pool = import_module("ray.util.multiprocessing").Pool(trial.workers, job.start)

        def feed(items: Iterable[int]) -> None:
            for _ in pool.imap_unordered(job.perform, list(items), trial.options["chunk"]):
                pass

        return measure(trial, feed)


def batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
