"""The ledger: its layout, runs that nobody goes on with, and how much of it there is."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, func, select

from batchrun.checkup.findings import Finding, ok, problem, warning
from batchrun.checkup.subject import Patient, Subject
from batchrun.database.urls import sqlite_file
from batchrun.durations import text as duration
from batchrun.errors import ConfigError
from batchrun.ledger.reading import Reading, now_expression
from batchrun.ledger.schema import LAYOUT, Tables, exists, tables
from batchrun.ledger.upgrading import layout_of
from batchrun.runs import FINISHED

DAY_S = 86400.0
STALE_DAYS = 3
"""An unfinished run is nobody's mistake for a weekend."""

MANY_RUNS, MANY_CHUNKS = 1000, 1_000_000
OLD_DAYS = 90
_SHOWN = 3


def _ledgers(subject: Subject) -> Iterator[tuple[Patient, Tables]]:
    """Those that are there."""
    for patient in subject.patients:
        if not (patient.records and patient.is_reached and patient.engine is not None):
            continue
        if patient.is_sqlite and not sqlite_file(patient.engine.url).exists():
            continue
        known = tables(None if patient.is_sqlite else subject.schema)
        if exists(patient.engine, known):
            yield patient, known


def ledger(subject: Subject) -> Iterator[Finding]:
    """Is there one, and of which layout?"""
    found = False
    for patient, known in _ledgers(subject):
        found = True
        assert patient.engine is not None
        try:
            with patient.engine.connect() as connection:
                layout = layout_of(connection, known)
        except ConfigError as error:
            yield problem("ledger", str(error), "Install the batchrun that made it, or point [ledger] schema at another schema.")
            continue
        if layout < LAYOUT:
            yield problem("ledger", f"It is of an earlier batchrun: layout {layout}, not {LAYOUT}", "batchrun ledger upgrade")
        else:
            yield ok("ledger", f"It is there, of layout {LAYOUT}")
    if not found and any(patient.records and patient.is_reached for patient in subject.patients):
        yield ok("ledger", "There is none yet; the first run makes it")


def _current(subject: Subject) -> Iterator[tuple[Patient, Tables, Connection]]:
    """Those of this layout, which alone can be read."""
    for patient, known in _ledgers(subject):
        assert patient.engine is not None
        with patient.engine.connect() as connection:
            if connection.execute(select(known.meta.c.layout)).scalars().first() == LAYOUT:
                yield patient, known, connection


def unfinished(subject: Subject) -> Iterator[Finding]:
    """Runs whose owner is gone, or that stand still for days."""
    for patient, known, connection in _current(subject):
        assert patient.engine is not None
        run, now = known.run.c, now_expression(connection.dialect.name)
        query = select(run.id, run.job, run.status, now - func.coalesce(run.ended, run.heartbeat))
        rows = connection.execute(query.where(run.status.not_in([one.value for one in FINISHED])).order_by(run.started)).all()
        reading = Reading(patient.engine, known)
        alive = 0
        told: list[str] = []
        for run_id, job, status, silent_s in rows:
            stored = reading.stored(run_id) if status == "running" else None
            if stored is not None and reading.is_alive(stored):
                alive += 1
            elif stored is not None:
                told.append(f"{run_id} of {job}: its owner is gone, silent for {duration(max(0.0, silent_s))}")
            elif silent_s > STALE_DAYS * DAY_S:
                told.append(f"{run_id} of {job}: {status} for {silent_s / DAY_S:,.0f} days")
        if told:
            more = f", and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
            yield warning("runs", f"Left unfinished: {'; '.join(told[:_SHOWN])}{more}",
                          "Go on with it: batchrun resume RUN. Delete old ones: batchrun ledger prune --unfinished")  # fmt: skip
        else:
            yield ok("runs", f"{alive} going on, none left unfinished for more than {STALE_DAYS} days")


def size(subject: Subject) -> Iterator[Finding]:
    """How much is kept, and does anything ever delete it?"""
    days = subject.settings.ledger.keep_days if subject.settings else None
    for _, known, connection in _current(subject):
        run, now = known.run.c, now_expression(connection.dialect.name)
        runs, chunks, oldest_s = connection.execute(
            select(func.count(), func.coalesce(func.sum(run.next_no), 0), now - func.min(run.started)).select_from(known.run)
        ).one()
        text = f"{runs:,} run{'' if runs == 1 else 's'} with {int(chunks):,} chunks" + (
            f", the oldest {oldest_s / DAY_S:,.0f} days old" if runs else ""
        )
        is_large = runs > MANY_RUNS or chunks > MANY_CHUNKS
        if days is None and is_large and oldest_s > OLD_DAYS * DAY_S:
            yield warning("size", f"{text}; nothing ever deletes them", f"Set keep_days = {OLD_DAYS} in [ledger], "
                          f"or run: batchrun ledger prune --older-than {OLD_DAYS}d")  # fmt: skip
        else:
            kept = "kept for ever" if days is None else f"kept for {days} days after their end"
            yield ok("size", f"{text}; {kept}")
