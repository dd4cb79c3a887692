"""The gate: who may begin, commit and roll back on a worker's connection.

A task has a real Session and may call commit(), rollback(), begin_nested() and close(). None of that may split
its work from the mark that says the item is done. So ``do_begin``, ``do_commit`` and ``do_rollback`` of the
worker's dialect *instance* are ours, and the driver runs in autocommit:

    begin      sends BEGIN and the mark in one message, or nothing if the item's transaction is open
    commit     is put off, unless it is the runner's final one; that may begin the next item's transaction in the same message
    rollback   is real, and the next begin takes the mark again; after a commit that was put off it fails the item

Event hooks would not do: in a hook a lost COMMIT arrives as a bare driver error without ``connection_invalidated``,
and psycopg2's own rollback() does nothing in driver autocommit, so that the pool would hand out an open transaction.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from batchrun.database.drivers import Driver, Status
from batchrun.database.pooler import AFTER_COMMIT, AFTER_ROLLBACK, is_pooled_record
from batchrun.database.statements import Effect, effect_of
from batchrun.database.stored import Call, Keeper
from batchrun.database.undoing import instead_of_commit

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from batchrun.database.turnstile import Turnstile


PAST_THE_SESSION = (
    "The task ended the transaction by itself (COMMIT or ROLLBACK past the session): part of its work may be committed. "
    "The item is recorded as failed (partial) and will not run again by itself; look at what it left."
)


class GateError(Exception):
    """Raised through the task or at its end when a rule of the gate was broken; it fails the item."""


class TransactionControl(GateError):
    """The task sent BEGIN, COMMIT or ROLLBACK as text."""


class SplitTransaction(GateError):
    """The task rolled back after it had committed."""


class SwallowedError(GateError):
    """An SQL error was caught and ignored; PostgreSQL would answer COMMIT with ROLLBACK, silently."""


class PartialCommit(GateError):
    """The task ended the transaction behind the runner's back: part of its work may be committed."""


class ConnectionGone(GateError):
    """The task gave its connection up (``session.invalidate()``): work on a new one would not be under the mark."""


class MarkMissed(BaseException):
    """The mark changed no row: somebody else settled the item or took the run over.

    A BaseException, so that a task's ``except Exception`` around its first statement does not swallow it.
    """


class _Here(threading.local):
    """What one thread does on one engine. armed: the gate of its last item."""

    armed: Gate | None = None


Opening = tuple[Sequence[str], Call | None]
"""What begins an item's transaction, and its mark, if there is one."""


class Gate:
    """The state of one raw connection. One thread uses it at a time. here: what all gates of its engine share.

    rehearses: the runner's own COMMIT is a ROLLBACK, behind the checks that COMMIT would make.
    """

    def __init__(
        self,
        raw: Any,
        driver: Driver,
        turnstile: Turnstile | None,
        here: _Here,
        *,
        pooled: bool = False,
        read_only: bool = False,
        rehearses: bool = False,
    ) -> None:
        self.raw = raw
        self._here = here
        self.driver = driver
        self._turnstile = turnstile
        self._pooled = pooled
        self._ends_with = instead_of_commit(driver) if rehearses else ("COMMIT",)
        self._by_transaction = pooled and read_only  # a session of one's own would be told once to refuse writes
        self._pauses = pooled or rehearses or turnstile is not None  # others get their turn between two items
        self.behind: Opening | None = None  # of the next item, to be sent with this one's COMMIT
        self.ahead: Opening | None = None  # it was: that transaction is open already
        self._ahead_changed = 0
        self._opening: Sequence[str] = ()
        self._mark: str | Call | None = None
        self._keeper = Keeper(is_trusted=not pooled)
        self.on_turn: tuple[Callable[[], None], Callable[[], None]] | None = None
        self._single = False  # autocommit: nothing is ever opened
        self.active = False
        self.is_open = False
        self.final = False
        self.committed = False
        self.rolled_back = False
        self.deferred = False
        self.spoilt = False
        self.went_past = False  # the item's transaction was over before anybody ended it through the gate
        self.leaves = False
        self.cursors = False  # a cursor was opened that outlives the transaction unless it is closed
        self.spent_s = self.waited_s = 0.0  # in marks and commits; for its turn to write

    def arm(self, opening: Sequence[str], mark: str | Call | None = None) -> None:
        """Start an item: ``opening`` begins its transaction, and ``mark`` goes with it in one message.

        mark: a text, or a statement that the server keeps; None = nothing is marked here.
        """
        if self.ahead is not None and self.ahead != (opening, mark):
            self.roll_back()
        self._opening, self._mark, self.behind = opening, mark, None
        if not opening and self._by_transaction:
            self._opening = ("BEGIN READ ONLY",)
        self._single = not self._opening
        self.active, self._here.armed = True, self
        self.is_open = self.final = self.committed = self.rolled_back = self.deferred = self.spoilt = self.went_past = False

    def open(self) -> None:
        """Send BEGIN and the mark, if the COMMIT before has not. Raises MarkMissed when the mark changed no row; the
        transaction is then gone.
        """
        if self.ahead is None:
            changed = self._begin()
        else:
            changed, self.ahead = self._ahead_changed, None
        self.is_open, self.committed = True, False
        if changed != 1 and self._mark is not None:
            self.roll_back()
            raise MarkMissed

    def _begin(self) -> int:
        """Rows that the mark changed."""
        began = monotonic()
        if self._turnstile:
            self._turnstile.enter(self.on_turn)
            self.waited_s += monotonic() - began
            began = monotonic()
        try:
            changed = self._send_opening()
        except BaseException:
            self.roll_back()  # BEGIN may have gone through; a task that swallows this must not go on without a transaction
            raise
        self.spent_s += monotonic() - began
        return changed

    def _send_opening(self) -> int:
        """Of what the server keeps a second try may be needed. Nothing has begun yet that it could repeat."""
        mark = self._mark
        if mark is None or isinstance(mark, str):
            return self.driver.send(self.raw, self._opening if mark is None else (*self._opening, mark))
        while True:
            try:
                return self.driver.send(self.raw, (*self._opening, *self._keeper.statements(mark)))
            except Exception as error:
                if not self._keeper.is_surprised(error):
                    raise
                self.driver.send(self.raw, ("ROLLBACK",))

    def roll_back(self) -> None:
        """Really roll back whatever is open; nothing where nothing is."""
        was_open, self.is_open, self.ahead = self.is_open, False, None
        try:
            status = self.driver.status(self.raw)
            self.went_past = self.went_past or (was_open and status is Status.IDLE)
            if status not in (Status.IDLE, Status.UNKNOWN):
                rest = AFTER_ROLLBACK if self._pooled and self.leaves else ()
                self.driver.send(self.raw, ("ROLLBACK", *rest))
        finally:
            self._leave()

    def disarm(self) -> None:
        """End an item: roll back what is still open. The gate then stands open for anybody, with plain semantics."""
        self.active = False
        self.roll_back()

    def forget(self) -> None:
        """The connection is lost: nothing can be sent on it any more."""
        self.active = self.is_open = False
        self.ahead = None
        self._leave()

    def close(self) -> None:
        """The connection is closed."""
        if self._turnstile:
            self._turnstile.close()
            self._turnstile = None

    def _leave(self) -> None:
        if self._turnstile:
            self._turnstile.leave()

    # What SQLAlchemy calls, by way of the dialect.

    def do_begin(self) -> None:
        if not self.active:
            self.driver.send(self.raw, ("BEGIN",))
        elif not self.is_open and not self._single:
            self.open()

    def do_commit(self) -> None:
        if not self.active:
            self.driver.send(self.raw, ("COMMIT",))
        elif self._single:
            return
        elif self.final:
            self._commit()
        else:
            self.deferred = not self._by_transaction  # which has nothing that a rollback could split

    def do_rollback(self) -> None:
        if self.active and self.deferred and self.is_open:
            self.spoilt = True
        if self.active:
            self.rolled_back = True
        self.roll_back()

    def _commit(self) -> None:
        self.check()
        self.is_open = False
        began = monotonic()
        if self.behind is None or self._pauses or self.leaves:
            self.driver.send(self.raw, (*self._ends_with, *self._cleaning()) if self._pooled else self._ends_with)
        else:
            self._commit_and_go_on(self.behind)
        self.spent_s += monotonic() - began
        self.committed = True
        if self._turnstile:
            self._turnstile.leave()

    def _commit_and_go_on(self, behind: Opening) -> None:
        """COMMIT, and what begins the next item, in one message: a round trip less an item."""
        opening, mark = behind
        marking = () if mark is None else self._keeper.statements(mark)
        try:
            self._ahead_changed = self.driver.send(self.raw, (*self._ends_with, *opening, *marking))
        except Exception as error:
            if self.driver.status(self.raw) is not Status.INERROR:
                raise  # of a COMMIT that is refused no transaction is left, of a lost connection nothing is known
            self._keeper.is_surprised(error)
            with contextlib.suppress(Exception):  # this item is committed, whatever the next one will meet
                self.driver.send(self.raw, ("ROLLBACK",))
        else:
            self.ahead = behind

    def _cleaning(self) -> Sequence[str]:
        """Behind a pooler the session goes to somebody else with the COMMIT: leave nothing in it."""
        return AFTER_COMMIT if self.leaves else ("CLOSE ALL",) if self.cursors else ()

    def check(self) -> None:
        """Raise the GateError that forbids this item's COMMIT, if any; costs no round trip."""
        if self.spoilt:
            raise SplitTransaction(
                "The task rolled back after it had committed. Both belong to one item, which batchrun commits once, at its end: "
                "leave commit() out, or do the part that may fail inside session.begin_nested()."
            )
        status = self.driver.status(self.raw)
        if status is Status.INERROR:
            raise SwallowedError(
                "The task caught an SQL error and went on, but PostgreSQL has given the transaction up: none of its work can be "
                "committed. Put the statement that may fail inside session.begin_nested(), or call session.rollback()."
            )
        past = self.went_past and self.driver.name != "pysqlite"  # SQLite also ends a transaction by itself
        if past or status not in (Status.INTRANS, Status.UNKNOWN):
            raise PartialCommit(PAST_THE_SESSION)


def install(
    engine: Engine,
    driver: Driver,
    *,
    read_only: bool,
    wait_s: float,
    turnstile: Callable[[], Turnstile] | None,
    rehearses: bool = False,
) -> dict[int, Gate]:
    """Give every connection of a worker's engine a gate. Returns the gates by ``id`` of the raw connection.

    turnstile: makes each connection's place in SQLite's queue of writers. rehearses: nothing is committed.
    """
    gates: dict[int, Gate] = {}
    here = _Here()
    _take_over(engine.dialect, gates, here)

    @event.listens_for(engine, "connect")
    def connected(raw: Any, record: Any) -> None:
        pooled = is_pooled_record(record)
        driver.prepare(raw, read_only=read_only, wait_s=wait_s, pooled=pooled, as_it_is=rehearses)
        place = turnstile() if turnstile else None
        gates[id(raw)] = Gate(raw, driver, place, here, pooled=pooled, read_only=read_only, rehearses=rehearses)

    @event.listens_for(engine, "close")
    def closed(raw: Any, record: Any) -> None:
        if gate := gates.pop(id(raw), None):
            gate.close()

    return gates


def _take_over(dialect: Any, gates: dict[int, Gate], here: _Here) -> None:
    """Make BEGIN, COMMIT and ROLLBACK of this dialect instance the gates' own, and look at each statement's text."""
    for name in _EXECUTES:
        setattr(dialect, name, _judging(getattr(dialect, name), gates))
    plain_rollback, plain_commit = dialect.do_rollback, dialect.do_commit

    def do_begin(connection: Any) -> None:
        if gate := gates.get(id(connection.dbapi_connection)):
            if not gate.active:
                _refuse_another(gates, here.armed)
            gate.do_begin()

    def do_commit(connection: Any) -> None:
        gate = gates.get(id(connection.dbapi_connection))
        gate.do_commit() if gate else plain_commit(connection)

    def do_rollback(connection: Any) -> None:
        gate = gates.get(id(connection.dbapi_connection))
        gate.do_rollback() if gate else plain_rollback(connection)

    dialect.do_begin, dialect.do_commit, dialect.do_rollback = do_begin, do_commit, do_rollback


def _refuse_another(gates: dict[int, Gate], armed: Gate | None) -> None:
    """SQLAlchemy connects anew where a connection was invalidated. In an item that would go on without its mark."""
    if armed is not None and armed.active and gates.get(id(armed.raw)) is not armed:
        raise ConnectionGone("The task invalidated its connection: what it did there is rolled back, and the mark with it.")


_EXECUTES = ("do_execute", "do_executemany", "do_execute_no_params")


def _judging(plain: Callable[..., None], gates: dict[int, Gate]) -> Callable[..., None]:
    """A listener of ``before_cursor_execute`` would do the same, but a single one has SQLAlchemy dispatch ten events for
    each statement: 6 % of a small item."""

    def do_execute(cursor: Any, statement: str, *others: Any) -> None:
        if (effect := effect_of(statement)) is not Effect.PLAIN:
            _note(effect, gates.get(id(cursor.connection)), statement)
        plain(cursor, statement, *others)

    return do_execute


def _note(effect: Effect, gate: Gate | None, statement: str) -> None:
    """A task's statement does more than its work. Raises TransactionControl."""
    if gate is None or not gate.active:
        return
    if effect is Effect.CONTROL:
        raise TransactionControl(
            f"The task sent {statement.split(None, 1)[0].upper()} as text. batchrun commits an item together with its mark; "
            "use session.commit(), session.rollback() or session.begin_nested(), which it understands."
        )
    gate.leaves = True
