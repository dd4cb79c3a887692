"""Settling: what the workers report becomes counts, outcomes, results and retries."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from batchrun.events import Event, ItemTrouble
from batchrun.execution.orders import Order, Settled, Trouble, unpack
from batchrun.items import Item, ItemError, Outcome, OutcomeStatus, done_outcomes

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
        counts, anew = plan.counts, plan.counts_anew
        self._forgiven = counts.failed + counts.quarantined if anew else 0
        self._settled_before = counts.settled if anew else 0
        self.failures: list[Outcome] = list(plan.failures)
        self.results: list[Any] | None = [] if plan.wants_results else None

    def planned(self, items: int) -> None:
        """So many items were cut."""
        self._plan.counts.planned += items
        if self.results is not None:
            self.results.extend([None] * items)

    def take_outcomes(self) -> list[Iterable[Outcome]]:
        """What was settled since the last time; empty where nobody asked for outcomes. Each is made as it is looked at."""
        taken, self._outcomes = self._outcomes, []
        return taken

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

    def settled(self, order: Order, message: Settled) -> None:
        """A worker settled further items of an order."""
        first, values = order.reached - message.amount, message.values
        self._plan.counts.done += message.amount - len(message.troubles)
        if not (message.troubles or message.are_packed):
            self._all_done(order, first, values)
        elif values is not None:
            troubled = {trouble.offset for trouble in message.troubles}
            for offset in range(first, order.reached):
                if offset not in troubled:
                    self._done(order, offset, values[offset - first])
        for trouble in message.troubles:
            self._trouble(order, trouble)

    def _all_done(self, order: Order, first: int, values: list[Any] | None) -> None:
        """The usual case, at a few nanoseconds an item."""
        if values is None:
            return
        if self.results is not None:
            self.results[order.index + first : order.index + order.reached] = values
        if self._plan.wants_outcomes:
            self._outcomes.append(done_outcomes(order.items[first : order.reached], values, order.attempt))

    def _done(self, order: Order, offset: int, packed: Any) -> None:
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
            self._outcomes.append((Outcome(order.items[offset], DONE, value, None, order.attempt),))

    def _trouble(self, order: Order, trouble: Trouble) -> None:
        item = order.items[trouble.offset]
        if trouble.state == "retry":
            self.retry(order, trouble.offset, trouble.after)
        else:
            self.settle(item, OutcomeStatus(trouble.state), trouble.error, order.attempt)

    def retry(self, order: Order, offset: int, after_s: float, *, deaths: int = 0) -> None:
        """An item is to be tried again. It waits here and holds no worker. deaths: of its workers, so far."""
        self._plan.counts.retries += 1
        again = Order(
            order.no, order.pos + offset, [order.items[offset]], order.index + offset, order.attempt + 1, order.base,
            retry=self._plan.book.durable, alone=True, deaths=deaths,
        )  # fmt: skip
        self._wait_for_retry(again, after_s)

    def settle(self, item: Item, status: OutcomeStatus, error: ItemError | None, attempts: int) -> None:
        """An item has come to its end otherwise than done; or done, where only the ledger knew."""
        counts = self._plan.counts
        setattr(counts, status.value, getattr(counts, status.value) + 1)
        outcome = Outcome(item, status, None, error, attempts)
        if status in _BAD:
            if len(self.failures) < MOST_FAILURES:
                self.failures.append(outcome)
            self._emit(ItemTrouble(outcome))
        if self._plan.wants_outcomes:
            self._outcomes.append((outcome,))
