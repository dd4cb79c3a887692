"""The work of jobs/recompute_order_totals.py as people write it without batchrun, and write it well: to read side by side.

    python -m benchmarks.tpch.pool postgresql+psycopg2://user@host/name [WORKERS] [CHUNK] [each|lists]

each: an order a call, as objects, a Session and a commit each. lists: a list of CHUNK orders a call, a commit a list, by the
statements of the job itself; who writes that has thought of what batchrun does with ``batched=True``.

Each worker has an engine of its own; keys are read once and dealt in chunks, and nobody waits for an order's turn. What it
does not do: go on after a crash, survive a dead worker, retry a deadlock, or tell afterwards which orders are done; of lists,
also find the one order that makes its list fail.
"""

from __future__ import annotations

import multiprocessing
import sys
from datetime import date

from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import Session

from jobs._models import Order
from jobs.recompute_order_totals import cents, recompute_order_totals

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
        order.recomputed_cents = sum(cents(line.price_cents, line.discount_percent, line.tax_percent) for line in order.lines)
        session.commit()


def recompute_list(order_keys: list[int]) -> None:
    """Recompute the totals of a list of orders. The job's function is a plain function, and does the statements."""
    with Session(engine) as session:
        recompute_order_totals(session, order_keys)
        session.commit()


def main(url: str, workers: int = 2, chunk: int = 100, *, way: str = "each", since: date = date(1992, 1, 1)) -> None:
    """Recompute every order from ``since`` on."""
    reading = create_engine(url)
    with reading.connect() as connection:
        keys = list(connection.scalars(select(Order.key).where(Order.ordered_on >= since)))
    reading.dispose()
    with multiprocessing.Pool(workers, start_worker, (url,)) as pool:
        if way == "lists":
            calls = pool.imap_unordered(recompute_list, (keys[at : at + chunk] for at in range(0, len(keys), chunk)))
        else:
            calls = pool.imap_unordered(recompute, keys, chunk)
        for _ in calls:
            pass


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]), way="lists" if "lists" in sys.argv else "each")
