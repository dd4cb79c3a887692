"""The work of jobs/recompute_order_totals.py as people write it without batchrun, and write it well: to read side by side.

    python -m benchmarks.tpch.pool postgresql+psycopg2://user@host/name [WORKERS] [CHUNK]

Each worker has an engine of its own, each order a Session and a commit; keys are read once and dealt in chunks, and nobody
waits for an order's turn. What it does not do: go on after a crash, survive a dead worker, retry a deadlock, or tell
afterwards which orders are done.
"""

from __future__ import annotations

import multiprocessing
import sys
from datetime import date

from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import Session

from jobs._models import Order
from jobs.recompute_order_totals import cents

engine: Engine


def start_worker(url: str) -> None:
    """Give this process an engine of its own: one that came over the fork would be shared."""
    global engine
    engine = create_engine(url)


def recompute(order_key: int) -> None:
    """Recompute the total of one order from its lines."""
    with Session(engine) as session:
        order = session.get(Order, order_key)
        if order is None:
            return
        order.recomputed_cents = sum(cents(line) for line in order.lines)
        session.commit()


def main(url: str, workers: int = 2, chunk: int = 100, *, since: date = date(1992, 1, 1)) -> None:
    """Recompute every order from ``since`` on."""
    reading = create_engine(url)
    with reading.connect() as connection:
        keys = connection.scalars(select(Order.key).where(Order.ordered_on >= since)).all()
    reading.dispose()
    with multiprocessing.Pool(workers, start_worker, (url,)) as pool:
        for _ in pool.imap_unordered(recompute, keys, chunk):
            pass


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]))
