"""Settling: what the workers report becomes counts, outcomes, results and retries."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from batchrun.events import Event, ItemTrouble
from batchrun.execution.orders import Order, Settled, Trouble, unpack
from batchrun.items import ItemError, Outcome, OutcomeStatus, done_outcomes
from batchrun.ordering import Line

if TYPE_CHECKING:
    from batchrun.plans import RunPlan

MOST_FAILURES = 1000
"""Failures a report holds; all of them are in the ledger."""

PERCENT_FROM = 100
"""From so many settled items on a percentage of failures means something."""

DONE = OutcomeStatus.DONE

_BAD = (OutcomeStatus.FAILED, OutcomeStatus.QUARANTINED, OutcomeStatus.UNKNOWN)


class Settling:
    """Keeps the run's counts in step with what its workers say."""

    def __init__(self, plan: RunPlan, emit: Callable[[Event], None], wait_for_retry: Callable[[Order, float], None]) -> None:
        self._plan = plan
        self._emit = emit
        self._wait_for_retry = wait_for_retry
        self._outcomes: list[Iterable[Outcome]] = []
        self._line = Line() if plan.ordered else None
        if self._line is not None:
            for order in plan.open_orders:
                self._line.plan(order.no, order.pos, len(order.items))
        counts, anew = plan.counts, plan.counts_anew
        self._forgiven = counts.failed + counts.quarantined if anew else 0
        self._settled_before = counts.settled if anew else 0
        self.failures: list[Outcome] = list(plan.failures)
        self.results: list[Any] | None = [] if plan.wants_results else None

    def planned(self, order: Order) -> None:
        """A chunk was cut."""
        items = len(order.items)
        self._plan.counts.planned += items
        if self.results is not None:
            self.results.extend([None] * items)
        if self._line is not None:
            self._line.plan(order.no, order.pos, items)

    @property
    def has_room(self) -> bool:
        """May further items be cut? Not while too many outcomes wait for those before them."""
        return self._line is None or self._line.has_room

    def take_outcomes(self, *, at_the_end: bool = False) -> list[Iterable[Outcome]]:
        """What was settled since the last time; empty where nobody asked for outcomes. Each is made as it is looked at."""
        if self._line is not None:
            return self._line.take_rest() if at_the_end else self._line.take()
        taken, self._outcomes = self._outcomes, []
        return taken

    def _out(self, order: Order, offset: int, items: int, outcomes: Iterable[Outcome], size_bytes: int = 0) -> None:
        """Outcomes of so many items of an order, from ``offset`` on."""
        if self._line is not None:
            self._line.settle(order.no, order.pos + offset, items, outcomes, size_bytes)
        else:
            self._outcomes.append(outcomes)

    def is_over_limit(self) -> bool:
        """More failures than ``max_failures`` allows?"""
        limit, counts = self._plan.options.max_failures, self._plan.counts
        if limit is None:
            return False
        bad = counts.failed + counts.quarantined - self._forgiven
        if limit.count is not None:
            return bad > limit.count
        settled = counts.settled - self._settled_before
        return limit.percent is not None and settled >= PERCENT_FROM and bad * 100 > limit.percent * settled

    def settled(self, order: Order, message: Settled, size_bytes: int = 0) -> None:
        """A worker settled further items of an order. size_bytes: of the message."""
        first, values = order.reached - message.amount, message.values
        self._plan.counts.done += message.amount - len(message.troubles)
        if not (message.troubles or message.are_packed):
            self._all_done(order, first, values, size_bytes)
        elif values is not None:
            troubled = {trouble.offset for trouble in message.troubles}
            for offset in range(first, order.reached):
                if offset not in troubled:
                    self._done(order, offset, values[offset - first], size_bytes // message.amount)
        for trouble in message.troubles:
            self._trouble(order, trouble)

    def _all_done(self, order: Order, first: int, values: list[Any] | None, size_bytes: int) -> None:
        """The usual case, at a few nanoseconds an item."""
        if values is None:
            return
        if self.results is not None:
            self.results[order.index + first : order.index + order.reached] = values
        if self._plan.wants_outcomes:
            outcomes = done_outcomes(order.items[first : order.reached], values, order.attempt)
            self._out(order, first, len(values), outcomes, size_bytes)

    def _done(self, order: Order, offset: int, packed: Any, size_bytes: int) -> None:
        try:
            value = unpack(packed)
        except BaseException as error:  # what a value's class does when it is read here is foreign code
            self._plan.counts.done -= 1
            said = f"The task's value cannot be read by the caller: {type(error).__name__}: {error}"
            self._trouble(order, Trouble(offset, OutcomeStatus.FAILED, ItemError(type(error).__name__, said)))
            return
        if self.results is not None:
            self.results[order.index + offset] = value
        if self._plan.wants_outcomes:
            self._out(order, offset, 1, (Outcome(order.items[offset], DONE, value, None, order.attempt),), size_bytes)

    def _trouble(self, order: Order, trouble: Trouble) -> None:
        if trouble.state == "retry":
            self.retry(order, trouble.offset, trouble.after)
        else:
            self.settle(order, trouble.offset, OutcomeStatus(trouble.state), trouble.error)

    def retry(self, order: Order, offset: int, after_s: float, *, deaths: int = 0) -> None:
        """An item is to be tried again. It waits here and holds no worker. deaths: of its workers, so far."""
        self._plan.counts.retries += 1
        again = Order(
            order.no, order.pos + offset, [order.items[offset]], order.index + offset, order.attempt + 1, order.base,
            retry=self._plan.book.durable, alone=True, deaths=deaths,
        )  # fmt: skip
        self._wait_for_retry(again, after_s)

    def settle(self, order: Order, offset: int, status: OutcomeStatus, error: ItemError | None) -> None:
        """An item has come to its end otherwise than done; or done, where only the ledger knew."""
        counts = self._plan.counts
        setattr(counts, status.value, getattr(counts, status.value) + 1)
        outcome = Outcome(order.items[offset], status, None, error, order.attempt)
        if status in _BAD:
            if len(self.failures) < MOST_FAILURES:
                self.failures.append(outcome)
            self._emit(ItemTrouble(outcome))
        if self._plan.wants_outcomes:
            self._out(order, offset, 1, (outcome,))
