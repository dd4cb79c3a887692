"""What ``batchrun schedule run`` writes: who leads, and which firing of each job was last dealt with.

lead    the row of job "": a compare-and-swap of its token, once its leader let go, is gone or has been silent for the lease
renew   the heartbeat, by the server's clock
mark    a job's firing, by the leader alone and each once: whoever changes the row starts the job

A firing is marked before its job is started. A leader that dies in between has left that firing out; the other way round it
might be started twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine, exists, select, update

from batchrun.ledger import liveness
from batchrun.ledger.owner import Owner
from batchrun.ledger.reading import now_expression
from batchrun.ledger.schema import Tables

LEADER = ""
"""The job of the loop's own row."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who leads instead of us. silent_s: since its last heartbeat."""

    shown: str
    silent_s: float


@dataclass(slots=True)
class ScheduleBook:
    """One loop's hand on ``batchrun_schedule``. Every method raises Busy where it cannot write just now."""

    engine: Engine
    tables: Tables
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    process: str = field(default_factory=lambda: str(liveness.this_process()))
    _writer: Owner = field(init=False)

    def __post_init__(self) -> None:
        self._writer = Owner(self.engine, self.tables, "")

    def lead(self) -> Holder | None:
        """Become the leader: None. Where another is: who."""
        schedule, now = self.tables.schedule, now_expression(self.engine.dialect.name)
        with self._writer.writing() as connection:
            self._add(connection, LEADER, None)
            query = select(schedule.c.token, schedule.c.owner, schedule.c.heartbeat, (now - schedule.c.heartbeat).label("silent"))
            row = connection.execute(query.where(schedule.c.job == LEADER).with_for_update()).one()
            owner = liveness.parse(row.owner)
            is_free = row.token in ("", self.token) or (owner is not None and liveness.is_provably_gone(owner))
            if not is_free and row.silent < liveness.LEASE_S:
                return Holder(owner.shown if owner else "another process", float(row.silent))
            connection.execute(
                update(schedule).where(schedule.c.job == LEADER).values(token=self.token, owner=self.process, heartbeat=now)
            )
        return None

    def renew(self) -> bool:
        """Say that the leader lives. False when another leads now."""
        schedule, now = self.tables.schedule, now_expression(self.engine.dialect.name)
        with self._writer.writing() as connection:
            mine = (schedule.c.job == LEADER, schedule.c.token == self.token)
            return connection.execute(update(schedule).where(*mine).values(heartbeat=now)).rowcount == 1

    def release(self) -> None:
        """Let another lead at once."""
        schedule = self.tables.schedule
        with self._writer.writing() as connection:
            connection.execute(update(schedule).where(schedule.c.job == LEADER, schedule.c.token == self.token).values(token=""))

    def fired(self, jobs: Iterable[str], now: float) -> dict[str, float]:
        """The firing last dealt with of each job; ``now`` for those that have never been seen: they have missed nothing."""
        schedule = self.tables.schedule
        with self._writer.writing() as connection:
            for job in jobs:
                self._add(connection, job, now)
            rows = connection.execute(select(schedule.c.job, schedule.c.fired).where(schedule.c.job.in_(list(jobs)))).all()
        return {row.job: now if row.fired is None else float(row.fired) for row in rows}

    def mark(self, job: str, firing: float, *, is_reset: bool = False) -> bool:
        """Deal with a firing, as the leader. False when it was dealt with before, or another leads.

        is_reset: whatever was dealt with, because the clock was put back.
        """
        schedule = self.tables.schedule
        leader = schedule.alias("leader")
        leads = exists().where(leader.c.job == LEADER, leader.c.token == self.token)
        before = () if is_reset else (schedule.c.fired < firing,)
        with self._writer.writing() as connection:
            changed = connection.execute(update(schedule).where(schedule.c.job == job, leads, *before).values(fired=firing))
            return changed.rowcount == 1

    def _add(self, connection: Connection, job: str, fired: float | None) -> None:
        """Make sure that a row is there."""
        from sqlalchemy.dialects import postgresql, sqlite

        values = {"job": job, "fired": fired, "token": "", "owner": "", "heartbeat": 0.0}
        made = sqlite.insert if self.engine.dialect.name == "sqlite" else postgresql.insert
        connection.execute(made(self.tables.schedule).values(**values).on_conflict_do_nothing())
