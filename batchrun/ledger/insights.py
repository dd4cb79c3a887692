"""The ledger's row of where a run's time went: the owner writes it, anybody reads it."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, insert, select, update

from batchrun.insight import Insight
from batchrun.ledger.schema import Tables


def write_insight(connection: Connection, tables: Tables, run: str, epoch: int, text: str) -> None:
    """Put the owner's insight in, inside a transaction that has shown that it still is the owner."""
    table = tables.insight
    found = connection.execute(update(table).where(table.c.run == run).values(epoch=epoch, data=text))
    if found.rowcount == 0:
        connection.execute(insert(table).values(run=run, epoch=epoch, data=text))


def read_insight(engine: Engine, tables: Tables, run: str) -> Insight | None:
    """None where the run has none: it was recorded by an older batchrun, or has only just begun.

    Nor where a later batchrun wrote it in a form that is not known here: what it says is worth no refusal.
    """
    table = tables.insight
    with engine.connect() as connection:
        text = connection.execute(select(table.c.data).where(table.c.run == run)).scalar()
    try:
        return None if text is None else Insight.from_json(text)
    except (ValueError, KeyError, TypeError):
        return None
