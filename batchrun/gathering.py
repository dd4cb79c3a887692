"""Gathering: what the workers say of their time becomes the run's Insight. It watches and changes nothing.

Ready, Settled, Ended, Died  ->  lanes, timeline, latency, slowest items
Notice, ItemTrouble          ->  notes, errors by class
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from batchrun.codec import key_text
from batchrun.events import Event, ItemTimed, ItemTrouble, Notice
from batchrun.execution.orders import Ended, Order, Settled
from batchrun.execution.pool import Died
from batchrun.insight import MOST_LANES, MOST_SLOW, Insight, Lane, Latency
from batchrun.runs import Counts

ITEM_LENGTH = 200
OTHERS = -1
"""The lane of the workers beyond the first 256."""


class Gathering:
    """Keeps an Insight. earlier: of the run's former calls, which goes on. counts: the run's live record.

    threads: orders at once in a worker.
    """

    def __init__(self, earlier: Insight | None, counts: Counts, threads: int, redact: Callable[[str], str]) -> None:
        self.insight = earlier or Insight()
        self._counts, self._done = counts, counts.done
        self._threads = max(1, threads)
        self._redact = redact
        self._before = self.insight.elapsed_s
        self._began = time.monotonic()
        self._lanes: dict[int, Lane] = {}
        self._gone: set[int] = set()
        if earlier is not None and earlier.elapsed_s:
            self.insight.breaks.append(earlier.elapsed_s)

    @property
    def now_s(self) -> float:
        """Seconds of work since the run began."""
        return self._before + time.monotonic() - self._began

    def __call__(self, event: Event) -> None:
        """An observer."""
        if isinstance(event, Notice):
            self.insight.note(self.now_s, event.level, event.text)
        elif isinstance(event, ItemTrouble):
            found = self.insight
            found.failed[found.step_of(self.now_s)] += 1
            if event.outcome.error is not None:
                found.failed_with(event.outcome.error.type)

    def ready(self, worker: int, pid: int, start_up_s: float) -> None:
        """A worker takes orders from now on."""
        lane = self._lane(worker)
        lane.pid, lane.start_up_s = pid, start_up_s
        lane.began_s = max(0.0, lane.began_s - start_up_s)

    def heard(self, order: Order, message: object, worker: int) -> None:
        """What a worker said of an order."""
        if isinstance(message, Settled):
            self._settled(message, worker)
        elif isinstance(message, Ended):
            self._ended(order, message, worker)

    def _settled(self, message: Settled, worker: int) -> None:
        self._count()
        self._lane(worker).items += message.amount

    def _ended(self, order: Order, message: Ended, worker: int) -> None:
        timing, lane, found = message.timing, self._lane(worker), self.insight
        now = lane.ended_s = self.now_s
        self._fill(lane, now - message.busy_s, now)
        if timing is None:
            return
        found.latency.merge(Latency(timing.steps))
        lane.commit_s += timing.commit_s / self._threads
        lane.task_s += max(0.0, message.busy_s - timing.commit_s - timing.waited_s) / self._threads
        for seconds, offset in timing.slowest:
            if offset < len(order.items) and (len(found.slowest) < MOST_SLOW or seconds > found.slowest[-1].seconds):
                found.slow(self._redact(key_text(order.items[offset]))[:ITEM_LENGTH], seconds, worker)

    def died(self, died: Died) -> None:
        """A worker is gone; if it was not asked to leave, its lane says so."""
        lane = self._lane(died.worker)
        lane.ended_s = self.now_s
        self._gone.add(died.worker)
        if not died.was_asked:
            lane.died = died.cause or f"exit code {died.exitcode}"

    def _count(self) -> None:
        """Not what messages say: what a dead worker had done, the ledger alone knows."""
        found, done = self.insight, self._counts.done
        found.done[found.step_of(self.now_s)] += done - self._done
        self._done = done

    def text(self) -> str:
        """As the ledger keeps it, up to now."""
        self._count()
        found = self.insight
        found.elapsed_s = self.now_s
        for worker, lane in self._lanes.items():
            if worker not in self._gone:
                lane.ended_s = max(lane.ended_s, found.elapsed_s)
        return found.to_json()

    def _lane(self, worker: int) -> Lane:
        lane = self._lanes.get(worker)
        if lane is None:
            lanes, now = self.insight.lanes, self.now_s
            if len(lanes) >= MOST_LANES:
                others = lanes[-1] if lanes[-1].number == OTHERS else None
                lane = others or Lane(OTHERS, began_s=now, ended_s=now)
                lanes[-1] = lane
            else:
                lane = Lane(worker, began_s=now, ended_s=now)
                lanes.append(lane)
            self._lanes[worker] = lane
        return lane

    def _fill(self, lane: Lane, began_s: float, ended_s: float) -> None:
        """The worker was busy from one moment to another."""
        found = self.insight
        last = found.step_of(ended_s)
        began_s = max(0.0, began_s)
        first = found.step_of(began_s)
        lane.busy.extend([0.0] * (last + 1 - len(lane.busy)))
        for step in range(first, last + 1):
            share = min(ended_s, (step + 1) * found.step_s) - max(began_s, step * found.step_s)
            lane.busy[step] += max(0.0, share) / self._threads


def timed(order: Order, message: Settled, worker: int) -> Iterator[ItemTimed]:
    """One event for each item of a message that says how long they took."""
    spans = message.spans or []
    states = {trouble.offset: trouble.state for trouble in message.troubles}
    began = time.time() - sum(seconds * items for seconds, items in spans)
    offset = order.reached - message.amount
    for seconds, items in spans:
        for _ in range(items):
            yield ItemTimed(order.items[offset], states.get(offset, "done"), began, seconds, worker, order.attempt)
            began, offset = began + seconds, offset + 1
