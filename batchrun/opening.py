"""Opening a run: from what the caller gave to a RunPlan that the runner can carry out.

check     the task's shape, what it closes over, the options                nothing is touched yet
connect   the parent's engines; the ledger's tables, made on first use      DatabaseError, exit 6
source    the items function, the fingerprint, the upper bound
own       a new run's row, or another's taken over                          AlreadyRunning, exit 75; RunChanged, exit 2
plan      open chunks, waiting retries, the reader behind the frontier, the executor
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from batchrun.books import AnonymousBook, DurableBook
from batchrun.calls import Call, check
from batchrun.chunks import Feed
from batchrun.codec import dump
from batchrun.database.budget import limits_of, merged
from batchrun.database.connecting import check_reachable, takes_writes
from batchrun.database.engines import EngineSpec, control_engine, source_engine
from batchrun.database.failures import is_driver_error
from batchrun.database.runfolder import AliveLock
from batchrun.database.turnstile import OwnerTurn
from batchrun.database.undoing import UNDONE, leaves_no_file, undo_commits
from batchrun.database.urls import passwords_in
from batchrun.errors import AlreadyRunning, BatchrunError, ConfigError, DatabaseError, JobError
from batchrun.events import Event, Notice, RunOpened
from batchrun.gathering import Gathering
from batchrun.healthwatch import HealthWatch
from batchrun.heartbeat import Heartbeat
from batchrun.ledger import liveness, schema
from batchrun.ledger.owner import Owner
from batchrun.ledger.reading import Reading, StoredRun
from batchrun.ledger.records import NewRun
from batchrun.loading import code_fingerprint, run_items
from batchrun.options import OPTION_NAMES, FailureLimit
from batchrun.outages import insistently, read_only_server
from batchrun.parameters import split_call
from batchrun.planning import file_of, put_together, run_folder_of, worker_databases
from batchrun.plans import RunPlan
from batchrun.rehearsing import RehearsalBook, Rehearsing, check_dry_run, notices
from batchrun.resuming import (
    check_changes,
    earlier_failures,
    params_text,
    pick_up,
    refuse_cancelled,
    refuse_decided,
    unfinished_runs,
)
from batchrun.runs import Counts, Report, RunStatus, new_run_id
from batchrun.seating import Held, more_seats, seat
from batchrun.sources.coerce import as_source
from batchrun.sources.sampling import Sample, Sampled, sample_from, sampled
from batchrun.sources.source import Source, SourceContext
from batchrun.throttling import load_check
from batchrun.windows import Window


@contextmanager
def opened(call: Call) -> Iterator[RunPlan | Report]:
    """Open the run. Yields a plan, or the report of a run that has nothing left to do."""
    check(call)
    check_dry_run(call)
    with ExitStack() as stack:
        try:
            yield _Opening(call, stack).plan()
        except SQLAlchemyError as error:
            if is_driver_error(getattr(error, "orig", None) or error):
                raise DatabaseError(f"The database refused: {getattr(error, 'orig', error)}") from error
            raise


class _Opening:
    """The steps of opening one run; what must be closed again goes on the stack."""

    def __init__(self, call: Call, stack: ExitStack) -> None:
        self._call = call
        self._stack = stack
        self._run = call.run or new_run_id()
        self._reading: Reading | None = None
        self._writes = not call.options.read_only
        self._held: list[Held] = []

    def plan(self) -> RunPlan | Report:
        call = self._call
        if call.dry_run and call.database:
            self._stack.enter_context(leaves_no_file(file_of(call.database)))
        engine = self._connect(call.database, source_engine) if call.database else None
        if call.dry_run and engine is not None:
            return self._dry_run(engine)
        if not call.durable:
            return self._anonymous(engine)
        ledger = self._connect(call.ledger or call.database, control_engine)
        tables = insistently(lambda: schema.ensure(ledger, call.schema))
        self._reading = Reading(ledger, tables)
        stored = self._stored()
        if stored is not None and stored.is_finished and not call.retried:
            return self._finished(stored)
        if stored is not None:
            refuse_cancelled(stored)
            ledger = self._as_owner_of(stored.id, ledger, tables)
        owner = Owner(ledger, tables, self._run)
        self._lock_folder(owner)
        return self._durable(engine, owner, stored)

    def _as_owner_of(self, run: str, ledger: Engine, tables: schema.Tables) -> Engine:
        """The owner's sessions bear the run's name: by that the next owner ends one that stands still with the run's row locked.

        A call that says only the run's name, or its job, was connected before it knew the run.
        """
        if run == self._run:
            return ledger
        self._run = run
        self._held = [held for held in self._held if held.engine is not ledger]
        ledger.dispose()
        renamed = self._connect(self._call.ledger or self._call.database, control_engine)
        self._reading = Reading(renamed, tables)
        return renamed

    def _connect(self, spec: EngineSpec | None, make: Callable[..., Engine]) -> Engine:
        assert spec is not None
        role = "source" if make is source_engine else "owner"
        engine = make(spec, application_name=f"batchrun-{role}:{self._run[:8]}:{self._call.job.name}")
        self._call.redact.add(*passwords_in(engine.url))  # a factory's are not known before
        self._stack.callback(engine.dispose)
        check_reachable(engine, tell=lambda said: self._tell(Notice("WARNING", said)), numbers=self._numbers)
        writes = takes_writes(engine)
        if make is control_engine and not writes:
            raise read_only_server()
        self._writes = self._writes and writes
        working, books = worker_databases(self._call)
        needed = working if role == "source" else books
        self._held.append(Held(engine, threads=int(needed is not None and needed is spec)))
        return engine

    def _numbers(self) -> str:
        """What an engine that is connected already says about the connections of its server."""
        limits = [limit for held in self._held for limit in limits_of(held.engine, self._run, threads=held.threads) or ()]
        return "\n".join(f"  {limit.state}" for limit in merged(limits))

    def _tell(self, event: Event) -> None:
        for observer in self._call.observers:
            observer(event)

    # Which run.

    def _stored(self) -> StoredRun | None:
        """The run to go on with, if there is one. Raises AlreadyRunning when somebody lives in it."""
        call, reading = self._call, self._reading
        assert reading is not None
        stored = None
        if call.run is not None:
            stored = reading.stored(call.run)
        elif call.name is not None:
            stored = reading.stored_by_name(call.name)
        elif call.continue_unfinished:
            stored = self._left_behind()
        elif call.fresh:
            self._refuse_second()  # before the items function, which may take its time
        if stored is not None:
            self._refuse_if_alive(stored)
        return stored

    def _left_behind(self) -> StoredRun | None:
        """What on_unfinished="resume" goes on with: the newest unfinished run, unless it is not for a clock to decide."""
        assert self._reading is not None
        same = unfinished_runs(self._reading, self._call.job, self._call.params)
        for stored in same:
            self._refuse_if_alive(stored)
        same = [stored for stored in same if str(sample_from(stored.options)) == str(self._call.sample)]
        if same:
            refuse_decided(same[0], self._reading.is_asked_to_pause)
        return same[0] if same else None

    def _refuse_if_alive(self, stored: StoredRun) -> None:
        assert self._reading is not None
        if not self._reading.is_alive(stored):
            return
        who, silent_s = self._holder(stored.id)
        raise AlreadyRunning(
            f"Job {stored.job} is already running: run {stored.id} belongs to {who}, which was heard of "
            f"{silent_s:.0f} s ago. Wait for it, or stop it with Ctrl-C or SIGTERM; "
            f"`batchrun show {stored.id}` tells how far it is."
        )

    def _refuse_second(self) -> None:
        """A new run of a job is refused while one with the same parameters is running."""
        assert self._reading is not None
        for stored in unfinished_runs(self._reading, self._call.job, self._call.params):
            self._refuse_if_alive(stored)

    def _params_text(self) -> str:
        return params_text(self._call.job, self._call.params)

    def _finished(self, stored: StoredRun) -> Report:
        """A finished run has its report in the ledger."""
        assert self._reading is not None
        failures = tuple(earlier_failures(self._reading, stored.id))
        counts = self._reading.counts(stored.id)
        return Report(
            stored.id, stored.name, stored.job, stored.status, counts, 0.0, 0, stored.guarantee, failures, None,
            "this run had ended before; nothing was done",
        )  # fmt: skip

    # SQLite's lock files.

    def _lock_folder(self, owner: Owner | None) -> None:
        """On SQLite the owner's liveness is a lock on a file, and writers take turns at three others."""
        folder, _ = run_folder_of(self._call, self._run)
        if folder is None:
            return
        try:
            lock = AliveLock(folder)
        except OSError as error:
            raise DatabaseError(
                f"The folder of the SQLite database cannot be written: {error}. Put the database where you may write."
            ) from None
        if not lock.take():
            raise AlreadyRunning(f"Run {self._run} is being run by {self._holder(self._run)[0]}.")
        self._stack.callback(lock.release, remove=True)
        if owner is not None:
            owner.turn = OwnerTurn(folder)
            self._stack.callback(owner.turn.close)

    def _holder(self, run: str) -> tuple[str, float]:
        """Who owns the run, for people, and seconds since it was heard of.

        On SQLite one that has just taken the lock writes its name next; until then a dead one's stands there.
        """
        until = time.monotonic() + 1.0
        while True:
            stored = self._reading.stored(run) if self._reading is not None else None
            owner = liveness.parse(stored.owner) if stored else None
            if owner is not None and stored is not None and not liveness.is_provably_gone(owner):
                return owner.shown, max(0.0, stored.silent_s)
            if time.monotonic() > until:
                return "another process on this machine", max(0.0, stored.silent_s) if stored else 0.0
            time.sleep(0.02)

    # The source.

    def _source(
        self, engine: Engine | None, sample: Sample | None = None, limit: int | None = None
    ) -> tuple[Source, SourceContext]:
        """limit: items the run may plan; a sample is of so many."""
        call = self._call
        context = SourceContext(engine, call.folder, call.durable)
        found = call.items
        if found is None:
            items_params, _ = split_call(call.job, call.params)
            found = self._items(engine, items_params)
        return sampled(as_source(found), sample, limit), context

    def _items(self, engine: Engine | None, params: Mapping[str, Any]) -> Any:
        """Call the items function. Its session is committed when it returns; a generator's stays open while it is read."""
        session = Session(engine) if engine is not None else None
        if session is not None:
            self._stack.callback(session.close)
        try:
            found = run_items(self._call.job, session, params)
        except BatchrunError:
            raise
        except SQLAlchemyError as error:
            raise DatabaseError(f"The items function of {self._call.job.name} was refused by the database: {error}") from error
        except Exception as error:
            raise JobError(f"The items function of {self._call.job.name} raised {type(error).__name__}: {error}") from error
        if session is not None and not isinstance(found, Iterator):
            session.commit()
            session.close()
        return found

    def _fingerprint(self, source: Source, context: SourceContext) -> dict[str, str]:
        call = self._call
        code = replace(call.job, items=None) if call.items is not None else call.job
        found = {name: call.redact(told) for name, told in source.fingerprint(context).items()}
        return {"code": code_fingerprint(code), "parameters": self._params_text(), **found}

    # Plans.

    def _anonymous(self, engine: Engine | None) -> RunPlan:
        call = self._call
        health = self._watch_health()
        self._lock_folder(None)
        source, context = self._source(engine)
        bound = source.bound(context)
        total = source.total(context, bound)
        feed = Feed(source.read(context, None, bound), limit=call.options.limit, total=total)
        workers = seat(call, self._run, self._held, total, self._tell)
        plan = put_together(call, self._run, workers, AnonymousBook(self._run), feed, Counts(), None, writes=self._writes)
        plan.health = health
        self._announce(plan, resumed=False)
        return plan

    def _dry_run(self, engine: Engine) -> RunPlan:
        """As an anonymous run, with databases that commit nothing."""
        call, undone = self._call, list[bool]()
        undo_commits(engine, lambda: undone.append(True))
        notices(call, self._ledger_to_read(), self._tell)
        self._lock_folder(None)
        source, context = self._source(engine, call.sample, call.options.limit)
        if undone:
            self._tell(Notice("WARNING", UNDONE))
        bound = source.bound(context)
        total = source.total(context, bound)
        whole = source.whole(context, bound) if isinstance(source, Sampled) else total
        limit = None if call.sample else call.options.limit
        feed = Feed(source.read(context, None, bound), limit=limit, total=total)
        workers = seat(call, self._run, self._held, total, self._tell)
        book = RehearsalBook(self._run)
        rehearsing = Rehearsing(call, engine, book, whole=whole)
        call.observers = [*call.observers, rehearsing.observe]
        plan = put_together(call, self._run, workers, book, feed, Counts(), None, writes=self._writes, rehearsing=rehearsing)
        self._announce(plan, resumed=False)
        return plan

    def _ledger_to_read(self) -> Engine | None:
        """The ledger, to see whether a run is going on; None where it cannot exist yet."""
        spec = self._call.ledger or self._call.database
        assert spec is not None
        file = file_of(spec)
        if file is not None and not file.exists():
            return None
        engine = control_engine(replace(spec, rehearses=True), application_name="batchrun-reader")
        self._stack.callback(engine.dispose)
        return engine

    def _durable(self, engine: Engine | None, owner: Owner, stored: StoredRun | None) -> RunPlan:
        call, reading = self._call, self._reading
        assert reading is not None
        health = self._watch_health()  # also before there is a row: its check may not be there
        sample = call.sample if stored is None else sample_from(stored.options)
        source, context = self._source(engine, sample, call.options.limit if stored is None else stored.options.get("limit"))
        if hasattr(source, "accept_changes"):
            source.accept_changes = call.accept_changes
        fingerprint = self._fingerprint(source, context)
        if stored is None:
            if call.fresh:
                self._refuse_second()  # before waiting for a turn to write, which a hanging item of the other may hold
            bound = insistently(lambda: source.bound(context))
            total = insistently(lambda: source.total(context, bound))
            workers = seat(call, self._run, self._held, total, self._tell)  # before there is a row that says "running"
            stored = self._create(owner, workers, fingerprint, bound, total)
            resumed = False
        else:
            check_changes(call, stored, fingerprint)
            workers = seat(call, stored.id, self._held, stored.total, self._tell)
            self._take_over(owner, stored, fingerprint)
            resumed = True
        run = stored.id
        counts = insistently(lambda: reading.counts(run))
        options = replace(call.options, limit=stored.options.get("limit"))
        reader = None if stored.sealed else source.read(context, stored.cursor, stored.bound)
        feed = Feed(reader, limit=None if sample else options.limit, total=stored.total, taken=counts.planned)
        plan = put_together(call, self._run, workers, DurableBook(owner, reading), feed, counts, owner, writes=self._writes)
        plan.next_no = stored.next_no
        plan.counts_anew = stored.status is RunStatus.HALTED
        if resumed:
            pick_up(call, plan, owner, reading)
        earlier = insistently(lambda: reading.insight(run)) if resumed else None
        plan.gathering = Gathering(earlier, plan.counts, options.threads, call.redact)
        self._keep_alive(owner)
        plan.fitting = partial(more_seats, call, run, tuple(self._held))
        plan.health = health
        self._announce(plan, resumed=resumed)
        if sample:
            self._tell(Notice("INFO", f"A sample: {source.describe()}, seed {sample.seed}; --seed {sample.seed} draws the same."))
        return plan

    def _keep_alive(self, owner: Owner) -> None:
        """Where the caller or an inline item can hold up the loop, a thread beats. SQLite's lock needs no heartbeat."""
        if owner.turn is None and (self._call.wants_outcomes or self._call.options.workers == 0):
            heartbeat = Heartbeat(owner)
            self._stack.callback(heartbeat.stop)
            heartbeat.start()

    def _watch_health(self) -> HealthWatch | None:
        """With ``[throttle]``: a thread that asks the database how it does, on a connection of its own."""
        call, throttle = self._call, self._call.throttle
        spec = call.database or call.ledger
        if not throttle.is_on or spec is None:
            return None
        engine = control_engine(spec, application_name=f"batchrun-health:{self._run[:8]}:{call.job.name}")
        self._stack.callback(engine.dispose)
        if throttle.asks_server and engine.dialect.name != "postgresql":
            raise ConfigError("[throttle]: only PostgreSQL can be asked for its health; of SQLite take only `check` and `every`.")
        watch = HealthWatch(engine, throttle, load_check(throttle.check) if throttle.check else None)
        self._stack.callback(watch.stop)
        watch.start()
        return watch

    def _create(self, owner: Owner, workers: int, fingerprint: dict[str, str], bound: Any, total: int | None) -> StoredRun:
        call, reading = self._call, self._reading
        assert reading is not None
        new = NewRun(
            id=self._run, job=call.job.name, name=call.name, fingerprint=json.dumps(fingerprint), params=self._params_text(),
            options=self._options_text(), guarantee=call.guarantee, workers=workers,
            bound=None if bound is None else dump(bound), total=total,
        )  # fmt: skip
        insistently(lambda: owner.create(new, self._refuse_second if call.fresh else None))
        made: StoredRun | None = insistently(lambda: reading.stored(self._run))
        assert made is not None
        return made

    def _options_text(self) -> str:
        options = {name: _shown(getattr(self._call.options, name)) for name in OPTION_NAMES}
        sample = self._call.sample.to_plain() if self._call.sample else None
        given = {name: _shown(value) for name, value in self._call.given.items()}
        return json.dumps({**options, **({"sample": sample} if sample else {}), "given": given})

    def _take_over(self, owner: Owner, stored: StoredRun, fingerprint: dict[str, str]) -> None:
        insistently(lambda: owner.take_over(stored.epoch), again=owner.end_stuck_owner)
        insistently(owner.end_older_sessions)
        if fingerprint != stored.fingerprint:
            options = json.dumps(dict(stored.options))
            insistently(lambda: owner.accept(json.dumps(fingerprint), options))

    def _announce(self, plan: RunPlan, *, resumed: bool) -> None:
        dry = self._call.dry_run
        self._tell(RunOpened(self._run, plan.job, plan.counts, plan.feed.total, plan.workers, plan.guarantee, resumed, dry))


def _shown(value: Any) -> Any:
    """An option as JSON holds it."""
    if isinstance(value, FailureLimit | Window):
        return str(value)
    if isinstance(value, tuple):
        return [f"{kind.__module__}.{kind.__qualname__}" for kind in value]
    return value
