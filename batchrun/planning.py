"""From an opened run to the plan that the runner carries out: what workers get, and where they run."""

from __future__ import annotations

from pathlib import Path

from batchrun.books import Book
from batchrun.calls import Call
from batchrun.chunks import Feed
from batchrun.database.engines import EngineSpec
from batchrun.database.runfolder import run_folder
from batchrun.database.urls import sqlite_file
from batchrun.execution.inline import InlineExecutor
from batchrun.execution.packing import pack_work
from batchrun.execution.pool import LocalPool
from batchrun.execution.processes import Launcher
from batchrun.execution.work import Work
from batchrun.ledger.marks import MarksSpec
from batchrun.ledger.owner import Owner
from batchrun.parameters import split_call
from batchrun.plans import Executor, Rehearsing, RunPlan
from batchrun.runs import Counts
from batchrun.tasks import task_shape


def put_together(
    call: Call,
    run: str,
    workers: int,
    book: Book,
    feed: Feed,
    counts: Counts,
    owner: Owner | None,
    *,
    writes: bool,
    rehearsing: Rehearsing | None = None,
) -> RunPlan:
    """The plan of a run of ``workers`` processes; 0 = inline. writes: the server takes writes, and the run may write."""
    work = _work(call, run, owner, writes)
    executor: Executor
    if workers == 0:
        executor = InlineExecutor(work, lambda: call.stop.level > 0)
    else:
        launcher = Launcher(
            call.options.start_method, call.job.folder, pack_work(work), captures_output=call.captures_output,
            may_use_sqlite=work.may_use_sqlite, preload=work.drivers,
        )  # fmt: skip
        executor = LocalPool(launcher, workers, call.options, keeps_tally=work.keeps_tally)
    return RunPlan(
        job=call.job.name, name=call.name, options=call.options, workers=workers, guarantee=call.guarantee, book=book,
        feed=feed,
        executor=executor, counts=counts, wants_results=call.wants_results, wants_outcomes=call.wants_outcomes,
        ordered=call.ordered,
        has_database=call.database is not None, stop=call.stop, observers=tuple(call.observers), redact=call.redact,
        throttle=call.throttle,
        rehearsing=rehearsing,
    )  # fmt: skip


def worker_databases(call: Call) -> tuple[EngineSpec | None, EngineSpec | None]:
    """What each thread of a worker connects to: where it works, and where the ledger is if that is elsewhere."""
    separate = call.ledger is not None and (call.database is None or call.ledger.identity != call.database.identity)
    marks_alone = call.durable and not call.has_session and not separate
    return call.database if call.has_session or marks_alone else None, call.ledger if call.durable and separate else None


def file_of(spec: EngineSpec) -> Path | None:
    """The file of a SQLite database; None of others, and where a factory makes the engine."""
    return sqlite_file(spec.url) if spec.is_sqlite and spec.url is not None else None


def run_folder_of(call: Call, run: str) -> tuple[Path | None, str]:
    """SQLite: the folder of the run's lock files, and the database they are for."""
    spec = call.database if call.dry_run else call.ledger or call.database
    if spec is None or not spec.is_sqlite or spec.url is None:
        return None, ""
    return run_folder(sqlite_file(spec.url), run), spec.identity


def _work(call: Call, run: str, owner: Owner | None, writes: bool) -> Work:
    shape = task_shape(call.job.task, has_session=call.has_session)
    _, task_params = split_call(call.job, call.params)
    folder, identity = run_folder_of(call, run)
    engine, books = worker_databases(call)
    return Work(
        run=run, job=call.job.name, task=call.job.task, shape=shape, options=call.options, engine=engine,
        marks=MarksSpec(owner.run, owner.epoch, call.schema) if owner else None, books=books,
        run_folder=folder, turnstile_for=identity, task_params=task_params,
        params=dict(call.params), initializer=call.job.initializer, wants_values=call.wants_results or call.wants_outcomes,
        wants_spans=call.wants_spans,
        writes=writes, secrets=call.redact.secrets,
    )  # fmt: skip
