"""Recompute the total of each order of TPC-H from its lines. Run load_orders and load_line_items first.

batchrun run recompute_order_totals -j 4                     a list of orders a call: one SELECT for up to a thousand
batchrun run recompute_order_totals since=1997-01-01
batchrun run recompute_each_order_total                      an order a call, as objects; some eight times as slow
"""

from __future__ import annotations

from datetime import date

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from batchrun import Skip, job, keyset

from ._models import LineItem, Order, create_tables


@job(batched=True)
def recompute_order_totals(session: Session, order_keys: list[int]) -> None:
    """Recompute the total of each order from its lines, a list of orders at a time."""
    totals = dict.fromkeys(order_keys, 0)
    columns = (LineItem.order_key, LineItem.price_cents, LineItem.discount_percent, LineItem.tax_percent)
    for key, price, discount, tax in session.execute(select(*columns).where(LineItem.order_key.in_(order_keys))):
        totals[key] += cents(price, discount, tax)
    statement = update(Order).where(Order.key == bindparam("of")).values(recomputed_cents=bindparam("cents"))
    session.connection().execute(statement, [{"of": key, "cents": total} for key, total in totals.items()])


@job(transaction="chunk")
def recompute_each_order_total(session: Session, order_key: int) -> None:
    """Recompute the total of each order from its lines, an order at a time."""
    order = session.get(Order, order_key)
    if order is None:
        raise Skip("the order was deleted since the run began")
    order.recomputed_cents = sum(cents(line.price_cents, line.discount_percent, line.tax_percent) for line in order.lines)


@recompute_order_totals.items
@recompute_each_order_total.items
def orders(session: Session, since: date = date(1992, 1, 1)) -> object:
    """One item for each order from ``since`` on: its key."""
    create_tables(session)
    return keyset(select(Order.key).where(Order.ordered_on >= since))


def cents(price: int, discount: int, tax: int) -> int:
    """What a line costs with discount and tax. TPC-H cuts both steps to whole cents, and so do we: all totals agree.

    price: in cents. discount, tax: in percent.
    """
    return price * (100 - discount) // 100 * (100 + tax) // 100
