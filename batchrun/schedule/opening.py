"""Opening the ledger for the loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from batchrun.database.connecting import check_reachable
from batchrun.database.engines import EngineSpec, control_engine
from batchrun.ledger import schema
from batchrun.ledger.schedules import ScheduleBook
from batchrun.outages import insistently


@contextmanager
def open_book(spec: EngineSpec, ledger_schema: str | None) -> Iterator[ScheduleBook]:
    """The book of schedules of a ledger, which is made if it is not there yet. Raises DatabaseError and ConfigError."""
    engine = control_engine(spec, application_name="batchrun-schedule")
    try:
        check_reachable(engine, tell=lambda said: None)
        yield ScheduleBook(engine, insistently(lambda: schema.ensure(engine, ledger_schema)))
    finally:
        engine.dispose()
