"""Recompute the total of each order of TPC-H from its lines, one transaction a chunk. Run load_orders and load_line_items first.

batchrun run recompute_order_totals -j 4
batchrun run recompute_order_totals since=1997-01-01
"""

from __future__ import annotations

from datetime import date

from sqlalchemy import select
from sqlalchemy.orm import Session

from batchrun import Skip, job, keyset

from ._models import LineItem, Order, create_tables


@job(transaction="chunk")
def recompute_order_totals(session: Session, order_key: int) -> None:
    """Recompute the total of each order from its lines."""
    order = session.get(Order, order_key)
    if order is None:
        raise Skip("the order was deleted since the run began")
    order.recomputed_cents = sum(cents(line) for line in order.lines)


@recompute_order_totals.items
def orders(session: Session, since: date = date(1992, 1, 1)) -> object:
    """One item for each order from ``since`` on: its key."""
    create_tables(session)
    return keyset(select(Order.key).where(Order.ordered_on >= since))


def cents(line: LineItem) -> int:
    """What a line costs with discount and tax. TPC-H cuts both steps to whole cents, and so do we: all totals agree."""
    discounted = line.price_cents * (100 - line.discount_percent) // 100
    return discounted * (100 + line.tax_percent) // 100
