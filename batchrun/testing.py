"""For the tests of your jobs. Nothing here needs pytest; fixtures for it are in ``batchrun.pytest_plugin``.

run_job            a job inline, inside the caller's own transaction: a rollback undoes all of it
interrupt_after    a real run ends as *interrupted* after so many items, to see that the job goes on where it stood
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

from batchrun.chunks import ChunkSizer, Feed
from batchrun.database.failures import Meaning, meaning_of, plain_error
from batchrun.database.gate import SplitTransaction, TransactionControl
from batchrun.database.statements import Effect, effect_of
from batchrun.errors import ConfigError
from batchrun.events import Event, Progressed
from batchrun.items import Outcome, OutcomeStatus
from batchrun.jobs import Job, job_of
from batchrun.loading import run_items
from batchrun.options import RunOptions, with_options
from batchrun.parameters import parse_params, split_call
from batchrun.plans import PREPARE, RunPlan, StopRequest
from batchrun.runs import Counts, Report, RunStatus
from batchrun.sources.coerce import as_source
from batchrun.sources.source import SourceContext
from batchrun.tasks import Context, task_shape

__all__ = ["interrupt_after", "run_job"]

RUN = "testing"
"""The id that ``ctx.run`` and the report show."""

MOST_IN_A_LIST = 1000
"""Items that a batched task gets at once, as in a run."""


# ------------------------------------------------------------------------------------------------------- run_job
def run_job(
    job: Callable[..., Any],
    *,
    session: Session | None = None,
    params: Mapping[str, Any] | None = None,
    items: Iterable[Any] | Any = None,
    limit: int | None = None,
    folder: str | Path | None = None,
) -> Report:
    """Run a job inline, each item in a SAVEPOINT of the caller's own transaction. No ledger, no processes.

    job: a function under ``@job``, or a plain task together with ``items``.
    session: the test's own. The items function and every item get a Session of their own over the same connection, so they
        see what the test has flushed, and the test sees what they did; its rollback undoes everything. None: for jobs with
        transaction="none".
    params: the job's parameters, as texts or typed. items: instead of the job's own source. limit: at most so many items.
    folder: what relative paths of sources are relative to; None = the job's project, else the working directory.

    Returns the Report of a run: counts, ``failures``, and ``results`` in the order of the items. As in a run an item that
    fails is rolled back alone, a Skip is counted, an error that may pass is tried again up to ``retries`` times, at once.
    What only several processes can show (deaths, time limits, max_failures, locks between workers) is for ``run_parallel``.

    Raises ConfigError and JobError for what a run would refuse, and what the items function raises.
    """
    known = job_of(job) or Job(getattr(job, "__name__", "task"), job)
    if items is None and known.items is None:
        raise ConfigError(f"There are no items: pass items=, or give job {known.name} an items function.")
    if items is not None:
        known = Job(known.name, known.task, None, known.initializer, known.options, known.settings, known.folder)
    options = with_options(with_options(RunOptions(), known.options), {} if limit is None else {"limit": limit})
    outer = None if session is None else _joined(session)
    started = time.monotonic()
    with _initialized(known) as state:
        rehearsal = _Inline(known, options, outer, parse_params(known, params or {}), state)
        home = Path(folder or known.folder or Path.cwd())
        rehearsal.carry_out(_items(known, options, outer, rehearsal.params, items, home))
    if session is not None:
        session.expire_all()  # what the test has read before may have been changed
    return rehearsal.report(time.monotonic() - started)


def _joined(session: Session) -> Connection:
    """The connection of the test's session, in a real transaction."""
    session.flush()
    connection = session.connection()
    raw: Any = connection.connection.dbapi_connection
    is_sqlite = connection.dialect.name == "sqlite"
    is_open = is_sqlite and raw.in_transaction
    if (raw.isolation_level is None and not is_open) if is_sqlite else raw.autocommit:
        raise ConfigError("run_job: the session is in AUTOCOMMIT, so nothing could be undone; give one with a transaction.")
    if is_sqlite and not is_open:  # sqlite3 sends no BEGIN by itself, and the first SAVEPOINT's RELEASE would commit
        raw.execute("BEGIN")
    return connection


@contextmanager
def _initialized(job: Job) -> Iterator[Any]:
    """What the job's initializer returns, or yields; its rest is run at the end."""
    state = job.initializer() if job.initializer else None
    if isinstance(state, Iterator) and hasattr(state, "send"):
        rest = state
        yield next(rest)
        next(rest, None)
    else:
        yield state


class _Shared:
    """Looks like an Engine to a source, which reads in short pieces; all of them on the test's connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.dialect = connection.dialect

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._connection.begin_nested():
            yield self._connection


def _items(
    job: Job, options: RunOptions, outer: Connection | None, params: Mapping[str, Any], given: Any, folder: Path
) -> Iterator[Any]:
    """The items as a run would take them, through the source."""
    items_params, _ = split_call(job, params)
    with contextlib.ExitStack() as stack:
        own = None if outer is None else stack.enter_context(_session_over(outer))
        found = run_items(job, own, items_params) if given is None else given
        if own is not None and not isinstance(found, Iterator):
            own.commit()
        source = as_source(found)
        engine = None if outer is None else cast(Engine, _Shared(outer))
        context = SourceContext(engine, folder, durable=False)
        reader = source.read(context, None, source.bound(context))
        stack.callback(reader.close)
        left = options.limit
        while not reader.exhausted and left != 0:
            taken = reader.take(100 if left is None else min(100, left))
            left = None if left is None else left - len(taken)
            yield from taken


@contextmanager
def _session_over(connection: Connection) -> Iterator[Session]:
    with Session(connection, join_transaction_mode="create_savepoint") as session:
        yield session


class _ItemSession(Session):
    """Knows whether its task rolled back what it had committed, which no run lets pass."""

    has_committed = is_spoilt = False

    def commit(self) -> None:
        super().commit()
        self.has_committed = True

    def rollback(self) -> None:
        self.is_spoilt = self.is_spoilt or self.has_committed
        super().rollback()


@dataclass(slots=True)
class _Inline:
    """One job in one connection: calls, counts, results."""

    job: Job
    options: RunOptions
    outer: Connection | None
    params: Mapping[str, Any]
    state: Any
    counts: Counts = field(default_factory=Counts)
    results: list[Any] = field(default_factory=list)
    failures: list[Outcome] = field(default_factory=list)
    _call: Callable[[Any, Any, Any], Any] = field(init=False)

    def __post_init__(self) -> None:
        has_session = self.outer is not None and self.options.transaction != "none"
        shape = task_shape(self.job.task, has_session=has_session)
        _, task_params = split_call(self.job, self.params)
        self._call = shape.bind(self.job.task, task_params)

    @property
    def _has_session(self) -> bool:
        return self.outer is not None and self.options.transaction != "none"

    def carry_out(self, items: Iterator[Any]) -> None:
        taken = list(items)  # before the first task: what one changes must not change what comes
        self.counts.planned = len(taken)
        self.results = [None] * len(taken)
        with self._refusing_control():
            if self.options.batched:
                for first in range(0, len(taken), MOST_IN_A_LIST):
                    self._list(taken[first : first + MOST_IN_A_LIST], first)
            else:
                for index, item in enumerate(taken):
                    self._one(item, index)

    def report(self, elapsed_s: float) -> Report:
        bad = self.counts.failed
        return Report(
            RUN, None, self.job.name, RunStatus.FAILED if bad else RunStatus.DONE, self.counts, elapsed_s, 0, "at-least-once",
            tuple(self.failures), self.results, "inline, inside the caller's transaction",
        )  # fmt: skip

    def _one(self, item: Any, index: int) -> None:
        attempt = 1
        while True:
            try:
                self.results[index] = self._attempt([item] if self.options.batched else item, index, attempt)
                self.counts.done += 1
                return
            except Exception as error:
                meaning = meaning_of(error, is_lost=False, retry_on=self.options.retry_on)
                if meaning in (Meaning.RETRY, Meaning.CONFLICT) and attempt <= self.options.retries:
                    attempt += 1
                    self.counts.retries += 1
                    continue
                self._settle(item, error, meaning, attempt)
                return

    def _settle(self, item: Any, error: Exception, meaning: Meaning, attempt: int) -> None:
        if meaning is Meaning.SKIP:
            self.counts.skipped += 1
            return
        self.counts.failed += 1
        self.failures.append(Outcome(item, OutcomeStatus.FAILED, None, plain_error(error), attempt))

    def _list(self, items: Sequence[Any], first: int) -> None:
        """A list that fails is halved until single items are known, as in a run."""
        if len(items) == 1:
            self._one(items[0], first)
            return
        try:
            value = self._attempt(list(items), first, 1)
        except Exception:
            half = len(items) // 2
            self._list(items[:half], first)
            self._list(items[half:], first + half)
            return
        self.counts.done += len(items)
        if isinstance(value, list) and len(value) == len(items):
            self.results[first : first + len(items)] = value

    def _attempt(self, given: Any, index: int, attempt: int) -> Any:
        context = Context(
            RUN, self.job.name, given, f"{RUN}:{index}", attempt, None, self.params, self.state,
            logging.getLogger(f"batchrun.job.{self.job.name}"),
        )  # fmt: skip
        if not self._has_session:
            return self._call(None, given, context)
        assert self.outer is not None
        nested = self.outer.begin_nested()
        try:
            with self._reading_only(), _ItemSession(self.outer, join_transaction_mode="create_savepoint") as session:
                value = self._call(session, given, context)
                session.flush()
                if session.is_spoilt:
                    raise SplitTransaction("The task rolled back after it had committed; an item is committed once, at its end.")
                Session.commit(session)
            nested.rollback() if self.options.read_only else nested.commit()
        except BaseException:
            if nested.is_active:
                nested.rollback()
            raise
        return value[0] if self.options.batched and isinstance(value, list) and len(given) == 1 else value

    @contextmanager
    def _reading_only(self) -> Iterator[None]:
        """read_only: the database itself refuses writes, until the SAVEPOINT ends."""
        if not self.options.read_only or self.outer is None:
            yield
            return
        is_sqlite = self.outer.dialect.name == "sqlite"
        self.outer.exec_driver_sql("PRAGMA query_only = 1" if is_sqlite else "SET LOCAL transaction_read_only = on")
        try:
            yield
        finally:
            if is_sqlite:
                self.outer.exec_driver_sql("PRAGMA query_only = 0")

    @contextmanager
    def _refusing_control(self) -> Iterator[None]:
        """A COMMIT as text would end the test's own transaction."""
        if self.outer is None:
            yield
            return

        def look(connection: Any, cursor: Any, statement: str, *others: Any) -> None:
            if effect_of(statement) is Effect.CONTROL and not statement.upper().startswith(("ROLLBACK TO", "RELEASE")):
                raise TransactionControl(f"The task sent {statement.split(None, 1)[0].upper()} as text; batchrun refuses that.")

        event.listen(self.outer, "before_cursor_execute", look)
        try:
            yield
        finally:
            event.remove(self.outer, "before_cursor_execute", look)


# ----------------------------------------------------------------------------------------------- interrupt_after
@contextmanager
def interrupt_after(items: int) -> Iterator[None]:
    """Runs of ``run_parallel`` and ``iter_parallel`` inside this block end as *interrupted* once so many items are settled.

    No further item is taken from the source then, so a run that begins in the block settles exactly ``items`` of them; the
    report's status is "interrupted". The same call outside of the block, with the same ``name``, goes on behind them:

        with interrupt_after(10):
            first = run_parallel(my_job, database=url, name="test", workers=0)
        assert (first.status, first.done) == ("interrupted", 10)
        assert run_parallel(my_job, database=url, name="test", workers=0).ok

    A source with fewer items comes to its end, as it would without. Raises ValueError for less than 1.
    """
    if items < 1:
        raise ValueError(f"interrupt_after: {items} is not a number of items from 1 on")
    token = PREPARE.set(lambda plan: _interrupt(plan, items))
    try:
        yield
    finally:
        PREPARE.reset(token)


def _interrupt(plan: RunPlan, items: int) -> None:
    before = plan.counts.settled
    held = plan.feed = _HeldFeed(plan.feed, items)

    def watch(happened: Event) -> None:
        if isinstance(happened, Progressed) and happened.counts.settled - before >= items and not held.exhausted:
            _stop_once(plan.stop, items)

    plan.observers = (*plan.observers, watch)


def _stop_once(stop: StopRequest, items: int) -> None:
    if not stop.level:
        stop.request(f"interrupt_after({items})")


class _HeldFeed(Feed):
    """A feed that gives out so many items and then nothing, without being at its end."""

    def __init__(self, inner: Feed, items: int) -> None:
        self.__dict__.update(inner.__dict__)
        self.left = items

    def _piece(self, sizer: ChunkSizer) -> list[Any]:
        if self.left <= 0:
            return []
        piece = super()._piece(cast(ChunkSizer, _Capped(sizer, self.left)))
        self.left -= len(piece)
        return piece


@dataclass(frozen=True, slots=True)
class _Capped:
    """A sizer that never asks for more than there may be."""

    sizer: ChunkSizer
    most: int

    def size(self, remaining: int | None) -> int:
        return min(self.most, self.sizer.size(remaining))
