"""One thread's hold on the database: a connection, its gate, and getting a new one when it is lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from batchrun.database.engines import WorkerEngine, begin_statement
from batchrun.database.failures import is_refusal, message_of
from batchrun.database.gate import Gate
from batchrun.execution.voice import Voice

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0


class Stopping(BaseException):
    """The run is to end while a worker waits for the database. A BaseException, because no task may catch it."""


class Refused(BaseException):
    """The database turned a worker away for good: a password, a missing database. No item is to blame."""


class Link:
    """Holds one connection for as long as it is good; with ``pool = "null"`` for one transaction."""

    def __init__(self, engine: WorkerEngine, pause: Callable[[float], bool], voice: Voice) -> None:
        self._engine = engine
        self._pause = pause  # waits; True = the run is stopping
        self._voice = voice
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
        if self._gate is not None:
            return self._gate
        pause, told = FIRST_PAUSE_S, False
        while True:
            try:
                gate = self._connect()
                if told:
                    self._voice.began()
                return gate
            except DBAPIError as error:
                if is_refusal(error):
                    raise Refused(" ".join(message_of(error).split())) from None
                if not told:
                    self._voice.waiting()
                    self._voice.notice(f"The database cannot be reached; waiting for it: {' '.join(message_of(error).split())}")
                    told = True
            if self._pause(pause * random.uniform(0.5, 1.0)):
                raise Stopping
            pause = min(pause * 2, LONGEST_PAUSE_S)

    def _connect(self) -> Gate:
        self._held = self._engine.engine.connect()
        raw: Any = self._held.connection.dbapi_connection
        self._gate = self._engine.gates[id(raw)]
        self._gate.on_turn = (self._voice.waiting, self._voice.began)
        return self._gate

    def is_lost(self) -> bool:
        """Is our connection gone for good? An error of another connection, which a task may use, does not count."""
        return self._gate is None or self._held is None or self._held.invalidated or self.driver.is_closed(self._gate.raw)

    def drop(self) -> None:
        """The connection is lost, or soiled: let it go and close it."""
        held, gate = self._held, self._gate
        self._held = self._gate = None
        if gate is not None:
            gate.forget()
        if held is not None:
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

    def settle_down(self) -> None:
        """Between items: close what the item ended with, and drop a connection the next item must not see."""
        gate = self._gate
        if gate is None or self._held is None:
            return
        gate.disarm()
        self._held.rollback()  # a COMMIT that was refused leaves SQLAlchemy's own transaction behind
        if gate.leaves or not self.driver.is_prepared(gate.raw):
            self.drop()
        elif not self._holds:
            self._held.close()
            self._held = self._gate = None

    def opening(self, mark: str, *, lift_read_only: bool) -> list[str]:
        """What begins a transaction of the books, also in a session that otherwise refuses writes."""
        if not lift_read_only:
            return [self.begin, mark]
        return ["PRAGMA query_only = 0", self.begin, mark] if self.is_sqlite else ["BEGIN READ WRITE", mark]

    def refuse_writes(self) -> None:
        """After such a transaction."""
        if self.is_sqlite:
            self.driver.send(self.gate.raw, ("PRAGMA query_only = 1",))

    def commit_now(self) -> None:
        """Commit the item's transaction through SQLAlchemy, so that a lost COMMIT is seen for what it is."""
        transaction = self.connection.begin()
        transaction.commit()
