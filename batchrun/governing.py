"""How fast a run may go, and when it ends early: asked by the runner in its loop, never waiting for anything.

batchrun_request  (pause, cancel, tune)  --+
window, max_runtime                      --+-->  stop, as paused or cancelled
rate       -->  how many items may be handed over now       a bucket of tokens
[throttle] -->  how many workers get orders                 halved on a bad sign, one more on a good one
"""

from __future__ import annotations

import time
from collections.abc import Callable

from batchrun import windows
from batchrun.chunks import TARGET_S, ChunkSizer
from batchrun.durations import text as duration
from batchrun.events import Event, Notice
from batchrun.execution.orders import Order
from batchrun.ledger.requests import CANCEL, PAUSE, Request
from batchrun.options import checked_option, rate_shown
from batchrun.plans import RunPlan
from batchrun.runs import RunStatus

BURST_S = TARGET_S
"""A run that is held to a rate may do so much of it at once: a chunk's worth."""

SHORTEST_WAIT_S = 0.01


class Bucket:
    """Tokens, one for each item, that come in at a steady rate. Few are kept: what was not used is not caught up with."""

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """rate: items a second; None = any."""
        self._clock = clock
        self._rate = rate
        self._tokens, self._filled = 1.0, clock()

    @property
    def most(self) -> int | None:
        """Items that may go out together; None = any number."""
        return None if self._rate is None else max(1, int(self._rate * BURST_S))

    def take(self, wanted: int) -> int:
        """How many of so many items may go out now; they are counted."""
        if self._rate is None:
            return wanted
        self._fill(self._rate)
        taken = min(wanted, int(self._tokens + 1e-9))
        self._tokens -= taken
        return taken

    def give_back(self, items: int) -> None:
        """They did not go out after all."""
        self._tokens += items

    def wait_s(self) -> float:
        """Seconds until the next item may go out."""
        return 0.0 if self._rate is None else max(0.0, 1.0 - self._tokens) / self._rate

    def _fill(self, rate: float) -> None:
        now = self._clock()
        room = max(1.0, rate * BURST_S) - self._tokens
        self._tokens += max(0.0, min(room, (now - self._filled) * rate))
        self._filled = now


class Governor:
    """One run's speed, and its early end."""

    def __init__(self, plan: RunPlan, sizer: ChunkSizer, emit: Callable[[Event], None], back: Callable[[Order], None]) -> None:
        """back: takes orders that workers had waiting, and will not begin."""
        self._plan = plan
        self._sizer = sizer
        self._emit = emit
        self._back = back
        self._workers = plan.workers
        self._active = max(1, plan.workers)
        self._looks = 0
        self._troubles: set[str] = set()
        self._slowed = ""
        self._note = self._noted = ""
        self._obeyed: Request | None = None
        self._until = float("inf") if plan.options.max_runtime is None else time.monotonic() + plan.options.max_runtime
        self._set_rate(plan.options.rate)

    # When it ends early.

    def check_time(self) -> None:
        """Is its longest time over?"""
        limit = self._plan.options.max_runtime
        if limit is not None and time.monotonic() >= self._until and not self._plan.stop.level:
            self._plan.stop.end_as(RunStatus.PAUSED, f"its max_runtime of {duration(limit)} is over")

    def check_window(self) -> None:
        """May it work at this hour?"""
        window, moment = self._plan.options.window, windows.now()
        if window is not None and not window.is_open(moment):
            self._plan.stop.end_as(RunStatus.PAUSED, window.closed_text(moment))

    # What people ask from elsewhere.

    def look(self) -> None:
        """About once a second. Raises Busy when the ledger cannot be asked or written just now."""
        self.check_window()
        self._heed_health()
        if self._plan.book.durable:
            self._obey(self._plan.book.request())
        if self._note != self._noted:
            self._plan.book.note(self._note)
            self._noted = self._note

    def _obey(self, asked: Request | None) -> None:
        if asked is None:
            return
        if asked.wanted in (PAUSE, CANCEL):
            status = RunStatus.CANCELLED if asked.wanted == CANCEL else RunStatus.PAUSED
            stop = self._plan.stop
            if stop.status is not status:
                stop.end_as(status, f"asked to {asked.wanted} by {asked.asked_by}")
        if asked.tuned and asked != self._obeyed:
            self._tune(asked)
        if asked.tuned:
            self._obeyed = asked  # so that it is not done again while the ledger cannot take it
            self._plan.book.tune(asked, self._workers)
            self._obeyed = None

    def _tune(self, asked: Request) -> None:
        told = []
        if "rate" in asked.tuned:
            rate = checked_option("rate", asked.tuned["rate"])
            self._set_rate(rate)
            told.append("no rate" if rate is None else f"a rate of {rate_shown(rate)}")
        if self._workers and isinstance(wanted := asked.tuned.get("workers"), int):
            fitting, why = self._plan.fitting(wanted, self._workers)
            if why:
                self._emit(Notice("WARNING", why))
            was_slowed = self._active < self._workers
            self._workers = self._plan.workers = fitting
            self._set_active(min(self._active, fitting) if was_slowed else fitting)
            told.append(f"{fitting} worker{'' if fitting == 1 else 's'}")
        self._emit(Notice("INFO", f"Tuned by {asked.asked_by}: {', '.join(told)}."))

    # How fast it goes.

    def hand_over(self, order: Order) -> bool:
        """May the order go to a worker now? As many of its items as the rate allows."""
        allowed = self._bucket.take(len(order.items))
        order.most = None if allowed == len(order.items) else allowed
        return allowed > 0

    def taken_back(self, order: Order) -> None:
        """It was handed over, and not begun."""
        self._bucket.give_back(order.handed_over)
        order.most = None

    def wait_s(self, longest_s: float) -> float:
        """How long the loop may wait while something is ready to go out."""
        wait_s = self._bucket.wait_s()
        return min(longest_s, max(SHORTEST_WAIT_S, wait_s)) if wait_s else longest_s

    def _set_rate(self, rate: float | None) -> None:
        self._bucket = Bucket(rate)
        self._set_lanes()

    def _set_lanes(self) -> None:
        self._sizer.allow(max(1, self._active) * self._plan.options.threads, self._bucket.most)

    def _set_active(self, active: int) -> None:
        self._active = active
        for order in self._plan.executor.resize(self._workers, active):
            self.taken_back(order)
            self._back(order)
        self._set_lanes()

    def _heed_health(self) -> None:
        """After each look at the database: half the workers if something is beyond its limit, one more if nothing is."""
        watch = self._plan.health
        if watch is None:
            return
        if watch.looks == self._looks:
            if watch.is_stuck:
                self._go_unwatched()
            return
        self._looks = watch.looks
        seen, full = watch.seen, max(1, self._workers)
        for trouble in set(seen.troubles) - self._troubles:
            self._troubles.add(trouble)
            self._emit(Notice("WARNING", f"The database's health cannot be asked. {trouble}"))
        before = self._active
        active = before // 2 if seen.reasons else min(full, before + 1)
        if active != before:
            self._set_active(active)
        self._tell_health(", ".join(seen.reasons), before, full)

    def _go_unwatched(self) -> None:
        """A look that does not come to its end must not hold the run for ever."""
        full = max(1, self._workers)
        if self._active < full:
            self._set_active(full)
            self._note = ""
            self._emit(
                Notice("WARNING", "The database's health is asked in vain: a look does not end. The run goes on at full speed.")
            )

    def _tell_health(self, reason: str, before: int, full: int) -> None:
        active = self._active
        if reason and active < before:
            self._slowed = reason
            self._emit(Notice("INFO", self._speed_text()))
        elif not reason and before < active == full:
            self._slowed = ""
            self._emit(Notice("INFO", f"at full speed again: {full} worker{'' if full == 1 else 's'}"))
        self._note = self._speed_text() if active < full else ""

    def _speed_text(self) -> str:
        """``slowed to 3 workers: replica lag 4.2 s > 2 s``."""
        if self._active == 0:
            return f"held: {self._slowed}"
        return f"slowed to {self._active} worker{'' if self._active == 1 else 's'}: {self._slowed}"
