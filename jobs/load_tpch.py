"""Load orders and their lines of TPC-H from the files that tpchgen-cli writes.

pip install tpchgen-cli
tpchgen-cli csv -s 0.01 --tables orders,lineitem -o build/tpch
batchrun run load_orders && batchrun run load_line_items
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

from sqlalchemy import insert
from sqlalchemy.orm import Session

from batchrun import csv_rows, job

from ._models import LineItem, Order, create_tables


@job(batched=True)
def load_orders(session: Session, rows: list[dict[str, str]]) -> None:
    """Load the orders of TPC-H."""
    session.execute(insert(Order), [order(row) for row in rows])


@load_orders.items
def order_rows(session: Session, file: Path = Path("build/tpch/orders.csv")) -> object:
    """One item for each row of ``file``."""
    create_tables(session)
    return csv_rows(file)


@job(batched=True)
def load_line_items(session: Session, rows: list[dict[str, str]]) -> None:
    """Load the lines of the orders of TPC-H."""
    session.execute(insert(LineItem), [line_item(row) for row in rows])


@load_line_items.items
def line_item_rows(session: Session, file: Path = Path("build/tpch/lineitem.csv")) -> object:
    """One item for each row of ``file``."""
    create_tables(session)
    return csv_rows(file)


def order(row: dict[str, str]) -> dict[str, object]:
    """The columns of Order."""
    return {
        "key": int(row["o_orderkey"]),
        "ordered_on": date.fromisoformat(row["o_orderdate"]),
        "total_cents": hundredths(row["o_totalprice"]),
    }


def line_item(row: dict[str, str]) -> dict[str, object]:
    """The columns of LineItem."""
    return {
        "order_key": int(row["l_orderkey"]),
        "number": int(row["l_linenumber"]),
        "price_cents": hundredths(row["l_extendedprice"]),
        "discount_percent": hundredths(row["l_discount"]),
        "tax_percent": hundredths(row["l_tax"]),
    }


def hundredths(text: str) -> int:
    """``"1.25"`` as 125, exactly. Raises decimal.InvalidOperation for text that is no number."""
    return int(Decimal(text).scaleb(2))
