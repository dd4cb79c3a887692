"""Burials: a worker died with work in hand. Bill the death to the item that ran, and give the rest back.

one item ran, by itself              billed to it; the third time it is quarantined
several ran (threads, chunk, list)   nobody is billed: each is tried again alone
none ran: it waited for its turn     nobody is billed
the worker was killed for overrunning   the item failed with ItemTimeout, which is no death
transaction="none", under way        unknown, or again where the job is idempotent
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from batchrun.books import DEATHS_TO_QUARANTINE
from batchrun.codec import key_text
from batchrun.errors import BatchrunError, ItemTimeout, JobError
from batchrun.events import Event, Notice
from batchrun.execution.deaths import advice, describe_exit
from batchrun.execution.orders import Order
from batchrun.execution.pool import Died
from batchrun.items import ItemError, OutcomeStatus
from batchrun.retries import backoff_s, may_retry

if TYPE_CHECKING:
    from batchrun.plans import RunPlan
    from batchrun.settling import Settling

STARTS_IN_VAIN = 3
"""Workers that die before they are ready, in a row, until the run gives up: starting more would mend nothing."""

KILLED_IN_VAIN = 20
"""The same where SIGKILL ends them: somebody from outside does that, who may stop doing it."""


class Burials:
    """Deaths whose bill is not written yet. The book may be busy: a zombie can hold its row for a while."""

    def __init__(self, plan: RunPlan, settling: Settling, emit: Callable[[Event], None], back: Callable[[Order], None]) -> None:
        self._plan = plan
        self._settling = settling
        self._emit = emit
        self._back = back
        self._released: deque[tuple[int, list[tuple[Died, Order]]]] = deque()
        self.failure: BatchrunError | None = None

    @property
    def pending(self) -> bool:
        return bool(self._released)

    def add(self, died: Died) -> None:
        """A worker is gone."""
        if not died.was_ready and died.in_vain >= (KILLED_IN_VAIN if died.exitcode == -signal.SIGKILL else STARTS_IN_VAIN):
            self.failure = self.failure or _in_vain(died)
        if begun := died.running + died.waiting:
            self._released.append((died.worker, [(died, order) for order in begun]))
        elif died.was_ready and not self._plan.stop.level:
            self._emit(
                Notice(
                    "WARNING",
                    f"Worker {died.worker} (pid {died.pid}) {_end_of(died)} while it had nothing to do.",
                )
            )

    def settle(self) -> Iterator[int]:
        """Write the bills; yields chunks that are through. Raises Busy when the book must be asked again."""
        while self._released:
            worker, deaths = self._released[0]
            self._plan.book.release(worker)
            killed = any(order.late_at is not None for _, order in deaths)
            while deaths:
                yield from self._one(*deaths[0], killed=killed)
                deaths.pop(0)
            self._released.popleft()

    @property
    def _threads(self) -> int:
        return self._plan.options.threads

    def _one(self, died: Died, order: Order, *, killed: bool) -> Iterator[int]:
        """killed: it did not die, we ended it for an item that overran, which need not be this order's."""
        if self._catch_up(died, order):
            yield from self._rest(order, alone=order.alone)
            return
        if order.reached >= len(order.items):
            yield from self._through(order)
            return
        if order.reached >= order.handed_over:  # what the worker had of it is settled, so nothing of it ran
            yield from self._rest(order, alone=order.alone)
            return
        options = self._plan.options
        together = options.transaction == "chunk" or options.batched or options.read_only
        several = len(died.running) > 1 or (order.exclusive is False and self._threads > 1)
        shared = together and not order.alone and len(order.items) > 1
        if died.exitcode is None or died.was_asked or order in died.waiting:
            yield from self._rest(order, alone=order.alone, deaths=order.deaths)
        elif killed and order.late_at != order.reached:  # another item was late, or this one settled at the last moment
            yield from self._rest(order, alone=order.alone, exclusive=order.exclusive, deaths=order.deaths)
        elif killed and (several or shared or self._unsure(order)):  # who holds the interpreter's lock holds up the others
            yield from self._rest(order, alone=True, exclusive=self._threads > 1, deaths=order.deaths)
        elif killed:
            self._overran(order)
            yield from self._rest(order, alone=order.alone)
        elif several or shared:
            self._tell(died, order, "It shared the worker with others, so it is tried again alone.")
            yield from self._rest(order, alone=True, exclusive=self._threads > 1)
        else:
            yield from self._bill(died, order)

    def _unsure(self, order: Order) -> bool:
        """Without a ledger, items that were settled in the last millisecond before one hung are not known to be."""
        return not (self._plan.book.durable or order.alone) and order.reached + 1 < len(order.items)

    def _catch_up(self, died: Died, order: Order) -> bool:
        """Items that were settled, but whose report died with the worker. True when the last of them was cut off instead."""
        known = self._plan.book.known(order)
        while order.reached < known.settled:
            fate = known.fates.get(order.reached)
            if fate is not None and fate.state == "running":
                self._cut_off(died, order)
                return True
            if fate is not None and fate.state == "retry":
                self._settling.retry(order, order.reached, fate.after_s)
            else:
                status = OutcomeStatus(fate.state) if fate else OutcomeStatus.DONE
                self._settling.settle(order, order.reached, status, fate.error if fate else None)
            order.reached += 1
        return False

    def _cut_off(self, died: Died, order: Order) -> None:
        """Without a session the mark moves on before the task, so the item that ran is the last one that is marked."""
        offset = order.reached
        late = order.late_at == offset
        deaths = (order.deaths if offset == 0 else 0) + 1
        again = self._plan.options.idempotent and not late and deaths < DEATHS_TO_QUARANTINE  # or it would kill for ever
        self._plan.book.cut_off(order, offset, "retry" if again else "unknown")
        order.reached += 1
        if again:
            self._settling.retry(order, offset, 0.0, deaths=deaths)
        else:
            error = (
                self._overrun(order) if late else ItemError("CutOff", f"Its worker {_end_of(died)} while the task was running.")
            )
            error = replace(error, message=f"{error.message} What it did outside the database is not known.")
            self._settling.settle(order, offset, OutcomeStatus.UNKNOWN, error)

    def _bill(self, died: Died, order: Order) -> Iterator[int]:
        said = f"Its worker {_end_of(died)} while running it."
        error = ItemError("WorkerDied", f"{said} That was death {DEATHS_TO_QUARANTINE} of this item, and the last.")
        billed = self._plan.book.bill(order, error)
        if billed.quarantined:
            self._tell(died, order, f"That was death {billed.deaths} of this item: it is quarantined.")
            self._settling.settle(order, order.reached, OutcomeStatus.QUARANTINED, error)
            order.reached += 1
        else:
            self._tell(
                died, order, f"It was not committed and will be tried again (death {billed.deaths} of {DEATHS_TO_QUARANTINE})."
            )
            order.deaths = billed.deaths
        yield from self._rest(order, alone=True, deaths=0 if billed.quarantined else billed.deaths)

    def _overran(self, order: Order) -> None:
        options = self._plan.options
        error = self._overrun(order)
        again = issubclass(ItemTimeout, options.retry_on) and may_retry(order.attempt, order.base, options.retries)
        after = backoff_s(order.attempt) if again else None
        if self._plan.book.overran(order, error, after):
            if after is None:
                self._settling.settle(order, order.reached, OutcomeStatus.FAILED, error)
            else:
                self._settling.retry(order, order.reached, after)
        order.reached += 1

    def _overrun(self, order: Order) -> ItemError:
        found = f"; {order.found}" if order.found else ""
        limit = self._plan.options.timeout or 0.0
        return ItemError("ItemTimeout", f"The item's time limit of {limit:g} s is over and its worker had to be killed{found}.")

    def _rest(self, order: Order, *, alone: bool, exclusive: bool = False, deaths: int = 0) -> Iterator[int]:
        rest = order.rest(alone=alone, exclusive=exclusive, deaths=deaths)
        if rest.items:
            self._back(rest)
        else:
            yield from self._through(order)

    def _through(self, order: Order) -> Iterator[int]:
        if self._plan.book.durable and not order.retry:
            yield order.no

    def _tell(self, died: Died, order: Order, what_now: str) -> None:
        item = key_text(order.items[order.reached])
        self._emit(
            Notice(
                "WARNING",
                f"Worker {died.worker} (pid {died.pid}) {_end_of(died)} while running item {item} of run "
                f"{self._plan.book.run}. {what_now} {advice(died.exitcode)}".rstrip(),
            )
        )


def _end_of(died: Died) -> str:
    """How a worker ended, and what that likely comes from."""
    return f"{describe_exit(died.exitcode)}{f' ({died.cause})' if died.cause else ''}"


def _in_vain(died: Died) -> BatchrunError:
    """Why the run gives up. What an initializer does to its worker is the job's."""
    how = describe_exit(died.exitcode).replace("was ", "were ", 1)
    ended = f"{died.in_vain} workers in a row {how} before they were ready"
    cause = f": {died.cause}" if died.cause else ""
    if died.initializing:
        return JobError(f"{ended}, the last in its initializer{cause}. Run with workers=0 to see why.")
    return BatchrunError(f"{ended}{cause}. Run with workers=0 to see why.")
