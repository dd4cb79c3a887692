"""The public face, and with ``opening`` the only place that wires concrete parts together.

It reads no config.toml and no environment, and installs no signal handlers: that is the command line's.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from batchrun.calls import Call, check
from batchrun.database.connecting import check_reachable
from batchrun.database.engines import EngineSpec, control_engine, source_engine, spec_of
from batchrun.errors import BatchrunError, ConfigError
from batchrun.events import Notice, Observer
from batchrun.items import Outcome
from batchrun.jobs import Job, job_of
from batchrun.ledger import schema as ledger_schema
from batchrun.ledger.reading import Reading, StoredRun
from batchrun.ledger.reading import open_reading as read_ledger
from batchrun.ledger.schema import Tables
from batchrun.ledger.troubles import Wanted
from batchrun.ledger.verify import SKIPPED, Check, Verification, check_keys, check_ledger
from batchrun.loading import run_items
from batchrun.opening import opened
from batchrun.options import OPTION_NAMES, RunOptions, with_options
from batchrun.parameters import parse_params, restore_params, split_call
from batchrun.plans import PREPARE, StopRequest
from batchrun.runner import Runner
from batchrun.runs import Report
from batchrun.sources.coerce import as_source
from batchrun.sources.keysets import Keyset
from batchrun.sources.sampling import Sample
from batchrun.sources.source import SourceContext
from batchrun.throttling import OFF, Throttle
from batchrun.windows import zoned

if TYPE_CHECKING:
    from batchrun.config import Settings

P = ParamSpec("P")
R = TypeVar("R")


def _told_what_was_given(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function know which keywords its caller wrote, so that a job's own options are its defaults."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        inspect.signature(function).bind(*args, **kwargs)
        return function(*args, **kwargs, _given=tuple(kwargs))  # type: ignore[arg-type]

    shown = inspect.signature(function)
    called.__signature__ = shown.replace(parameters=[p for p in shown.parameters.values() if p.name != "_given"])  # type: ignore[attr-defined]
    return called


@_told_what_was_given
def run_parallel(
    task: Callable[..., Any],
    items: Iterable[Any] | Any = None,
    database: Any = None,
    *,
    params: Mapping[str, Any] | None = None,
    workers: int | Literal["auto"] | None = None,
    threads: int = 1,
    transaction: str = "item",
    batched: bool = False,
    read_only: bool = False,
    name: str | None = None,
    retries: int = 3,
    retry_on: tuple[type[BaseException], ...] = (),
    timeout: float | str | timedelta | None = None,
    kill_after: float | str | timedelta = 1.0,
    grace: float | str | timedelta = 10.0,
    max_failures: int | str | None = None,
    initializer: Callable[[], Any] | None = None,
    results: bool = False,
    progress: bool | None = None,
    start_method: str | None = None,
    executor: str = "local",
    ledger: Any = None,
    accept_changes: bool = False,
    max_items_per_worker: int | None = None,
    max_worker_growth: int | str | None = None,
    rate: float | str | None = None,
    window: str | None = None,
    max_runtime: float | str | timedelta | None = None,
    _given: tuple[str, ...] = (),
) -> Report:
    """Run ``task`` over ``items`` in parallel worker processes, each item in a Session and transaction of its own.

    task: ``task(session, item)``, or ``task(item)`` without a database or with transaction="none". A parameter named
        ``ctx`` gets a Context. A job made by ``@job`` brings its options as defaults.
    items: any iterable, read lazily and once, or ``keyset``, ``csv_rows``, ``jsonl``, ``lines``. None = the job's own.
    database: a URL, a ``sqlalchemy.URL``, an Engine (only its URL and options are read), a callable that makes an Engine
        in the worker, or None for no session.
    params: the job's parameters, checked against the signatures.
    workers: processes; None or "auto" = the cores this process may use, fewer where PostgreSQL has fewer connections to
        give; a number that does not fit is refused; 0 = inline, for a debugger.
    threads: chunks at once in each worker, for work that waits on something else than Python.
    transaction: "item", "chunk" (one transaction for the items of a chunk, several times faster) or "none".
    batched: the task takes a list of items. If it returns a list as long, each item has its own value.
    read_only: AUTOCOMMIT, and the database refuses writes.
    name: makes the run durable and exactly-once: recorded in the database; the same call again continues it, and a
        finished one returns its report at once. None = anonymous: no tables, at-least-once.
    retries: further attempts for errors that may pass (a deadlock, a lost connection, ``raise Retry``); 3 attempts
        more outlive most of what passes at all.
    retry_on: exception classes that may pass as well.
    timeout, kill_after, grace: seconds, timedelta or "30s", "5m", "2h"; None = no limit. See RunOptions.
    max_failures: halt beyond so many failed items, or "2%" of those settled, from the 100th on; None = never.
    initializer: called once in each worker after its engine is made; what it returns is ``ctx.state``.
    results: keep what the tasks return, in the order of the items, None where not done. Refused with ``name``.
    progress: None = a bar on a terminal or in a notebook; True = always; False = never.
    start_method: None = forkserver where there is one, else spawn; "fork" on request.
    executor: "local", the only one.
    ledger: where the run is recorded if not in ``database``; the guarantee is then at-least-once.
    accept_changes: go on with a named run although code, parameters or input changed.
    max_items_per_worker: a worker that has had so many items is replaced; None = never.
    max_worker_growth: bytes or "200MB"; a worker whose memory grew more than that since its start is replaced.
    rate: at most so many items a second, or "100/min"; None = as fast as it goes.
    window: "22:00-06:00", or with a time zone behind it: the hours in which it works; outside it ends as paused.
    max_runtime: after so long it ends as paused; a named run goes on when it is called again.

    Returns a Report, also when items failed. Raises only when it cannot run: ConfigError, JobError, DatabaseError,
    RunChanged, AlreadyRunning. KeyboardInterrupt is raised again after a clean stop.
    """
    call = _call(locals(), _given)
    call.wants_results = results
    return _carry_out(call, progress)


@_told_what_was_given
def iter_parallel(
    task: Callable[..., Any],
    items: Iterable[Any] | Any = None,
    database: Any = None,
    *,
    params: Mapping[str, Any] | None = None,
    workers: int | Literal["auto"] | None = None,
    threads: int = 1,
    transaction: str = "item",
    batched: bool = False,
    read_only: bool = False,
    name: str | None = None,
    retries: int = 3,
    retry_on: tuple[type[BaseException], ...] = (),
    timeout: float | str | timedelta | None = None,
    kill_after: float | str | timedelta = 1.0,
    grace: float | str | timedelta = 10.0,
    max_failures: int | str | None = None,
    initializer: Callable[[], Any] | None = None,
    results: bool = False,
    progress: bool | None = None,
    start_method: str | None = None,
    executor: str = "local",
    ledger: Any = None,
    accept_changes: bool = False,
    max_items_per_worker: int | None = None,
    max_worker_growth: int | str | None = None,
    rate: float | str | None = None,
    window: str | None = None,
    max_runtime: float | str | timedelta | None = None,
    ordered: bool = False,
    _given: tuple[str, ...] = (),
) -> Iterator[Outcome]:
    """Yield an Outcome for each item as it is settled, in no particular order. The arguments are ``run_parallel``'s.

    ordered: in the items' order instead. What is settled early is held back, so a slow item, or one that is tried again,
        holds the line: no further items are taken once 10,000 lie between it and the newest, or 64 MiB of values wait.
        Items that a named run's earlier call left for another try come when they are settled; when the run is cut short,
        what was settled behind a gap comes at the end. False, because waiting costs throughput.

    Lazy on both sides: items are taken as workers need them, and when the caller stalls, so do they. Closing the
    iterator interrupts the run. ``results`` means nothing here.
    """
    call = _call(locals(), _given)
    call.wants_outcomes, call.ordered = True, ordered
    check(call)
    return _outcomes(call, progress)


def _outcomes(call: Call, progress: bool | None) -> Iterator[Outcome]:
    for settled in _batches(call, progress, []):
        for outcomes in settled:
            yield from outcomes


def _call(given: Mapping[str, Any], written: Sequence[str]) -> Call:
    """Turn the arguments of a call into a Call. Raises ConfigError and JobError."""
    task, name = given["task"], given["name"]
    known = job_of(task)
    job = known or Job(_name_of(task), task)
    if given["initializer"] is not None:
        job = replace(job, initializer=given["initializer"])
    if given["items"] is not None:
        job = replace(job, items=None)
    if given["executor"] != "local":
        raise ConfigError(f"executor: {given['executor']!r} is not known; 'local' is the only one")
    if name is not None and (not isinstance(name, str) or not name or len(name) > 200):
        raise ConfigError(f"name: {name!r} is not a text of 1 to 200 characters, such as 'backfill-2026-11'")
    options = with_options(with_options(RunOptions(), job.options), {key: given[key] for key in written if key in OPTION_NAMES})
    options = zoned(options, job.settings.get("timezone"))
    database, ledger = given["database"], given["ledger"]
    return Call(
        job=job,
        options=options,
        folder=_here() if job.folder is None else Path(job.folder),
        items=given["items"],
        params=parse_params(job, given["params"] or {}),
        database=None if database is None else spec_of(database),
        ledger=None if ledger is None else spec_of(ledger),
        name=name,
        accept_changes=given["accept_changes"],
    )


def _here() -> Path:
    """The working directory; the root where it was deleted, so that only what is really relative to it fails."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path("/")


def _name_of(task: Any) -> str:
    inner = task.func if isinstance(task, functools.partial) else task
    found = getattr(inner, "__name__", type(inner).__name__)
    return "lambda" if found == "<lambda>" else str(found)


def _batches(call: Call, progress: bool | None, keep: list[Report]) -> Iterator[list[Iterable[Outcome]]]:
    """Open the run, carry it out, and leave its report in ``keep``."""
    observer = _bar(progress)
    call.observers = [*call.observers, observer] if observer else call.observers
    call.learn_secrets()
    with _hiding_secrets(call.redact), opened(call) as plan:
        if isinstance(plan, Report):
            keep.append(plan)
            return
        if prepare := PREPARE.get():
            prepare(plan)
        runner = Runner(plan)
        yield from runner.steps()
    if runner.was_interrupted:
        raise KeyboardInterrupt
    assert runner.report is not None
    keep.append(runner.report)


@contextmanager
def _hiding_secrets(redact: Callable[[str], str]) -> Iterator[None]:
    """Take secrets out of the texts of our errors, and of what Python would print below them as their cause."""
    try:
        yield
    except BatchrunError as error:
        error.args = tuple(redact(one) if isinstance(one, str) else one for one in error.args)
        notes = [redact(one) for one in getattr(error, "__notes__", [])]
        if notes:
            error.__notes__ = notes
        cause = error.__cause__ or error.__context__
        told = "" if cause is None else "".join(traceback.format_exception(cause))
        if redact(told) != told:
            error.__cause__ = error.__context__ = None
        raise


def _bar(progress: bool | None) -> Observer | None:
    if progress is False:
        return None
    from batchrun.reporting.progress import api_observer

    return api_observer(progress)


# What the command line calls.


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run works and records. database: a URL or a factory. ledger: None = the same database.

    throttle: how gently it treats the database.
    """

    database: Any
    folder: Path
    pool: str = "queue"
    connect_timeout: float = 10.0
    ledger: str | None = None
    schema: str | None = None
    throttle: Throttle = OFF

    def spec(self) -> EngineSpec:
        return spec_of(self.database, pool=self.pool, connect_timeout=self.connect_timeout, folder=self.folder)

    def ledger_spec(self) -> EngineSpec | None:
        return None if self.ledger is None else spec_of(self.ledger, connect_timeout=self.connect_timeout, folder=self.folder)


def place_of(settings: Settings) -> Place:
    """The place that config.toml, the environment and the command line name. Raises ConfigError for a bad factory."""
    database = settings.database
    return Place(
        database=_factory(database.factory) if database.factory else database.url,
        folder=settings.folder,
        pool=database.pool,
        connect_timeout=database.connect_timeout,
        ledger=settings.ledger.url,
        schema=settings.ledger.schema,
        throttle=settings.throttle,
    )


def _factory(dotted: str) -> Callable[..., Any]:
    module, _, name = dotted.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"[database] factory: {dotted!r} cannot be imported: {error}") from None
    if not callable(found):
        raise ConfigError(f"[database] factory: {dotted!r} is not a function that makes an Engine")
    return cast("Callable[..., Any]", found)


def start_job(
    job: Job,
    params: Mapping[str, Any],
    options: RunOptions,
    place: Place,
    *,
    given: Mapping[str, Any] | None = None,
    observers: Sequence[Observer] = (),
    stop: StopRequest | None = None,
    captures_output: bool = True,
    continue_unfinished: bool = False,
    accept_changes: bool = False,
    sample: Sample | None = None,
    dry_run: bool = False,
    wants_spans: bool = False,
) -> Report:
    """Open a new run of a job and carry it out; ``continue_unfinished`` goes on with the newest unfinished one instead.

    params: typed values. given: the options of the command line, kept with the run for a resume. sample: run a random
    sample of the items. dry_run: roll every item back and record nothing; the report says what was found (``rehearsal``).
    wants_spans: an observer wants to know how long each item took.
    """
    return _carry_out(
        Call(
            job, options, place.folder, params=params, database=replace(place.spec(), rehearses=dry_run),
            ledger=place.ledger_spec(), schema=place.schema, fresh=not dry_run, sample=sample, dry_run=dry_run,
            continue_unfinished=continue_unfinished, accept_changes=accept_changes, given=given or {},
            captures_output=captures_output, observers=observers, stop=stop or StopRequest(), wants_spans=wants_spans,
            throttle=place.throttle,
        )
    )  # fmt: skip


def resume_job(
    job: Job,
    run: str,
    options: RunOptions,
    place: Place,
    *,
    given_params: Mapping[str, Any] | None = None,
    said: Collection[str] = (),
    accept_changes: bool = False,
    observers: Sequence[Observer] = (),
    stop: StopRequest | None = None,
    captures_output: bool = True,
    retried: bool = False,
    only: Wanted | None = None,
    wants_spans: bool = False,
) -> Report:
    """Go on with a run where it stands. Its parameters come from the ledger; secrets, which are not there, are given.

    given_params: of config.toml and the command line. said: those of them that the command line names; one that
    differs from the run's raises RunChanged, or holds from now on with ``accept_changes``. only: of a retry, whose errors.
    """
    with open_reading(place, observers) as reading:
        stored = dict(reading.record(run).params)
    params = restore_params(job, stored, given_params or {}, said=said, accept_changes=accept_changes)
    return _carry_out(
        Call(
            job, options, place.folder, params=params, database=place.spec(), ledger=place.ledger_spec(), schema=place.schema,
            run=run, retried=retried, only=only, accept_changes=accept_changes, captures_output=captures_output,
            observers=observers, stop=stop or StopRequest(), wants_spans=wants_spans,
            throttle=place.throttle,
        )
    )  # fmt: skip


def retry_job(job: Job, run: str, options: RunOptions, place: Place, **rest: Any) -> Report:
    """Put failed, quarantined and unknown items back into the run and go on with it."""
    return resume_job(job, run, options, place, retried=True, **rest)


def _carry_out(call: Call, progress: bool | None = False) -> Report:
    keep: list[Report] = []
    for _ in _batches(call, progress, keep):
        pass
    return keep[0]


def open_reading(place: Place, observers: Sequence[Observer] = ()) -> AbstractContextManager[Reading]:
    """Look into the ledger of a place. One that does not exist yet reads as empty. Raises DatabaseError.

    observers: told when the server has no free connection, which is then waited for.
    """

    def tell(said: str) -> None:
        for observer in observers:
            observer(Notice("WARNING", said))

    spec = place.ledger_spec() or place.spec()
    engine = control_engine(spec, application_name="batchrun-reader")
    check_reachable(engine, tell=tell if observers else None)
    return read_ledger(engine, place.schema)


def verify_run(place: Place, run: str, load: Callable[[str], tuple[Job, Mapping[str, Any]]] | None = None) -> Verification:
    """Check what the ledger says of a run, and for a keyset source that its keys were covered. Changes nothing.

    run: as for ``Reading.find``. load: the job of a name, with its parameters as config.toml and the command line give
    them; None, or one that raises a BatchrunError, leaves the keys out. Raises UnknownRun.
    """
    with open_reading(place) as reading:
        stored = reading.stored(reading.find(run))
        assert stored is not None
        ledger, tables = reading.parts
        checks = check_ledger(ledger, tables, stored)
        checks.append(_checked_keys(place, stored, load, ledger, tables))
    return Verification(stored.id, stored.job, tuple(checks))


def _checked_keys(place: Place, stored: StoredRun, load: Any, ledger: Engine, tables: Tables) -> Check:
    if load is None:
        return Check("keys", SKIPPED, "the job is not known here")
    if "sample" in stored.options:
        return Check("keys", SKIPPED, "the run took a sample of its source")
    engine = source_engine(place.spec(), application_name=f"batchrun-verify:{stored.id[:8]}")
    try:
        job, given = load(stored.job)
        items_params, _ = split_call(job, restore_params(job, dict(stored.params), given, said=(), accept_changes=False))
        with Session(engine) as session:
            source = as_source(run_items(job, session, items_params))
            if not isinstance(source, Keyset):
                return Check("keys", SKIPPED, f"the source has no keys: {source.describe()}")
            found = source.fingerprint(SourceContext(engine, place.folder, True))
        if any(stored.fingerprint.get(name) != value for name, value in found.items()):
            return Check("keys", SKIPPED, "the source's query is another one than when the run began")
        return check_keys(source, engine, ledger, tables, stored)
    except BatchrunError as error:
        return Check("keys", SKIPPED, str(error).partition("\n")[0])
    finally:
        engine.dispose()


def ledger_ddl(place: Place) -> str:
    """The statements that make the ledger, for whoever may run them."""
    spec = place.ledger_spec() or place.spec()
    return ledger_schema.ddl("sqlite" if spec.is_sqlite else "postgresql", place.schema)
