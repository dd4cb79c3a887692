"""One thread's hold on the database: a connection, its gate, and getting a new one when it is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from batchrun.database.engines import WorkerEngine, begin_statement
from batchrun.database.failures import Meaning, is_refusal, message_of
from batchrun.database.gate import Gate
from batchrun.database.pooler import is_pooled
from batchrun.execution.patience import Patience, Stopping
from batchrun.execution.voice import Voice

__all__ = ["Link", "Refused", "Stopping"]

READ_ONLY_NOW = "it takes no writes just now (a standby, or default_transaction_read_only is on)"

# What a connection that was lost may have left on the server: a transaction that still holds the item's mark. A pooler's
# process ids are its own; there the name does not fit and nothing happens.
_END_OLD = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {} AND pid <> pg_backend_pid() "
    "AND application_name LIKE 'batchrun:%' AND application_name = current_setting('application_name') "
    "AND usename = current_user AND datname = current_database()"
)


class Refused(BaseException):
    """The database turned a worker away for good: a password, a missing database. No item is to blame."""


class Link:
    """Holds one connection for as long as it is good; with ``pool = "null"`` for one transaction."""

    def __init__(self, engine: WorkerEngine, pause: Callable[[float], bool], voice: Voice) -> None:
        self._engine = engine
        self._voice = voice
        self.patience = Patience(pause, voice)  # pause waits; True = the run is stopping
        self._pid: int | None = None
        self._left: int | None = None  # the server's process behind a connection that was lost
        self._doubts_writes = False
        self._held: Connection | None = None
        self._gate: Gate | None = None
        self._holds = engine.spec.pool != "null"
        self.driver = engine.driver
        self.dialect = engine.engine.dialect
        self.begin = begin_statement(engine.spec, engine.engine.dialect.name)
        self.is_sqlite = engine.engine.dialect.name == "sqlite"

    @property
    def connection(self) -> Connection:
        assert self._held is not None
        return self._held

    @property
    def gate(self) -> Gate:
        assert self._gate is not None
        return self._gate

    def ensure(self) -> Gate:
        """Return the gate of a good connection, connecting if need be.

        A server that is away is waited for, with a growing pause; a refusal (a password, a missing database)
        raises Refused. Raises Stopping when the run ends meanwhile.
        """
        while self._gate is None:
            try:
                gate = self._connect()
            except DBAPIError as error:
                if is_refusal(error):
                    raise Refused(" ".join(message_of(error).split())) from None
                self.patience.wait(" ".join(message_of(error).split()))
                continue
            if gate is None:
                self.patience.wait(READ_ONLY_NOW)
        return self._gate

    def _connect(self) -> Gate | None:
        """A new connection; None where it leads to a server that takes no writes, although one that does is needed."""
        held = self._engine.engine.connect()
        raw: Any = held.connection.dbapi_connection
        if self._is_unfit(raw):
            held.invalidate()
            held.close()
            return None
        self._held = held
        self._gate = self._engine.gates[id(raw)]
        self._gate.on_turn = (self._voice.waiting, self._voice.began)
        self._pid = None if is_pooled(held) else self.driver.backend_pid(raw)  # a pooler's number is nobody's
        return self._gate

    def _is_unfit(self, raw: Any) -> bool:
        """Asked only of the first connection after one that was lost: at most two round trips then, and none otherwise."""
        if self._left is None and not self._doubts_writes:
            return False
        try:
            with raw.cursor() as cursor:
                if self._doubts_writes:
                    cursor.execute("SELECT current_setting('transaction_read_only')")
                    if cursor.fetchone()[0] == "on":
                        return True
                    self._doubts_writes = False
                if self._left is not None:
                    cursor.execute(_END_OLD.format(self._left))
                    self._left = None
        except Exception:  # lost again, or not permitted: the mark will tell
            return self.driver.is_closed(raw)
        return False

    def doubt(self) -> None:
        """The server writes nothing: the next connection must lead to one that does."""
        self.drop()
        self._doubts_writes = not self.is_sqlite

    def hold(self, error: BaseException, meaning: Meaning) -> None:
        """Wait before the same is tried again, because the database cannot do it now. Raises Stopping."""
        if meaning is Meaning.READ_ONLY:
            self.doubt()
        self.patience.wait(" ".join(message_of(error).split()), until_done=meaning is Meaning.FULL)

    def is_lost(self) -> bool:
        """Is our connection gone for good? An error of another connection, which a task may use, does not count."""
        return self._gate is None or self._held is None or self._held.invalidated or self.driver.is_closed(self._gate.raw)

    def drop(self) -> None:
        """The connection is lost, or soiled: let it go and close it."""
        held, gate = self._held, self._gate
        self._held = self._gate = None
        self._left, self._pid = self._pid, None
        if gate is not None:
            gate.forget()
        if held is not None:
            with contextlib.suppress(Exception):  # whatever the driver makes of a connection it cannot use
                held.invalidate()
            held.close()

    def close(self) -> None:
        """The end of its thread's work: give the connection back, so that disposing of the engine closes it."""
        held, gate = self._held, self._gate
        self._held = self._gate = None
        if gate is not None:
            gate.active = False
        if held is not None:
            held.close()

    def take_spent(self) -> tuple[float, float]:
        """Seconds that this connection spent in marks and commits, and waited for its turn to write, since the last time."""
        gate = self._gate
        if gate is None:
            return 0.0, 0.0
        spent = gate.spent_s, gate.waited_s
        gate.spent_s = gate.waited_s = 0.0
        return spent

    def rest(self) -> bool:
        """After an item that went well: the gate stands open, or the next item has begun. False where more is to be settled."""
        held, gate = self._held, self._gate
        if held is None or gate is None or gate.leaves or not self._holds or held.get_transaction() is not None:
            return False
        gate.active = False
        if gate.ahead is not None:
            return self.driver.is_prepared(gate.raw)
        return self.driver.is_at_rest(gate.raw)

    def settle_down(self) -> None:
        """Between items: close what the item ended with, and drop a connection the next item must not see."""
        gate = self._gate
        held = self._held
        if gate is None or held is None:
            return
        gate.disarm()
        held.rollback()  # a COMMIT that was refused leaves SQLAlchemy's own transaction behind
        if gate.leaves or not self.driver.is_prepared(gate.raw):
            self.drop()
            self._left = None  # it was closed in good order
        elif not self._holds:
            held.close()
            self._held = self._gate = None

    @property
    def is_ahead(self) -> bool:
        """Has the last COMMIT begun the next item's transaction?"""
        return self._gate is not None and self._gate.ahead is not None

    @property
    def keeps_statements(self) -> bool:
        """Does a connection last long enough for the server to keep a statement prepared?"""
        return self._holds and not self.is_sqlite

    def opening(self, *, lift_read_only: bool) -> list[str]:
        """What begins a transaction of the books, also in a session that otherwise refuses writes."""
        if not lift_read_only:
            return [self.begin]
        return ["PRAGMA query_only = 0", self.begin] if self.is_sqlite else ["BEGIN READ WRITE"]

    def refuse_writes(self) -> None:
        """After such a transaction."""
        if self.is_sqlite:
            self.driver.send(self.gate.raw, ("PRAGMA query_only = 1",))

    def commit_now(self) -> None:
        """Commit the item's transaction through SQLAlchemy, so that a lost COMMIT is seen for what it is."""
        transaction = self.connection.begin()
        transaction.commit()
