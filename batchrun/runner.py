"""One run, from open to report.

    source --take--> Feed --cut--> Book (the ledger, or nothing) --order--> Executor --> workers
                                                                               |
       report <-- counts, failures <-- settle <-- Settled / Ended / Died ------+
                                         |
                       retries wait here, holding no worker; what a dead worker had goes back to the front

The loop is obey, fill, listen, bury, checkpoint: in that order down this file. It runs in one thread, blocks nowhere
but in ``listen``, and can be killed at any line: what is cut is in the ledger before it is sent, and what is done was
marked by the worker in the transaction that did it.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from batchrun.burials import Burials
from batchrun.chunks import ChunkSizer
from batchrun.complaints import as_error, source_error
from batchrun.errors import AlreadyRunning, BatchrunError, DatabaseError
from batchrun.events import Event, Notice, Progressed, RunEnded, TaskOutput
from batchrun.execution.inline import InlineExecutor
from batchrun.execution.orders import Away, Ended, Failed, Order, Ready, Said, Settled, Unreadable
from batchrun.execution.pool import Died, Heard
from batchrun.gathering import timed
from batchrun.governing import Governor
from batchrun.items import Item, Outcome
from batchrun.ledger.liveness import HEARTBEAT_S
from batchrun.ledger.owner import Busy, asking
from batchrun.outages import LEDGER, SOURCE, Outages
from batchrun.plans import RunPlan
from batchrun.rehearsal import Measured
from batchrun.runs import Report, RunStatus
from batchrun.settling import Settling

WAIT_S = 0.1
BUSY_WAIT_S = 0.005
NAP_S = 0.01
"""While every worker has a further chunk waiting, nothing is urgent: messages gather for so long at most, since waking up for
each took most of the parent's time."""
NAP_SHARE = 0.05
"""Of what a chunk takes: the one that waits at a worker must outlast the nap by far."""
CHECKPOINT_S = 1.0
INSIGHT_S = 10.0
MOST_WAITING = 10_000
"""Items that wait for a retry before cutting pauses, so that the parent's memory stays flat."""


class Runner:
    """Carries a RunPlan out. ``steps`` yields outcomes as they come in; ``report`` holds afterwards."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self._book, self._feed, self._executor = plan.book, plan.feed, plan.executor
        self._sizer = ChunkSizer(
            plan.workers * plan.options.threads, has_database=plan.has_database,
            batched=plan.options.batched or plan.rehearsing is not None,  # a dry run soon sees what long chunks take
            most=plan.chunk_limit, threads=plan.options.threads,
        )  # fmt: skip
        self._ready: deque[Order] = deque(plan.open_orders)
        self._sequence = itertools.count()
        self._waiting: list[tuple[float, int, Order]] = []
        self._uncut: list[list[Item]] = []
        self._ended: list[int] = []
        self._in_flight = 0
        self._next_no = plan.next_no
        self._index = 0
        self._sealed = False
        self._began = time.monotonic()
        self._checkpointed = self._beaten = self._told_insight = self._began
        self._gathering = plan.gathering
        self._owed = False
        self._stopping_since: float | None = None
        self._told: dict[str, float] = {}
        self._outages = Outages(self._emit, plan.redact)
        if isinstance(self._executor, InlineExecutor):
            self._executor.on_away = functools.partial(self._outages.heard, 0)
        self._failure: BatchrunError | None = None
        self._settling = Settling(plan, self._emit, self._wait_for_retry)
        self._burials = Burials(plan, self._settling, self._emit, self._back)
        self._governor = Governor(plan, self._sizer, self._emit, self._not_begun)
        self.report: Report | None = None
        self.was_interrupted = False
        for due, order in plan.retries:
            self._wait_for_retry(order, due - time.monotonic())

    def steps(self) -> Iterator[list[Iterable[Outcome]]]:
        """Run to the end, yielding what was settled since the last time. Raises what keeps the run from going on."""
        try:
            self._attempt(self._look)
            self._obey()
            if self._stopping_since is None:
                self._executor.start()
            while not self._is_over():
                try:
                    self._obey()
                    self._fill()
                    self._listen()
                    self._bury()
                    self._checkpoint()
                except KeyboardInterrupt:
                    self.was_interrupted = True
                    self._plan.stop.request("Ctrl-C")
                if outcomes := self._settling.take_outcomes():
                    yield outcomes
            yield from self._end()
        except GeneratorExit:
            self._plan.stop.request("the iterator was closed")
            self._close_early()
            raise
        except KeyboardInterrupt:
            self._plan.stop.request("Ctrl-C")
            self._close_early()
            raise
        finally:
            self._executor.close()
            self._feed.close()

    # Obey: what people ask, and what the limits say.

    def _obey(self) -> None:
        self._governor.check_time()
        if self._settling.is_over_limit() or self._plan.stop.level:
            self._begin_stopping()

    def _begin_stopping(self) -> None:
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            self._executor.stop()

    def _is_over(self) -> bool:
        if self._failure is not None or self._plan.stop.level > 1:
            return True
        if self._stopping_since is not None:
            late = time.monotonic() - self._stopping_since > self._plan.options.grace
            return late or (self._in_flight == 0 and not self._burials.pending)
        nothing_left = not (self._ready or self._waiting or self._uncut or self._in_flight or self._burials.pending)
        return nothing_left and self._feed.exhausted and not self._more_retries()

    # Fill: give every worker something to do.

    def _fill(self) -> None:
        if self._stopping_since is not None:
            return
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            self._ready.append(heapq.heappop(self._waiting)[2])
        self._executor.queued = self._sizer.queued
        room = self._executor.room()
        wanted = room - len(self._ready)
        if wanted > 0 and len(self._waiting) < MOST_WAITING and self._settling.has_room:
            self._cut(wanted)
        while room > 0 and self._ready and self._submit(self._ready[0]):
            self._ready.popleft()
            room -= 1
        while not self._ready and (order := self._executor.recall()) is not None:
            self._in_flight -= 1
            self._governor.taken_back(order)
            if not self._submit(order):
                self._back(order)

    def _submit(self, order: Order) -> bool:
        if not self._governor.hand_over(order):
            return False
        if not self._executor.submit(order):
            self._governor.taken_back(order)
            return False
        self._in_flight += 1
        self._sizer.weigh(order.handed_over, order.weight)
        return True

    def _cut(self, pieces: int) -> None:
        """Take items and record them before anything is sent. What could not be recorded yet is kept, not taken again."""
        with _Later(self, SOURCE):
            if not self._uncut:
                self._outages.check()
                self._uncut = self._feed.take(self._sizer, pieces)
                self._outages.over(SOURCE)
        if not self._uncut:
            return
        with _Later(self):
            self._outages.check()
            self._book.cut(self._next_no, self._uncut, self._feed.ends)
            self._outages.over(LEDGER)
            for piece in self._uncut:
                order = Order(self._next_no, 0, piece, self._index)
                self._ready.append(order)
                self._next_no += 1
                self._index += len(piece)
                self._settling.planned(order)
            self._uncut = []

    def _more_retries(self) -> bool:
        """A resume reads waiting items from the ledger a page at a time."""
        if self._plan.more_retries is None:
            return False
        with _Later(self), asking():
            self._outages.check()
            found = self._plan.more_retries({(order.no, order.pos) for _, _, order in self._waiting})
            for due, order in found:
                self._wait_for_retry(order, due - time.monotonic())
            return bool(found)
        return True  # nobody can say just now

    def _wait_for_retry(self, order: Order, after_s: float) -> None:
        heapq.heappush(self._waiting, (time.monotonic() + after_s, next(self._sequence), order))

    def _back(self, order: Order, *, first: bool = True) -> None:
        """Work that a worker did not get to."""
        if order.items:
            self._ready.appendleft(order) if first else self._ready.append(order)

    def _not_begun(self, order: Order) -> None:
        """An order that waited at a worker which gets none any more."""
        self._in_flight -= 1
        self._back(order)

    # Listen: the only place that waits.

    def _listen(self) -> None:
        if nap_s := self._nap_s():
            time.sleep(nap_s)
        for happened in self._executor.wait(self._patience()):
            if isinstance(happened, Died):
                if self._gathering:
                    self._gathering.died(happened)
                self._in_flight -= len(happened.running) + len(happened.waiting) + len(happened.queued)
                self._outages.over(happened.worker)
                for order in reversed(happened.queued):
                    self._back(order.rest(deaths=order.deaths))
                self._burials.add(happened)
            else:
                self._hear(happened)
        self._kill_overdue()

    def _nap_s(self) -> float:
        is_fed = self._stopping_since is None and not self._burials.pending and self._executor.room() == 0
        return min(NAP_S, self._sizer.chunk_s * NAP_SHARE) if is_fed and self._plan.workers else 0.0

    def _patience(self) -> float:
        if self._burials.pending or self._uncut or self._owed:
            return min(WAIT_S, max(BUSY_WAIT_S, self._outages.pause_left_s()))
        if self._waiting and self._stopping_since is None:
            return min(WAIT_S, max(0.0, self._waiting[0][0] - time.monotonic()))
        if self._ready:
            return self._governor.wait_s(WAIT_S)
        nobody_is_at_work = self._feed.exhausted and not (self._in_flight or self._ready or self._waiting)
        return 0.0 if nobody_is_at_work and self._plan.more_retries is None else WAIT_S

    def _hear(self, heard: Heard) -> None:
        message, order = heard.message, heard.order
        if isinstance(message, Settled) and order is not None:
            if message.values is not None:
                self._sizer.weigh(message.amount, heard.size)
            self._settling.settled(order, message, heard.size)
            self._gather(heard)
            self._emit(Progressed(self._plan.counts, self._feed.total))
        elif isinstance(message, Ended) and order is not None:
            self._gather(heard)
            self._over(order, message)
        elif isinstance(message, Unreadable) and order is not None:
            self._executor.resend(heard.worker, order)
        elif isinstance(message, Away):
            self._outages.heard(heard.worker, message.why)
        elif isinstance(message, Said):
            self._say(message, heard.worker)
        elif isinstance(message, Measured) and self._plan.rehearsing is not None:
            self._plan.rehearsing.add(message)
        elif isinstance(message, Failed):
            self._failure = self._failure or as_error(message)
        elif isinstance(message, Ready) and self._gathering:
            self._gathering.ready(heard.worker, message.pid, self._executor.age_s(heard.worker))

    def _gather(self, heard: Heard) -> None:
        if self._gathering and heard.order is not None:
            self._gathering.heard(heard.order, heard.message, heard.worker)
        if isinstance(heard.message, Settled) and heard.message.spans is not None and heard.order is not None:
            for event in timed(heard.order, heard.message, heard.worker):
                self._emit(event)

    def _over(self, order: Order, message: Ended) -> None:
        self._in_flight -= 1
        if order.reached < len(order.items):
            self._back(order.rest())
            return
        self._sizer.learn(len(order.items), message.busy_s)
        if self._book.durable and not order.retry:
            self._ended.append(order.no)

    def _say(self, said: Said, worker: int) -> None:
        if said.level == "NOTICE":
            self._emit(Notice("INFO", said.text))
            return
        if said.logger or said.level != "WARNING":
            number = worker if self._plan.workers else None
            self._emit(TaskOutput(said.text, said.level, said.logger, said.item, said.attempt, number, said.traceback, said.at))
            return
        now = time.monotonic()
        if now - self._told.get(said.text, -10.0) > 5.0:  # several workers say the same at once
            self._told[said.text] = now
            self._emit(Notice(said.level, self._plan.redact(said.text)))

    def _kill_overdue(self) -> None:
        options = self._plan.options
        if options.timeout is None:
            return
        for worker, order in self._executor.overdue(options.timeout + options.kill_after / 2):
            self._executor.locate(worker, order)  # asks; a task that heeds its limit has had its chance by now
        for worker, order in self._executor.overdue(options.timeout + options.kill_after):
            found = self._executor.locate(worker, order)
            if found is None and order.late_at is None:
                continue  # asked only now, because kill_after is short: it answers within the next turns of the loop
            if order.late_at is None:
                order.late_at, order.found = order.reached, found or ""
            self._executor.kill(worker)

    # Bury: bill what died, replace it.

    def _bury(self) -> None:
        self._failure = self._failure or self._burials.failure
        if self._stopping_since is None and self._failure is None:
            self._executor.start()  # first, since a bill may have to wait for what the dead one left on the server
        with _Later(self):
            if self._burials.pending:
                self._outages.check()
            for number in self._burials.settle():
                self._ended.append(number)

    # Checkpoint: what can wait a second.

    def _checkpoint(self) -> None:
        now = time.monotonic()
        if now - self._checkpointed < CHECKPOINT_S and not self._owed:
            return
        self._emit(Progressed(self._plan.counts, self._feed.total))  # a slow item must not look like a hang
        self._checkpointed, self._owed = now, False
        self._attempt(self._look)
        self._attempt(self._write_down)

    def _attempt(self, step: Callable[[], None]) -> None:
        """What the book is too busy for waits for the next checkpoint."""
        began = time.monotonic()
        try:
            step()
        except Busy as busy:
            self.later(busy)
            # On SQLite our place at the turnstile is kept meanwhile, and no worker comes past it: come back soon.
            self._owed = self._owed or (not busy.away and time.monotonic() - began < WAIT_S)

    def _look(self) -> None:
        """At what was asked from elsewhere, the hour, and the database's health."""
        self._outages.check()
        self._governor.look()

    def _write_down(self) -> None:
        now = time.monotonic()
        self._close_chunks()
        if now - self._beaten >= HEARTBEAT_S or self._outages.is_waiting(LEDGER):
            is_due = self._gathering is not None and now - self._told_insight >= INSIGHT_S
            self._book.beat(self._gathering.text() if self._gathering and is_due else "")
            self._beaten = now
            self._told_insight = now if is_due else self._told_insight
            self._outages.over(LEDGER)

    def _close_chunks(self) -> None:
        if self._ended:
            self._book.end_chunks(self._ended)
            self._ended = []
        if self._feed.exhausted and not self._sealed and not self._uncut and self._feed.error is None:
            self._book.seal()
            self._sealed = True

    def later(self, busy: Busy, who: int = LEDGER) -> None:
        """The book could not be written, or the source not read, just now."""
        if busy.away:
            self._outages.met(who, busy)

    # The end.

    def _end(self) -> Iterator[list[Iterable[Outcome]]]:
        self._let_clean_up()
        self._executor.close()
        if self._failure is not None and isinstance(self._failure, AlreadyRunning):
            with contextlib.suppress(Busy):
                self._book.beat()  # a worker found out first; this raises with the new owner's name
            raise self._failure
        status, note = self._verdict()
        self.report = self._close(status, note)
        if outcomes := self._settling.take_outcomes(at_the_end=True):
            yield outcomes
        self._emit(RunEnded(self.report))
        if self._failure is not None:
            raise self._failure
        if self._feed.error is not None:
            raise source_error(self._feed.error, self._plan.job, self.report) from self._feed.error

    def _let_clean_up(self) -> None:
        """Initializers that yielded run their rest, for at most ``grace`` seconds."""
        until = time.monotonic() + self._plan.options.grace
        is_in_time = self._failure is None and self._in_flight == 0
        while is_in_time and self._plan.stop.level < 2 and time.monotonic() < until and self._executor.leave():
            for happened in self._executor.wait(WAIT_S):
                if isinstance(happened, Heard):
                    self._hear(happened)

    def _verdict(self) -> tuple[RunStatus, str]:
        if self._failure is not None:
            return RunStatus.INTERRUPTED, str(self._failure).partition("\n")[0]
        stop = self._plan.stop
        if stop.level and (stop.status is RunStatus.INTERRUPTED or not self._is_through()):
            return stop.status, stop.reason
        if self._settling.is_over_limit():
            return RunStatus.HALTED, f"more than {self._plan.options.max_failures} items failed"
        if self._feed.error is not None:
            said = f"the source raised {type(self._feed.error).__name__}: {self._feed.error}"
            return RunStatus.INTERRUPTED, self._plan.redact(said)[:500]  # in this order, or half a secret could be left
        return RunStatus.DONE, ""

    def _is_through(self) -> bool:
        """Nothing was left to do when somebody asked for an end."""
        return self._feed.exhausted and self._feed.error is None and not (self._uncut or self._plan.counts.pending)

    def _close(self, status: RunStatus, note: str) -> Report:
        elapsed = time.monotonic() - self._began
        note = self._plan.redact(note)
        counts, final = self._plan.counts, status
        until: float | None = None
        while True:
            try:
                self._close_chunks()
                counts = self._book.counts(counts)
                bad = counts.failed + counts.quarantined + counts.unknown
                final = RunStatus.FAILED if status is RunStatus.DONE and bad else status
                self._book.finish(final, note, elapsed, self._gathering.text() if self._gathering else "")
                self._outages.over(LEDGER)
                break
            except Busy as busy:
                self.later(busy)
                if busy.away and not self._plan.stop.level:
                    until = None  # an outage is waited for until somebody says stop
                elif until is None:
                    until = time.monotonic() + max(10.0, self._plan.options.grace)
                if until is not None and time.monotonic() > until:
                    raise DatabaseError(
                        f"The end of run {self._book.run} could not be recorded: {busy}. Resume it when the database is back."
                    ) from None
                time.sleep(min(WAIT_S, max(BUSY_WAIT_S, self._outages.pause_left_s())))
        plan = self._plan
        return Report(
            plan.book.run, plan.name, plan.job, final, counts, elapsed, plan.workers, plan.guarantee,
            tuple(self._settling.failures), self._settling.results, note,
            plan.rehearsing.result(plan.workers, plan.chunk_limit) if plan.rehearsing else None,
        )  # fmt: skip

    def _close_early(self) -> None:
        """The caller closed the iterator: end at once, record it as interrupted."""
        self._executor.close()
        self.report = self._close(RunStatus.INTERRUPTED, self._plan.stop.reason)
        self._emit(RunEnded(self.report))

    def _emit(self, event: Event) -> None:
        if self._gathering:
            self._gathering(event)
        for observer in self._plan.observers:
            observer(event)


class _Later:
    """A block that writes to the book; when the book is busy, the loop comes back to it."""

    def __init__(self, runner: Runner, who: int = LEDGER) -> None:
        self._runner, self._who = runner, who

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if isinstance(error, Busy):
            self._runner.later(error, self._who)
            return True
        return False
