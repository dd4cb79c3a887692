"""The executor without processes: ``workers=0``. The same orders, messages and semantics, in the caller's own thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from batchrun.execution.orders import Away, Ended, Message, Order, Settled, Unreadable, sent
from batchrun.execution.pool import Died, Heard, Worker
from batchrun.execution.recording import RUN_ENDING
from batchrun.execution.strategies import OrderRunner
from batchrun.execution.work import Work
from batchrun.execution.worker import Parts, failure_of


class InlineExecutor:
    """Runs orders right here, for a debugger. A task that kills its process kills this one."""

    def __init__(self, work: Work, is_stopping: Callable[[], bool]) -> None:
        self._work = work
        self._is_stopping = is_stopping
        self._parts: Parts | None = None
        self._runner: OrderRunner | None = None
        self._waiting: deque[Order] = deque()
        self._messages: list[Message] = []
        self._heard: list[tuple[Message, Order | None]] = []
        self._next_order = 0
        self._stopped = self._is_held = False
        self.on_away: Callable[[str], None] | None = None
        """Called at once when the database is waited for: other messages are heard only at an order's end."""

    alive = 1
    queued = 1

    def age_s(self, worker: int) -> float:
        """Nothing had to be started."""
        return 0.0

    def start(self) -> None:
        """Build the engine and call the initializer, as a worker would."""
        if self._runner is not None:
            return
        self._parts = Parts(self._work, 0)
        try:
            state = self._parts.start()
        except (Exception, SystemExit) as error:  # sys.exit() in an initializer is its failure, not the caller's end
            self._heard += [(failure, None)] if (failure := failure_of(error)) else []
            return
        runner = self._parts.runner(state, self._pause, self._parts.voice(self._say), inline=True)
        self._runner = self._parts.orders(runner, self._messages.append)

    def _say(self, message: Message) -> None:
        if isinstance(message, Away) and self.on_away is not None:
            self.on_away(message.why)
        else:
            self._messages.append(message)

    def _pause(self, wait_s: float) -> bool:
        until = time.monotonic() + wait_s
        while not (stopping := self._stopped or self._is_stopping()) and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        return stopping

    def resize(self, workers: int, active: int) -> list[Order]:
        """There is nobody but us, who may be held."""
        self._is_held = active < 1
        taken, self._waiting = (list(self._waiting), deque()) if self._is_held else ([], self._waiting)
        return taken

    def room(self) -> int:
        return 0 if self._stopped or self._is_held else 1 - len(self._waiting)

    def idle(self) -> int:
        return self.room()

    def submit(self, order: Order) -> bool:
        self._next_order += 1
        order.id = self._next_order
        self._waiting.append(order)
        return True

    def recall(self) -> Order | None:
        """Nobody else could have it."""
        return None

    def resend(self, worker: int, order: Order) -> None:
        order.singly = True
        self._waiting.appendleft(order)

    def overdue(self, limit_s: float) -> list[tuple[Worker, Order]]:
        return []

    def locate(self, worker: Worker, order: Order) -> str | None:
        return ""

    def kill(self, worker: Worker) -> None:
        """There is nobody to kill."""

    def stop(self) -> None:
        self._stopped = True

    def leave(self) -> bool:
        """Nobody has to be waited for: ``close`` cleans up."""
        return False

    def wait(self, timeout_s: float) -> Iterator[Heard | Died]:
        """Run one order to its end, then yield what it said. A Ctrl-C in a task comes through; nothing said is lost."""
        if self._waiting and self._runner is not None and not self._heard:
            self._run(self._waiting.popleft())
        elif not self._heard:
            self._pause(timeout_s)
        heard, self._heard = self._heard, []
        for message, order in heard:  # noted one by one: each tells how far the order has come
            yield self._noted(message, order)

    def _run(self, order: Order) -> None:
        assert self._runner is not None
        try:
            self._runner.run(sent(order))
        except RUN_ENDING as error:
            self._messages += [failure] if (failure := failure_of(error)) else [Ended(order.id, 0.0)]
        except KeyboardInterrupt:
            self._messages.append(Ended(order.id, 0.0))
            raise
        finally:
            messages, self._messages[:] = list(self._messages), []
            self._heard += [(message, order) for message in messages]

    def _noted(self, message: Message, order: Order | None) -> Heard:
        if isinstance(message, Settled) and order is not None:
            order.reached += message.amount
        return Heard(0, message, order if isinstance(message, Settled | Ended | Unreadable) else None)

    def close(self) -> None:
        if self._parts is not None:
            self._parts.close()
            self._parts = None
