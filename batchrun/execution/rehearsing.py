"""A dry run's worker: the items run as ever, while a meter looks on.

order -> MeteredOrders -> the usual OrderRunner -> MeteredItems (an ItemRunner) -> transactions, rolled back by the gate
                    \\-> Measured, sent before the order's Ended

What cannot be measured by looking on is tried: after the 1st, 2nd, 4th, 8th ... transaction of each thread a COMMIT, of
nothing but a message in the write-ahead log on PostgreSQL, of a few pages in a file of our own on SQLite.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from batchrun.execution.attempt import ItemRunner
from batchrun.execution.link import Link
from batchrun.execution.orders import Ended, Message, Sent, Settled
from batchrun.execution.strategies import OrderRunner
from batchrun.execution.voice import Voice
from batchrun.insight import Latency
from batchrun.rehearsal import Measured

LOCAL = ("", "localhost", "127.0.0.1", "::1")
PAGES = bytes(3 * 4096)
"""What a small transaction writes to SQLite's write-ahead log."""

PROCESSES = Path("/proc")


class Counter(threading.local):
    """Statements that a thread has sent."""

    statements = 0


def count_statements(engine: Engine) -> Counter:
    """Count what goes through an engine, as the driver gets it; BEGIN and the end of a transaction do not count."""
    counter, dialect = Counter(), engine.dialect
    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        setattr(dialect, name, _counting(getattr(dialect, name), counter))
    return counter


def _counting(plain: Callable[..., None], counter: Counter) -> Callable[..., None]:
    def do_execute(*given: Any) -> None:
        counter.statements += 1
        plain(*given)

    return do_execute


class TimedVoice(Voice):
    """A voice that knows how long its thread has waited for what is no fault of the item's."""

    def __init__(self, send: Callable[[Message], None], note: Callable[[int], None] = lambda order: None) -> None:
        super().__init__(send, note)
        self.waited_s = 0.0
        self._since: float | None = None

    def waiting(self) -> None:
        self._since = self._since or time.monotonic()
        super().waiting()

    def began(self, offset: int = 0) -> None:
        if self._since is not None:
            self.waited_s += time.monotonic() - self._since
            self._since = None
        super().began(offset)


def scheduled(path: Path) -> tuple[float, float] | None:
    """Seconds a process or thread has computed, and has been ready to without a core. None where nobody tells."""
    try:
        on_cpu, queued = path.joinpath("schedstat").read_text().split()[:2]
    except (OSError, ValueError):
        return None
    return int(on_cpu) / 1e9, int(queued) / 1e9


class Server:
    """The server's process behind a connection, where it is on this machine and can be seen."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._path: Path | None = None

    def now(self, link: Link | None) -> tuple[int, float, float] | None:
        """Its process id, and what it has computed and queued; None = not visible."""
        pid = None if link is None or link.is_lost() else link.driver.backend_pid(link.gate.raw)
        if link is None or pid is None or not is_local(link):
            return None
        if pid != self._pid:
            self._pid, self._path = pid, _process(pid)
        found = scheduled(self._path) if self._path else None
        return None if found is None else (pid, *found)


def is_local(link: Link) -> bool:
    """Does the connection lead to this machine?"""
    host = link.connection.engine.url.host or ""
    return host in LOCAL or host.startswith("/")


def _process(pid: int) -> Path | None:
    """Its folder in /proc, if what has that number here is PostgreSQL: in a container it has another one."""
    folder = PROCESSES / str(pid)
    with contextlib.suppress(OSError):
        if folder.joinpath("comm").read_text().startswith("postgres"):
            return folder
    return None


class MeteredItems(ItemRunner):
    """An ItemRunner that notes how long items and transactions take."""

    def __init__(self, *given: Any, counter: Counter | None, **named: Any) -> None:
        super().__init__(*given, **named)
        self.counter = counter or Counter()
        self.took = Latency()
        self.locked_s = 0.0
        self.transactions = 0
        self.tried_s = 0.0
        self.commits: list[float] = []
        self._tries = Tries(self.work.run_folder)
        self._all = 0

    @property
    def waited_s(self) -> float:
        return self.voice.waited_s if isinstance(self.voice, TimedVoice) else 0.0

    def in_transaction(self, mark: Any, body: Callable[..., Any], *given: Any) -> Any:
        began, waited = time.monotonic(), self.waited_s
        try:
            return super().in_transaction(mark, body, *given)
        finally:
            took = time.monotonic() - began - (self.waited_s - waited)
            self.locked_s += took
            if body == self.call_in_session:  # else they are timed one by one
                items = len(given[0]) if self.work.options.batched else 1
                self.took.add(took / max(1, items), items)
            self.transactions += 1
            self._all += 1
            if self._all & (self._all - 1) == 0:
                self._try()

    def call_in_session(self, given: Any, context: Any, *, final: bool = True) -> Any:
        if final:
            return super().call_in_session(given, context)
        began = time.monotonic()
        try:
            return super().call_in_session(given, context, final=False)
        finally:
            self.took.add(time.monotonic() - began)

    def only_reading(self, given: Any, context: Any) -> Any:
        began = time.monotonic()
        try:
            return super().only_reading(given, context)
        finally:
            items = len(given) if self.work.options.batched else 1
            self.took.add((time.monotonic() - began) / max(1, items), items)

    def _try(self) -> None:
        began = time.monotonic()
        if self.link is not None and not self.link.is_lost():
            self.commits += self._tries.commit(self.link)
        self.tried_s += time.monotonic() - began


class Tries:
    """Tries what a COMMIT takes beyond a ROLLBACK. folder: SQLite's, of the run's lock files, which goes when the run ends."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._works = True

    def commit(self, link: Link) -> list[float]:
        """Seconds; empty where it cannot be tried."""
        raw, driver = link.gate.raw, link.driver
        if not self._works or not driver.is_at_rest(raw):
            return []
        try:
            return [self._on_sqlite(raw) if link.is_sqlite else self._on_postgres(driver, raw)]
        except Exception:  # a standby, no right to do it: then it stays unknown
            self._works = False
            with contextlib.suppress(Exception):
                driver.send(raw, ("ROLLBACK",))
            return []

    def _on_postgres(self, driver: Any, raw: Any) -> float:
        took = []
        for end in ("ROLLBACK", "COMMIT"):
            driver.send(raw, ("BEGIN", "SELECT pg_logical_emit_message(true, 'batchrun', 'dry run')"))
            began = time.monotonic()
            driver.send(raw, (end,))
            took.append(time.monotonic() - began)
        return max(0.0, took[1] - took[0])

    def _on_sqlite(self, raw: Any) -> float:
        if self._folder is None or raw.execute("PRAGMA synchronous").fetchone()[0] < 2:
            return 0.0
        with self._folder.joinpath("commit").open("ab") as file:
            began = time.monotonic()
            file.write(PAGES)
            file.flush()
            os.fsync(file.fileno())
            return time.monotonic() - began


class Wal:
    """What the session itself wrote to PostgreSQL's write-ahead log: version 18 counts that for each session."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None
        self._items = 0
        self._orders = 0
        self._works = True

    def after(self, link: Link | None, items: int) -> tuple[int, int]:
        """Bytes and items since the last look; it looks after the 1st, 2nd, 4th, 8th ... order, since that is a round trip."""
        self._items += items
        self._orders += 1
        if link is None or link.is_sqlite or link.is_lost() or not self._works or self._orders & (self._orders - 1):
            return 0, 0
        found = self._look(link)
        last, since = self._last, self._items
        self._last, self._items = found, 0
        return (found[1] - last[1], since) if found and last and found[0] == last[0] else (0, 0)

    def _look(self, link: Link) -> tuple[int, int] | None:
        """The server's process, and its bytes. None below version 18 and where it is not permitted."""
        raw = link.gate.raw
        if not link.driver.is_at_rest(raw):
            return None
        try:
            with contextlib.closing(raw.cursor()) as cursor:
                cursor.execute("SELECT pg_stat_force_next_flush()")
                cursor.execute("SELECT pg_backend_pid(), wal_bytes FROM pg_stat_get_backend_wal(pg_backend_pid())")
                pid, written = cursor.fetchone()
        except Exception:
            self._works = False
            return None
        return int(pid), int(written)


class MeteredOrders(OrderRunner):
    """Runs orders, and sends what each took before it says that it has ended."""

    def __init__(self, runner: MeteredItems, send: Callable[[Message], None], memory: Callable[[], int]) -> None:
        super().__init__(runner, self._pass_on, memory)
        self._plain_send = send
        self._items = runner
        self._thread: Path | None = None
        self._server, self._wal = Server(), Wal()
        self._settled = 0
        self._is_first = True

    def run(self, sent: Sent) -> None:
        """As ``OrderRunner.run``."""
        self._thread = self._thread or PROCESSES / "self" / "task" / str(threading.get_native_id())
        items = self._items
        items.took, items.commits, self._settled = Latency(), [], 0
        items.locked_s = items.tried_s = 0.0
        items.transactions = items.counter.statements = 0
        self._waited = items.waited_s
        self._queued = scheduled(self._thread)
        self._server_then = self._server.now(items.link)
        self._cpu, self._began = time.thread_time(), time.monotonic()
        super().run(sent)

    def _pass_on(self, message: Message) -> None:
        if isinstance(message, Settled):
            self._settled += message.amount
        elif isinstance(message, Ended):
            self._plain_send(self._measured(message.order))
            self._is_first = False
        self._plain_send(message)

    def _measured(self, order: int) -> Measured:
        items = self._items
        waited = items.waited_s - self._waited
        wall = time.monotonic() - self._began - waited - items.tried_s
        cpu, statements = time.thread_time() - self._cpu, items.counter.statements
        queued = scheduled(self._thread) if self._thread else None
        server, server_queued = self._served()
        written, of_items = self._wal.after(items.link, self._settled)
        return Measured(
            order, self._settled, max(0.0, wall), waited, cpu, queued[1] - self._queued[1] if queued and self._queued else 0.0,
            server, server_queued, items.locked_s, statements, items.transactions, dict(items.took.counts),
            tuple(items.commits), written, of_items, self._is_first,
        )  # fmt: skip

    def _served(self) -> tuple[float | None, float]:
        then, now = self._server_then, self._server.now(self._items.link)
        if then is None or now is None or then[0] != now[0]:
            return None, 0.0
        return now[1] - then[1], now[2] - then[2]
