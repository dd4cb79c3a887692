"""A worker process: what runs in the child, from its start to its end.

    start    signals, orphan guards, the task, an engine of its own, the initializer   -> Ready, or Failed
    loop     an order from the pipe -> its items, one after the other                   -> Settled ..., Ended
    end      a Stop from the parent, or the end of the pipe: the parent is gone

The main thread alone reads the pipe. With ``threads=N`` orders go to N threads; with one they run right here.
A worker never imports typer or tqdm.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from batchrun.database.engines import WorkerEngine, abandon_inherited_engines, worker_engine
from batchrun.database.failures import place_of, plain_error
from batchrun.database.runfolder import let_go_in_child
from batchrun.database.turnstile import Turnstile
from batchrun.errors import BatchrunError
from batchrun.execution.attempt import ItemRunner
from batchrun.execution.claims import Claims
from batchrun.execution.link import Refused, Stopping
from batchrun.execution.orders import Failed, Initializing, Message, Ready, Sent, Stop, out_of_frame
from batchrun.execution.orphans import guard_against_orphanhood
from batchrun.execution.recycling import Limits, memory_reader
from batchrun.execution.rehearsing import MeteredItems, MeteredOrders, TimedVoice, count_statements
from batchrun.execution.stacks import Stacks
from batchrun.execution.strategies import OrderRunner
from batchrun.execution.tally import Tally
from batchrun.execution.voice import Voice
from batchrun.execution.work import Work
from batchrun.ledger.marks import Corrupt, Fenced

POLL_S = 0.01
"""How often the one-threaded worker looks for a Stop between items; a look costs as much as a small item."""


def worker_main(
    connection: Connection,
    claims: Connection,
    tally: Connection | None,
    number: int,
    folder: str | None,
    blob: bytes,
    inherited: bool,
    captures_output: bool,
) -> None:
    """Run a worker until it is told to stop.

    claims: where it asks whether an order is still its own. tally: where it notes how far it is; None = nowhere. inherited:
    started by fork, so the parent's engines are here too. captures_output: also what the job's module prints when it is
    imported goes to the parent.
    """
    guard_against_orphanhood(connection, inherited=inherited)
    ignore_signals()
    have_chance_of_its_own()
    if inherited:
        let_go_in_child()
        abandon_inherited_engines()
    send = _sender(connection)
    if captures_output:
        from batchrun.execution.output import capture

        capture(send)
    try:
        work, runners, parts = _prepare(number, folder, blob, Inbox(connection, Claims(claims)), tally, send)
    except BaseException as error:
        _tell_failure(send, error)
        return
    send(Ready(os.getpid(), parts.cleans_up, parts.stacks.hook if parts.stacks else None))
    try:
        runners(work)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone; there is nobody to tell
    except BaseException as error:
        _tell_failure(send, error)
    finally:
        _clean_up(parts, send)


def _clean_up(parts: Parts, send: Callable[[Message], None]) -> None:
    try:
        parts.close()
    except Exception as error:
        with contextlib.suppress(OSError, ValueError):  # the parent may be gone
            told = plain_error(error)
            Voice(send).notice(f"The clean-up of a worker raised {told.type}: {told.message}")


def ignore_signals() -> None:
    """Ctrl-C and a stopping service reach the whole group; the parent alone decides what they mean.

    A handler that does nothing, rather than SIG_IGN, which programs that a task starts would inherit. After a fork out of
    an asyncio program its loop would still be told of our signals, over the socket it has for them.
    """
    signal.set_wakeup_fd(-1)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, frame: None)


def have_chance_of_its_own() -> None:
    """Seed NumPy's generator anew, as Python does with its own after a fork: else all workers would draw the same numbers."""
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()


def _sender(connection: Connection) -> Callable[[Message], None]:
    lock = threading.Lock()

    def send(message: Message) -> None:
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        with lock:
            connection.send_bytes(data)

    return send


def _prepare(
    number: int, folder: str | None, blob: bytes, inbox: Inbox, tally: Connection | None, send: Callable[[Message], None]
) -> tuple[Work, Callable[[Work], None], Parts]:
    if folder is not None:
        from batchrun.loading import install_jobs_package

        install_jobs_package(Path(folder))
    work: Work = pickle.loads(blob)
    parts = Parts(work, number, tally)
    if work.options.timeout is not None:
        parts.stacks = Stacks(work.options.threads)
    if work.initializer is not None:
        send(Initializing())
    state = parts.start()

    def run(work: Work) -> None:
        if work.options.threads == 1:
            _run_here(parts, state, inbox, send)
        else:
            _run_in_threads(parts, state, inbox, send)

    return work, run, parts


class Parts:
    """What a worker holds for its lifetime: engines and the initializer's state.

    memory: tells how much it holds. stacks: how the parent may ask where it is; None = nothing here has a time limit.
    """

    def __init__(self, work: Work, number: int, tally: Connection | None = None) -> None:
        self.work = work
        self._tally = tally
        self._threads = itertools.count()
        self.memory = memory_reader(Limits(growth=work.options.max_worker_growth))
        self.stacks: Stacks | None = None
        self._name = work.application_name(number)
        self.engine = self._engine(work.engine)
        self.books = self._engine(work.books)
        self._rest: Iterator[Any] | None = None
        self._runners: list[ItemRunner] = []
        self._counter = count_statements(self.engine.engine) if work.rehearses and self.engine else None

    def _engine(self, spec: Any) -> WorkerEngine | None:
        if spec is None:
            return None
        options = self.work.options
        folder = self.work.run_folder
        turnstile = None
        if folder is not None and spec.identity == self.work.turnstile_for:
            turnstile = functools.partial(Turnstile, folder)
        read_only = options.read_only and spec is self.work.engine
        return worker_engine(spec, threads=options.threads, application_name=self._name, read_only=read_only, turnstile=turnstile)

    def start(self) -> Any:
        """Call the initializer; what it returns, or yields first, is the state of every task."""
        initializer = self.work.initializer
        if initializer is None:
            return None
        state = initializer()
        if isinstance(state, Iterator) and hasattr(state, "send"):
            self._rest = state
            state = next(state)
        return state

    @property
    def cleans_up(self) -> bool:
        """Has the initializer a rest to run at the end?"""
        return self._rest is not None

    def runner(self, state: Any, pause: Callable[[float], bool], voice: Voice, *, inline: bool = False) -> ItemRunner:
        """One thread's ItemRunner. Each has its own place in the turnstile."""
        given = (self.work, self.engine, self.books, state)
        if self.work.rehearses:
            runner: ItemRunner = MeteredItems(*given, pause=pause, voice=voice, inline=inline, counter=self._counter)
        else:
            runner = ItemRunner(*given, pause=pause, voice=voice, inline=inline)
        self._runners.append(runner)
        return runner

    def voice(self, send: Callable[[Message], None]) -> Voice:
        """One thread's voice."""
        kind = TimedVoice if self.work.rehearses else Voice
        return kind(send, self.stacks.slot()) if self.stacks else kind(send)

    def orders(self, runner: ItemRunner, send: Callable[[Message], None]) -> OrderRunner:
        """What runs orders by a thread's ItemRunner."""
        if isinstance(runner, MeteredItems):
            return MeteredOrders(runner, send, self.memory)
        tally = Tally(self._tally, next(self._threads)) if self._tally else None
        return OrderRunner(runner, send, self.memory, tally)

    def order_runner(self, state: Any, pause: Callable[[float], bool], send: Callable[[Message], None]) -> OrderRunner:
        """What runs the orders of the thread that calls this."""
        return self.orders(self.runner(state, pause, self.voice(send)), send)

    def close(self) -> None:
        """Run the rest of an initializer that yielded, and close connections."""
        if self._rest is not None:
            next(self._rest, None)
        for runner in self._runners:
            runner.close()
        for engine in (self.engine, self.books):
            if engine is not None:
                engine.engine.dispose()


class Inbox:
    """What the parent sent, read by the main thread alone. claims: which of the orders may be begun."""

    def __init__(self, connection: Connection, claims: Claims) -> None:
        self._connection = connection
        self.claims = claims
        self._waiting: deque[Any] = deque()
        self._looked = 0.0
        self.stopping = False

    def next(self) -> Any:
        """Wait for the next order or Stop. Raises EOFError when the parent is gone."""
        if not self._waiting:
            self._read()
        return self._waiting.popleft()

    def pause(self, wait_s: float) -> bool:
        """Wait a while; True as soon as the run is stopping. ``pause(0)`` between items costs next to nothing."""
        now = time.monotonic()
        if wait_s == 0 and now - self._looked < POLL_S:
            return self.stopping
        self._looked = now
        if self._connection.poll(wait_s):
            self._read()
        return self.stopping

    def _read(self) -> None:
        frame = self._connection.recv_bytes()
        message = pickle.loads(frame)
        if isinstance(message, Sent):
            message = out_of_frame(message, frame)
        self.stopping = self.stopping or isinstance(message, Stop)
        self._waiting.append(message)


def _run_here(parts: Parts, state: Any, inbox: Inbox, send: Callable[[Message], None]) -> None:
    orders = parts.order_runner(state, inbox.pause, send)
    while isinstance(message := inbox.next(), Sent):
        if inbox.claims.claim(message.id):
            orders.run(message)


def _run_in_threads(parts: Parts, state: Any, inbox: Inbox, send: Callable[[Message], None]) -> None:
    """Hand orders to threads; each has a connection and a gate of its own."""
    waiting: queue.SimpleQueue[Sent | None] = queue.SimpleQueue()
    stopping, turn = threading.Event(), threading.Lock()

    def take() -> Sent | None:
        """The next order that is still ours, one thread at a time: numbers are claimed in their order."""
        with turn:
            while (sent := waiting.get()) is not None:
                if inbox.claims.claim(sent.id):
                    break
            return sent

    threads = [
        threading.Thread(target=_thread, args=(parts, state, take, stopping, send), name=f"batchrun-{n}", daemon=True)
        for n in range(parts.work.options.threads)
    ]
    for thread in threads:
        thread.start()
    try:
        while isinstance(message := inbox.next(), Sent):
            waiting.put(message)
    finally:
        stopping.set()
        for _ in threads:
            waiting.put(None)
    for thread in threads:
        thread.join()


def _thread(
    parts: Parts, state: Any, take: Callable[[], Sent | None], stopping: threading.Event, send: Callable[[Message], None]
) -> None:
    def pause(wait_s: float) -> bool:
        return stopping.wait(wait_s) if wait_s else stopping.is_set()

    try:
        orders = parts.order_runner(state, pause, send)
        while (sent := take()) is not None and not stopping.is_set():
            orders.run(sent)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the parent is gone; the main thread may be waiting for this one
    except BaseException as error:
        _tell_failure(send, error)


def _tell_failure(send: Callable[[Message], None], error: BaseException) -> None:
    if failure := failure_of(error):
        with contextlib.suppress(OSError, ValueError):
            send(failure)


def failure_of(error: BaseException) -> Failed | None:
    """Why a worker cannot work. None when the run is stopping anyway."""
    if isinstance(error, Stopping):
        return None
    if isinstance(error, Fenced):
        return Failed("fenced", str(error))
    if isinstance(error, Corrupt):
        return Failed("corrupt", str(error))
    if isinstance(error, Refused):
        return Failed("database", str(error))
    told = plain_error(error)
    if isinstance(error, BatchrunError):
        return Failed("job", told.message)
    kind = "database" if isinstance(error, DBAPIError) else "job"
    return Failed(kind, f"{told.type}: {told.message}{place_of(error)}", told.traceback)
