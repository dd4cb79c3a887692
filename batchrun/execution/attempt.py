"""One item: the heart. Its transaction is opened together with its mark, and committed together with its mark.

open       BEGIN + mark, one message          no row changed: look why (a zombie settled it, or a new owner fenced us)
task       task(session, item)                an error: classified here, where the driver's objects still exist
check      the gate's checks, no round trip
commit     the work and the mark, or neither  lost: reconnect and take the same mark again; the database knows
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from batchrun.codec import Unstorable
from batchrun.database.engines import WorkerEngine
from batchrun.database.failures import Meaning, meaning_of, message_of, plain_error, sqlstate_of
from batchrun.database.gate import PAST_THE_SESSION, MarkMissed, PartialCommit
from batchrun.database.stored import Call
from batchrun.errors import ItemTimeout, Retry
from batchrun.execution.deadline import Deadline
from batchrun.execution.link import Link, Refused, Stopping
from batchrun.execution.orders import pack
from batchrun.execution.places import CANCELLED, by_lock_timeout, overrun_text
from batchrun.execution.recording import PAUSE_S, RUN_ENDING, Recorder, Result, Row
from batchrun.execution.voice import Voice
from batchrun.execution.work import Work
from batchrun.items import Item, ItemError, OutcomeStatus
from batchrun.ledger.marks import Marks, Spot
from batchrun.ledger.schema import tables
from batchrun.masking import Redactor
from batchrun.retries import backoff_s, may_retry
from batchrun.tasks import Context

LOST_LIMIT = 10
"""Connections lost in a row on one item before it is failed: a role's own statement or idle time-out looks the same."""

CONFLICTS_IN_PLACE = 2

WAITED_FOR = frozenset({Meaning.FULL, Meaning.READ_ONLY})
"""What the server cannot do now, and no item is to blame for."""

LOCK_SHARE = 0.9
"""lock_timeout, as a share of ``timeout``. The server itself then ends an item that waited for a lock from its beginning,
and says so (55P03), just before our limit would cancel the statement without a word about locks (57014). Such an item has
had its time: it ends as ItemTimeout. Below that, 55P03 is a lock_timeout or NOWAIT of the task's own, which may pass."""


Mark = str | Call | None
"""An item's or a chunk's: a text, or a statement that the server keeps. None = the run keeps no ledger."""

_DONE = Result("done")


class ItemRunner:
    """Runs items one at a time in one thread: it owns that thread's connection."""

    def __init__(
        self,
        work: Work,
        engine: WorkerEngine | None,
        books: WorkerEngine | None,
        state: Any,
        *,
        pause: Callable[[float], bool],
        voice: Voice,
        inline: bool = False,
    ) -> None:
        self.work = work
        self.voice = voice
        self._pause = pause
        self.stopping: Callable[[], bool] = functools.partial(pause, 0)
        self.link = Link(engine, pause, voice) if engine else None
        self._separate = Link(books, pause, voice) if books else None
        self.marks: Marks | None = None
        self.recorder: Recorder | None = None
        self._open_books(pause)
        self.deadline = Deadline(
            work.options.timeout, by_signal=not inline and work.options.threads == 1, kill_after_s=work.options.kill_after
        )
        self._state = state
        self.call = work.shape.bind(work.task, work.task_params)
        self._inline = inline
        self._lost = self._opening = self._past = False
        self.at: tuple[Any, int] | None = None
        """The item and its attempt, for what is logged meanwhile; see whereabouts.py."""
        self.goes_on = False
        """Does another item follow at once, whose transaction may begin with this one's COMMIT?"""
        self._logger = logging.getLogger(f"batchrun.job.{work.job}")
        self._opens_with = self._opening_statements()
        self._settle_options()
        self._redact = Redactor(work.secrets)

    def _open_books(self, pause: Callable[[float], bool]) -> None:
        link = self._separate or self.link
        if self.work.marks is None or link is None:
            return
        self.marks = Marks(self.work.marks, tables(self.work.marks.schema), link.dialect)
        read_only = self.work.options.read_only and link is self.link
        self.recorder = Recorder(self.marks, link, pause, read_only=read_only)

    def _settle_options(self) -> None:
        """What is asked for each item, once."""
        work = self.work
        self._has_session, self._wants_ctx = work.has_session, work.shape.wants_ctx
        self._batched, self._read_only = work.options.batched, work.options.read_only
        self._is_limited, self._wants_values = work.options.timeout is not None, work.wants_values
        keeps = self._separate is None and self.link is not None and self.link.keeps_statements
        self._stored = self.marks.of_one if self.marks and keeps else None
        self.may_go_on = keeps and bool(self._stored or not self.marks)
        is_plain = work.shape.positional == ("session", "item") and not (work.shape.named or work.task_params)
        self._simple = work.task if is_plain and not (self._is_limited or self._wants_values) else None

    def _opening_statements(self) -> tuple[str, ...]:
        return (self.link.begin, *self._statement_limits()) if self.link else ()

    def _statement_limits(self) -> list[str]:
        """SET LOCAL, because anything else would leak through a pooler to the next client.

        They are the net below Deadline, for when this process can do nothing: it hangs in C, is stopped, is gone.
        """
        if self.work.options.timeout is None or self.link is None or self.link.is_sqlite or self.work.options.read_only:
            return []
        limit = max(1, round(self.work.options.timeout * 1000))
        idle = limit + round(self.work.options.kill_after * 1000) + 60_000  # a worker that lives is killed long before
        return [
            f"SET LOCAL statement_timeout = {limit}",
            f"SET LOCAL lock_timeout = {max(1, round(limit * LOCK_SHARE))}",
            f"SET LOCAL idle_in_transaction_session_timeout = {idle}",
        ]

    def close(self) -> None:
        """Give back its connections."""
        self.deadline.close()
        for link in (self.link, self._separate):
            if link is not None:
                link.close()

    def take_spent(self) -> tuple[float, float]:
        """Seconds in marks and commits, and for its turn to write, since the last time."""
        spent = waited = 0.0
        for link in (self.link, self._separate):
            if link is not None:
                one, other = link.take_spent()
                spent, waited = spent + one, waited + other
        return spent, waited

    # One item, to its end.

    def one(self, spot: Spot, item: Item, index: int, *, recorded: bool = True) -> Result:
        """Run one item until it is settled or has to wait. Raises only what ends the worker.

        recorded: False leaves mark and rows to the caller, who marks a whole span at once.
        """
        if isinstance(item, Unstorable):
            return self._settle(Row(spot, item, Result("failed", ItemError("NotPlainData", item.message))), recorded)
        lost = conflicts = 0
        self.at = (item, spot.attempt)
        while True:
            try:
                return self._attempt(spot, item, index, recorded)
            except RUN_ENDING:
                raise
            except MarkMissed:
                assert self.recorder is not None
                found = self.recorder.look(spot)
                if found != "again" and self._past:  # what settled it is the task's own COMMIT
                    row = Row(spot, item, Result(OutcomeStatus.FAILED, self._plain(PartialCommit(PAST_THE_SESSION))))
                    return self._settle(row, recorded, partly=True)
                if found != "again":
                    return Result(found)
            except BaseException as error:
                self._let_callers_through(error)
                at_mark = self._opening
                judged, meaning = self.judge(error, spot)
                if at_mark:
                    self._wait_at_mark(judged, meaning)
                    continue
                # A task that made its own transaction read-only looks like a standby, until its turns are over.
                lost += meaning in (Meaning.LOST, Meaning.READ_ONLY)
                conflicts += meaning is Meaning.CONFLICT
                if self._again_in_place(judged, meaning, lost, conflicts):
                    continue
                row = Row(spot, item, self.result_of(judged, meaning, spot))
                return self._settle(row, recorded, partly=meaning is Meaning.PARTIAL)

    def hold(self, error: BaseException, meaning: Meaning) -> None:
        """The database is away, full or read-only now: wait before the same is tried again. Raises Stopping."""
        assert self.link is not None
        if meaning is Meaning.READ_ONLY and self._separate is not None:
            self._separate.doubt()
        self.link.hold(error, meaning)

    def _wait_at_mark(self, error: BaseException, meaning: Meaning) -> None:
        """At the mark the task has not begun, so no error there costs an attempt: try again, or give the worker up."""
        if meaning is Meaning.LOST or meaning in WAITED_FOR:
            self.hold(error, meaning)
            return
        passing = meaning in (Meaning.RETRY, Meaning.CONFLICT) or sqlstate_of(error) == "57014"
        if not passing:
            raise Refused(f"the item's mark was refused: {type(error).__name__}: {message_of(error)}") from error
        self.voice.began()
        if self._pause(PAUSE_S):
            raise Stopping from error

    def failing(self, error: BaseException, spot: Spot, item: Item) -> Result:
        """What an error of a task without database or ledger comes to."""
        self._let_callers_through(error)
        judged, meaning = self.judge(error, spot)
        return self.result_of(judged, meaning, spot)

    def _let_callers_through(self, error: BaseException) -> None:
        """Inline, a Ctrl-C is the caller's, not the task's."""
        if self._inline and isinstance(error, KeyboardInterrupt | GeneratorExit):
            raise error

    @property
    def is_plain(self) -> bool:
        """Nothing but the task's call is needed."""
        work = self.work
        return not (work.has_session or self.marks or work.shape.wants_ctx or work.options.batched or work.options.timeout)

    def _again_in_place(self, error: BaseException, meaning: Meaning, lost: int, conflicts: int) -> bool:
        if meaning in WAITED_FOR and self.work.has_session and lost < LOST_LIMIT:
            self.hold(error, meaning)
            return True
        return (meaning is Meaning.LOST and lost < LOST_LIMIT) or (
            meaning is Meaning.CONFLICT and conflicts <= CONFLICTS_IN_PLACE
        )

    def _attempt(self, spot: Spot, item: Item, index: int, recorded: bool) -> Result:
        if not self._has_session:
            return self._outside(spot, item, index)
        given = [item] if self._batched else item
        context = self.context(spot, given, index) if self._wants_ctx else None
        if self._read_only:
            value = self.only_reading(given, context)
            if recorded and self.recorder:
                self.recorder.mark_span(spot, 1, ())
        else:
            mark: Mark = None
            if self.marks:
                mark = (self._stored, spot.no, spot.pos) if self._stored and not spot.retry else self.marks.of(spot)
            value = self.in_transaction(mark, self.call_in_session, given, context)
        return _DONE if value is None else Result("done", value=value[0] if isinstance(value, list) else value)

    def _settle(self, row: Row, recorded: bool, *, partly: bool = False) -> Result:
        if self.recorder is None or not recorded:
            return row.result
        return self.recorder.settle(row, partly=partly, was_running=not self.work.has_session)

    # A transaction of the worker's: mark, work, commit.

    def in_transaction(self, mark: Mark, body: Callable[..., Any], *given: Any) -> Any:
        """Open with the mark, run ``body``, commit both. Whatever is raised, nothing of it stands."""
        link = self.link
        assert link is not None
        separate = self._separate if mark else None
        self._opening, self._past = True, False
        gate = None
        try:
            gate = link.ensure()
            gate.arm(self._opens_with, None if separate else mark)
            if self.goes_on and link.patience.is_calm and not isinstance(mark, str):
                gate.behind = (self._opens_with, mark and (mark[0], mark[1], mark[2] + 1))
            if separate:  # its transaction is the outer one, and at-least-once is all there is
                outer = separate.ensure()
                outer.arm([separate.begin], mark)
                outer.open()
            gate.open()
            self._opening = False
            if not link.patience.is_calm:
                link.patience.begun()
            value = body(*given)
            if not gate.committed:
                gate.final = True
                link.commit_now()
            if separate:
                separate.gate.final = True
                separate.commit_now()
        except BaseException:
            self._lost = self._let_go()
            self._past = gate is not None and gate.went_past
            raise
        if separate or not (link.patience.is_calm and link.rest()):
            self._settle_down(link)
        self._lost = False
        return value

    def fall_back(self) -> None:
        """The next item does not begin at once after all: whatever we wait for, it is not in an open transaction."""
        if self.link is not None and self.link.is_ahead:
            self._let_go()

    def _settle_down(self, link: Link) -> None:
        """All went well, but something is left to be done or said."""
        if not link.patience.is_calm:
            link.patience.done()
        self._let_go()

    def _let_go(self) -> bool:
        """Between items and after an error: leave no transaction open. True when a connection was lost."""
        lost = self._released(self.link) if self.link else False
        return (self._released(self._separate) or lost) if self._separate else lost

    def _released(self, link: Link) -> bool:
        if link.is_lost():
            link.drop()
            return True
        try:
            link.settle_down()
        except Exception:  # the connection died under the error: the error is what matters
            link.drop()
        return False

    def call_in_session(self, given: Any, context: Context | None, *, final: bool = True) -> Any:
        """Run the task with a Session of its own, handed over unbegun; packs its value before anything is committed."""
        link = self.link
        assert link is not None
        session = Session(link.connection)
        try:
            value = self._simple(session, given) if self._simple else self._guarded(session, given, context)
            if self._read_only:
                session.flush()  # what it meant to write is refused; there is nothing to commit
            else:
                link.gate.final = final
                session.expire_on_commit = False  # nobody reads its objects any more, and each would be expired one by one
                session.commit()
            session.close()
        except BaseException:
            with contextlib.suppress(Exception):  # on a dead connection even closing fails
                session.close()
            raise
        return None if self._simple else value

    def only_reading(self, given: Any, context: Context | None) -> Any:
        """read_only: the same in AUTOCOMMIT; there is nothing to commit and nothing to undo."""
        link = self.link
        assert link is not None
        try:
            link.ensure().arm(())
            if not link.patience.is_calm:
                link.patience.begun()
            value = self.call_in_session(given, context)
        except BaseException:
            self._lost = self._let_go()
            raise
        if not (link.patience.is_calm and link.rest()):
            self._settle_down(link)
        self._lost = False
        return value

    def _outside(self, spot: Spot, item: Item, index: int) -> Result:
        """transaction="none", or no database at all: what the task does is its own affair, so say when it is under way."""
        if self.recorder is None:
            return Result("done", value=self._guarded(None, item, self.context(spot, item, index)))
        if settled := self.recorder.begin_outside(spot, item):
            return Result(settled)
        value = self._guarded(None, item, self.context(spot, item, index))
        self.recorder.end_outside(spot)
        return Result("done", value=value)

    def _guarded(self, session: Session | None, given: Any, context: Context | None) -> Any:
        if self._is_limited:
            return self._limited(session, given, context)
        value = self.call(session, given, context)
        return self._pack(value, given) if self._wants_values else None

    def _limited(self, session: Session | None, given: Any, context: Context | None) -> Any:
        """Under the time limit."""
        limit = self.deadline
        deadline = limit.begin(self.link.gate if self.link and session is not None else None)
        try:
            if context is not None:
                context.deadline = deadline
            value = self.call(session, given, context)
            if session is not None:
                session.flush()  # what the task left for the end is part of its time
            packed = self._pack(value, given) if self._wants_values else None
        finally:
            limit.end()
        if limit.expired:
            raise limit.error()
        return packed

    def _pack(self, value: Any, given: Any) -> Any:
        """A batch's list has one value an item if it is as long; anything else, packed as a whole, is the value of each."""
        if self._batched and isinstance(value, list | tuple) and len(value) == len(given):
            return [pack(one) for one in value]
        return pack(value)

    def context(self, spot: Spot, item: Any, index: int) -> Context | None:
        """The task's ``ctx``, made only where it asks for one."""
        if not self._wants_ctx:
            return None
        key = f"{self.work.run}:{spot.no}:{spot.pos}" if self.marks else f"{self.work.run}:{index}"
        return Context(
            self.work.run,
            self.work.job,
            item,
            key,
            spot.attempt,
            None,
            self.work.params,
            self._state,
            self._logger,
            self.stopping,
        )

    # Judging.

    def judge(self, error: BaseException, spot: Spot) -> tuple[BaseException, Meaning]:
        """What an error means; an overrun shows as whatever it interrupted, a commit past the session as what came after it."""
        lost, at_mark = self._lost, self._opening
        self._lost = self._opening = False
        if not (lost or at_mark) and (self.deadline.expired or self._cut_by_server(error)):
            said = overrun_text(self.deadline.timeout_s or 0.0, error)
            error = ItemTimeout(said).with_traceback(error.__traceback__)
            self.deadline.expired = False
        past, self._past = self._past, False
        if past and not isinstance(error, PartialCommit) and self._stands(spot):
            said = f"{PAST_THE_SESSION} Afterwards it raised {type(error).__name__}: {message_of(error, self._redact)}"
            error = PartialCommit(said).with_traceback(error.__traceback__)
        return error, meaning_of(error, is_lost=lost, retry_on=self.work.options.retry_on, writes=self.work.writes)

    def _cut_by_server(self, error: BaseException) -> bool:
        """Was it our statement_timeout or lock_timeout, which the server counts from the statement on, also in COMMIT?"""
        if by_lock_timeout(error):
            return self.deadline.has_run(LOCK_SHARE * 0.99)  # clocks of two machines
        return sqlstate_of(error) == CANCELLED and self.deadline.has_run(0.99)

    def _stands(self, spot: Spot) -> bool:
        """The transaction was over too early: was it committed? SQLite also rolls one back by itself, on an interrupt
        or a full disk, and the mark with it."""
        if self.link is None or not self.link.is_sqlite:
            return True
        return self.recorder is not None and (self._separate is not None or self.recorder.look(spot) != "again")

    def _plain(self, error: BaseException, *, with_traceback: bool = True) -> ItemError:
        """An error as plain data, without the secrets that its text may hold."""
        return plain_error(error, with_traceback=with_traceback, hide=self._redact)

    def result_of(self, error: BaseException, meaning: Meaning, spot: Spot) -> Result:
        """Turn a judged error into a result: skipped, to be tried again, or failed."""
        if meaning is Meaning.SKIP:
            return Result(OutcomeStatus.SKIPPED, self._plain(error, with_traceback=False))
        if meaning is Meaning.LOST:
            said = self._plain(error)
            text = f"The connection was lost {LOST_LIMIT} times in a row on this item, the last time with: {said.message}"
            return Result(OutcomeStatus.FAILED, ItemError(said.type, text, said.sqlstate, said.traceback))
        passing = meaning in (Meaning.RETRY, Meaning.CONFLICT, Meaning.FULL)  # FULL: of a task without a session of ours
        if passing and may_retry(spot.attempt, spot.base, self.work.options.retries):
            wanted = error.after if isinstance(error, Retry) else None
            return Result("retry", self._plain(error), backoff_s(spot.attempt) if wanted is None else max(0.0, float(wanted)))
        return Result(OutcomeStatus.FAILED, self._plain(error))
