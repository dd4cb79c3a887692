"""The parent's side of local workers: one pipe and one sentinel each, one selector over all of them.

    submit(order)  -> bytes into that worker's outbox -> its pipe           never blocks, also when a worker is stopped
    wait(deadline) <- messages from pipes, deaths from sentinels            one selector, no thread, no shared queue

There is no lock a corpse can hold and no helper thread that can die. Whatever a dead worker still had is returned
with its death, the order it was running first.
"""

from __future__ import annotations

import atexit
import math
import os
import selectors
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from batchrun.errors import BatchrunError
from batchrun.execution.claims import Offers
from batchrun.execution.deaths import OomWatch, likely_cause
from batchrun.execution.orders import Ended, Initializing, Message, Order, Ready, Said, Settled, Stop, Waiting, in_frame, sent
from batchrun.execution.pipes import Channel
from batchrun.execution.processes import Launcher, Process, claims_pipe, tally_file, worker_pipe
from batchrun.execution.recycling import Life, Limits
from batchrun.execution.stacks import Hook, Question
from batchrun.execution.tally import Tallies
from batchrun.options import RunOptions

START_PATIENCE_S = 10.0
SLOW_START_S = 10.0
"""A worker that is not ready by then is told about: what hangs there is not ours, and nothing else would show it."""
QUEUED = 1
"""Orders that wait at a worker beyond those it is running, so that it never idles; at first."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A message about an order, or about no order. size: its bytes on the wire."""

    worker: int
    message: Message
    order: Order | None
    size: int = 0


@dataclass(frozen=True, slots=True)
class Died:
    """A worker is gone. running: the orders it had begun; queued: those it had not.

    waiting: of those it had begun, the ones that waited for the database or for a turn to write: no item of theirs was
    running just then, so none is to blame; but items before may be settled, or under way outside the database.
    exitcode: negative = the signal that killed it; None = not known. was_ready: False when it died starting.
    was_asked: it had been told to stop, and did so before its orders were through. cause: what it likely died of.
    in_vain: workers that died starting since one was ready last. initializing: it died in its initializer.
    """

    worker: int
    pid: int
    exitcode: int | None
    running: list[Order]
    queued: list[Order]
    was_ready: bool
    was_asked: bool = False
    waiting: list[Order] = field(default_factory=list)
    cause: str = ""
    in_vain: int = 0
    initializing: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    """One worker process as the parent sees it.

    clocks: when each running order last showed progress; inf = it waits. life: what it has had so far. is_full: it gets
    no further order, and leaves when it has ended those it has. leaving_since: since when it has had nothing left to do but
    that. was_cut_short: it took too long and was killed. hook, questions: how it is asked where an order is. tallies: where it
    notes how far it is; None where messages or the ledger tell that.
    """

    number: int
    process: Process
    channel: Channel
    offers: Offers
    life: Life
    began: float
    watched: int = selectors.EVENT_READ
    orders: dict[int, Order] = field(default_factory=dict)
    clocks: dict[int, float] = field(default_factory=dict)
    is_ready: bool = False
    is_leaving: bool = False
    exclusive: bool = False
    cleans_up: bool = False
    is_full: bool = False
    leaving_since: float | None = None
    was_cut_short: bool = False
    is_initializing: bool = False
    hook: Hook | None = None
    questions: dict[int, Question] = field(default_factory=dict)
    tallies: Tallies | None = None


class LocalPool:
    """Runs orders in processes of this machine."""

    def __init__(self, launcher: Launcher, workers: int, options: RunOptions, *, keeps_tally: bool = False) -> None:
        """keeps_tally: how far a worker is stands in its Tally and not only in its messages."""
        self._launcher = launcher
        self._keeps_tally = keeps_tally
        self.queued = QUEUED
        self._wanted = self._active = workers
        self._threads = options.threads
        self._grace_s = options.grace
        self._limits = Limits(options.max_items_per_worker, options.max_worker_growth)
        self._oom = OomWatch()
        self._slow_starts: set[Worker] = set()
        self._in_vain = 0
        self._notices: list[Heard] = []
        self._told_growth = False
        self._selector = selectors.DefaultSelector()
        self._pid = os.getpid()
        self._workers: dict[int, Worker] = {}
        self._next_number = 0
        self._next_order = 0
        self._failing_since: float | None = None

    # Orders.

    def start(self) -> None:
        """Start workers up to the wanted number, or as many as can be started just now; to be called again.

        Raises BatchrunError when none could be started for a while.
        """
        atexit.register(self.close)  # before multiprocessing's own, which would wait for them for ever
        try:
            while len(self._workers) < self._wanted:
                self._start_one()
            self._failing_since = None
        except (EOFError, OSError) as error:
            self._failing_since = self._failing_since or time.monotonic()
            if time.monotonic() - self._failing_since > START_PATIENCE_S:
                self._cannot_start(error)

    def _cannot_start(self, error: Exception) -> None:
        """For a while by now. With some workers the run goes on, and somebody should know why with no more."""
        why = f"{type(error).__name__}: {error}"
        if not self._workers:
            raise BatchrunError(f"Worker processes cannot be started: {why}.") from error
        said = f"No further worker can be started: {why}. The run goes on with {len(self._workers)} of {self._wanted}."
        self._notices.append(Heard(min(self._workers), Said("WARNING", said), None))
        self._failing_since = time.monotonic()

    @property
    def alive(self) -> int:
        return len(self._workers)

    def age_s(self, worker: int) -> float:
        """Seconds since a worker was started."""
        found = self._workers.get(worker)
        return time.monotonic() - found.began if found else 0.0

    def resize(self, workers: int, active: int) -> list[Order]:
        """From now on there are so many workers, of which ``active`` get orders.

        Surplus ones end what they run and leave. Returns the orders that waited at those that get none: they were not begun.
        """
        self._wanted, self._active = workers, active
        for worker in self._staying()[workers:]:
            worker.is_full = True
        open_to = self._open()
        closed = [worker for worker in self._workers.values() if worker not in open_to]
        taken = [self._take_out(worker, number) for worker in closed for number in iter(worker.offers.take_back, None)]
        for worker in closed:
            self._let_go_if_full(worker)
        return taken

    def _staying(self) -> list[Worker]:
        """Workers that do not leave after what they have, the oldest first."""
        return [worker for worker in self._workers.values() if not (worker.is_full or worker.is_leaving)]

    def _open(self) -> list[Worker]:
        """Workers that may get orders."""
        return self._staying()[: self._active]

    def room(self) -> int:
        """How many more orders can be handed over now."""
        return sum(self._room_of(worker) for worker in self._open())

    def idle(self) -> int:
        """Workers that are ready and have nothing at all."""
        return sum(worker.is_ready and not worker.orders for worker in self._workers.values())

    def _room_of(self, worker: Worker) -> int:
        if not worker.is_ready or worker.is_leaving or worker.is_full or worker.exclusive:
            return 0
        return max(0, self._threads + self.queued - len(worker.orders))

    def submit(self, order: Order) -> bool:
        """Hand an order to the worker with the least to do. False when it must wait: an exclusive one for an idle worker."""
        open_to = [worker for worker in self._open() if self._room_of(worker) and self._fits(worker, order)]
        if order.exclusive:
            open_to = [worker for worker in open_to if not worker.orders]
        if not open_to:
            return False
        worker = min(open_to, key=lambda candidate: len(candidate.orders))
        self._next_order += 1
        order.id = self._next_order
        worker.exclusive = order.exclusive
        worker.orders[order.id] = order
        worker.life.assigned += order.handed_over
        worker.is_full = worker.is_full or worker.life.is_full()
        self._send_order(worker, order)
        self._start_clocks(worker)
        return True

    def _fits(self, worker: Worker, order: Order) -> bool:
        """Has the worker so many items left? One that has not is full, and leaves as soon as it has nothing to do."""
        if worker.life.fits(order.handed_over):
            return True
        worker.is_full = True
        self._let_go_if_full(worker)
        return False

    def _let_go_if_full(self, worker: Worker) -> None:
        if worker.is_full and not worker.orders and not worker.is_leaving:
            worker.is_leaving, worker.leaving_since = True, time.monotonic()
            self._send(worker, Stop())

    def _send_order(self, worker: Worker, order: Order) -> None:
        worker.offers.add(order.id)
        worker.channel.send(*in_frame(sent(order)))
        self._watch(worker)

    def recall(self) -> Order | None:
        """Take back an order that waits behind others, where some worker has a thread with nothing to do; None = no such order.

        The worker that had it never begins it.
        """
        if not any(self._room_of(worker) and len(worker.orders) < self._threads for worker in self._open()):
            return None
        for worker in self._workers.values():
            if len(worker.orders) > self._threads and (number := worker.offers.take_back()) is not None:
                return self._take_out(worker, number)
        return None

    def _take_out(self, worker: Worker, number: int) -> Order:
        """An order that the worker will not begin any more."""
        order = worker.orders.pop(number)
        worker.clocks.pop(number, None)
        worker.life.assigned -= order.handed_over
        worker.exclusive = worker.exclusive and not order.exclusive
        self._start_clocks(worker)
        return order

    def resend(self, worker: int, order: Order) -> None:
        """The worker could not read the order's items together: send them one by one."""
        order.singly = True
        self._send_order(self._workers[worker], order)

    def _start_clocks(self, worker: Worker) -> None:
        for order_id in list(worker.orders)[: self._threads]:
            worker.clocks.setdefault(order_id, time.monotonic())

    def overdue(self, limit_s: float) -> list[tuple[Worker, Order]]:
        """Running orders that have shown no progress for ``limit_s`` seconds."""
        late = time.monotonic() - limit_s
        return [
            (worker, worker.orders[order_id])
            for worker in self._workers.values()
            for order_id, clock in worker.clocks.items()
            if clock < late and order_id in worker.orders
        ]

    def stop(self) -> None:
        """Ask every worker to begin no further item and to end."""
        for worker in self._workers.values():
            if not worker.is_leaving:
                worker.is_leaving = True
                self._send(worker, Stop())

    def leave(self) -> bool:
        """Have workers end by themselves where an initializer has something to clean up; True while one still does."""
        is_cleaning = any(worker.cleans_up for worker in self._workers.values())
        if is_cleaning:
            self.stop()
        return is_cleaning

    def locate(self, worker: Worker, order: Order) -> str | None:
        """Ask the worker, the first time, where the order is, and return what is known; None = ask again at once."""
        if order.id not in worker.questions:
            if worker.process.has_ended(0.0):
                return ""
            worker.questions[order.id] = Question(worker.process.pid, worker.hook)
        return worker.questions[order.id].answer(order.id)

    def kill(self, worker: Worker) -> None:
        """End a worker at once; its death comes out of ``wait``."""
        worker.process.kill()

    def close(self) -> None:
        """End everything at once. Nothing of ours is left afterwards; what workers had is not returned."""
        if os.getpid() != self._pid:
            return  # a child of ours that somebody forked has a copy of this pool, and no right to its workers
        for worker in self._workers.values():
            worker.process.kill()
        for worker in list(self._workers.values()):
            self._forget(worker)
        self._selector.close()
        atexit.unregister(self.close)

    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers.values()]

    # The wait.

    def wait(self, timeout_s: float) -> Iterator[Heard | Died]:
        """Yield what happened, waiting up to ``timeout_s`` seconds for the first of it."""
        for worker in list(self._workers.values()):
            yield from self._messages(worker)  # what a caller that was interrupted has left
        for key, mask in self._selector.select(max(0.0, timeout_s)):
            worker, is_sentinel = key.data
            if worker.number not in self._workers:
                continue
            if mask & selectors.EVENT_WRITE:
                worker.channel.write()
                self._watch(worker)
            if mask & selectors.EVENT_READ:
                if is_sentinel or not worker.channel.read():
                    yield from self._buried(worker)
                else:
                    yield from self._messages(worker)
        self._look_at_starts()
        self._look_at_leavers()
        notices, self._notices = self._notices, []
        yield from notices

    def _look_at_starts(self) -> None:
        late = time.monotonic() - SLOW_START_S
        for worker in [worker for worker in self._slow_starts if worker.began < late]:
            self._slow_starts.discard(worker)
            at = ": its initializer has not come to its end" if worker.is_initializing else ""
            said = f"Worker {worker.number} (pid {worker.process.pid}) has been starting for {SLOW_START_S:g} s{at}."
            self._notices.append(Heard(worker.number, Said("WARNING", said), None))

    def _look_at_leavers(self) -> None:
        """One that had its last order, and whose clean-up does not come to its end, would be missed for the rest of the run."""
        late = time.monotonic() - self._grace_s
        for worker in self._workers.values():
            if worker.leaving_since is not None and worker.leaving_since < late and not worker.was_cut_short:
                worker.was_cut_short = True
                worker.process.kill()
                who = f"Worker {worker.number} (pid {worker.process.pid})"
                said = f"{who} was not through with its clean-up after {self._grace_s:g} s: it was killed."
                self._notices.append(Heard(worker.number, Said("WARNING", said), None))

    def _messages(self, worker: Worker) -> Iterator[Heard]:
        while worker.channel.heard:  # one by one: what an interrupted caller does not come to is still there
            message, size = worker.channel.heard.popleft()
            yield Heard(worker.number, message, self._noted(worker, message), size)

    def _noted(self, worker: Worker, message: Message) -> Order | None:
        """Keep the books of a worker in step with what it says. Returns the order the message is about."""
        if isinstance(message, Ready):
            worker.is_ready, worker.cleans_up, worker.hook = True, message.cleans_up, message.hook
            worker.is_initializing, self._in_vain = False, 0
            self._slow_starts.discard(worker)
            return None
        if isinstance(message, Initializing):
            worker.is_initializing = True
            return None
        order_id = getattr(message, "order", None)
        order = worker.orders.get(order_id) if order_id is not None else None
        if order is None or order_id is None:
            return None
        worker.questions.pop(order_id, None)  # it goes on: what was answered is of the past
        worker.clocks[order_id] = math.inf if isinstance(message, Waiting) else time.monotonic()
        if isinstance(message, Settled):
            order.reached += message.amount
        elif isinstance(message, Ended):
            del worker.orders[order_id]
            worker.clocks.pop(order_id, None)
            worker.exclusive = False
            self._start_clocks(worker)
            self._age(worker, message.memory)
        return order

    def _age(self, worker: Worker, memory: int) -> None:
        """It ended an order: has it grown too much, or had its last?"""
        if worker.life.grew_too_much(memory):
            worker.is_full = True
            if not self._told_growth:
                said = f"Worker {worker.number} (pid {worker.process.pid}) {worker.life.growth_text()}"
                self._notices.append(Heard(worker.number, Said("NOTICE", said), None))
            self._told_growth = True
        self._let_go_if_full(worker)

    def _buried(self, worker: Worker) -> Iterator[Heard | Died]:
        """A worker is at its end: take its last words, then tell of its death."""
        worker.channel.read_to_the_end()
        yield from self._messages(worker)
        if not worker.process.has_ended(1.0):
            worker.process.kill()
        exitcode = worker.process.exitcode()
        orders = list(worker.orders.values())
        begun = [order for order in orders if order.id in worker.clocks]
        running = [order for order in begun if worker.clocks[order.id] < math.inf]
        waiting = [order for order in begun if order not in running]
        queued = [order for order in orders if order not in begun]
        yield from self._untold(worker, begun)
        self._forget(worker)
        was_asked = worker.is_leaving and (exitcode == 0 or worker.was_cut_short)
        if orders or not was_asked:
            yield self._died(worker, exitcode, running, queued, waiting, was_asked=was_asked)

    def _untold(self, worker: Worker, begun: list[Order]) -> Iterator[Heard]:
        """What a dead worker had done and had not told yet."""
        noted = worker.tallies.read() if worker.tallies else {}
        for order in begun:
            if (amount := noted.get(order.id, 0) - order.reached) > 0:
                message = Settled(order.id, amount, [], None)
                yield Heard(worker.number, message, self._noted(worker, message))

    def _died(
        self, worker: Worker, exitcode: int | None, running: list[Order], queued: list[Order], waiting: list[Order],
        *, was_asked: bool,
    ) -> Died:  # fmt: skip
        ours = any(order.late_at is not None for order in running)
        out_of_memory = exitcode == -signal.SIGKILL and not ours and self._oom.took_one()
        if exitcode is not None and not worker.is_ready:
            self._in_vain += 1
        return Died(
            worker.number, worker.process.pid, exitcode, running, queued, worker.is_ready, was_asked, waiting,
            likely_cause(exitcode, out_of_memory=out_of_memory), self._in_vain, worker.is_initializing,
        )  # fmt: skip

    # Bytes.

    def _start_one(self) -> None:
        with ExitStack() as unless_started, ExitStack() as handed_over:
            ours, theirs = worker_pipe()
            unless_started.callback(ours.close)
            handed_over.callback(theirs.close)
            offers, claims = claims_pipe()
            unless_started.callback(offers.close)
            handed_over.callback(claims.close)
            tallies, tally = tally_file() if self._keeps_tally else (None, None)
            if tallies and tally:
                unless_started.callback(tallies.close)
                handed_over.callback(tally.close)
            process = self._launcher.launch(theirs, claims, tally, self._next_number)
            unless_started.pop_all()
        worker = Worker(
            self._next_number, process, Channel(ours), offers, Life(self._limits), time.monotonic(), tallies=tallies
        )  # fmt: skip
        self._slow_starts.add(worker)
        self._next_number += 1
        self._workers[worker.number] = worker
        self._selector.register(ours.fileno(), worker.watched, (worker, False))
        self._selector.register(process.sentinel, selectors.EVENT_READ, (worker, True))

    def _forget(self, worker: Worker) -> None:
        del self._workers[worker.number]
        self._slow_starts.discard(worker)
        for descriptor in (worker.channel.fileno(), worker.process.sentinel):
            self._selector.unregister(descriptor)
        worker.channel.close()
        worker.offers.close()
        if worker.tallies:
            worker.tallies.close()
        worker.process.close()

    def _send(self, worker: Worker, message: Any) -> None:
        worker.channel.send(message)
        self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        """Have the selector tell when the pipe takes more, while there is more."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.channel.is_behind else 0)
        if worker.watched != events:
            worker.watched = events
            self._selector.modify(worker.channel.fileno(), events, (worker, False))
