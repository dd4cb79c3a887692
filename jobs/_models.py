"""The tables of the example jobs. A file that begins with ``_`` holds no jobs."""

from __future__ import annotations

from datetime import date, datetime

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship


class Base(DeclarativeBase):
    """The example tables, apart from batchrun's own."""


class Flight(Base):
    """A flight that was to leave New York. There is no unique key: only the run sees to it that each is here once."""

    __tablename__ = "flights"
    __table_args__ = (Index("ix_flights_origin_day", "origin", "day"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    day: Mapped[date]
    origin: Mapped[str]
    destination: Mapped[str]
    carrier: Mapped[str]
    number: Mapped[int]
    tail_number: Mapped[str | None]
    scheduled_departure: Mapped[datetime]  # local time
    cancelled: Mapped[bool]
    departure_delay: Mapped[int | None]  # minutes; below zero = early
    arrival_delay: Mapped[int | None]
    air_time: Mapped[int | None]  # minutes
    distance: Mapped[int]  # miles


class AirportDay(Base):
    """What left an airport on one day."""

    __tablename__ = "airport_days"

    origin: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    flights: Mapped[int]
    cancelled: Mapped[int]
    mean_delay: Mapped[float | None]  # minutes; None where nothing left
    max_delay: Mapped[int | None]


class Order(Base):
    """An order of TPC-H. Money is whole cents: exact on every database."""

    __tablename__ = "orders"

    key: Mapped[int] = mapped_column("o_orderkey", BigInteger, primary_key=True, autoincrement=False)
    ordered_on: Mapped[date] = mapped_column("o_orderdate")
    total_cents: Mapped[int] = mapped_column("o_totalprice_cents", BigInteger)
    recomputed_cents: Mapped[int | None] = mapped_column(BigInteger)
    lines: Mapped[list[LineItem]] = relationship(order_by="LineItem.number")


class LineItem(Base):
    """A line of an order of TPC-H."""

    __tablename__ = "lineitem"

    order_key: Mapped[int] = mapped_column("l_orderkey", ForeignKey(Order.key), primary_key=True)
    number: Mapped[int] = mapped_column("l_linenumber", primary_key=True, autoincrement=False)
    price_cents: Mapped[int] = mapped_column("l_extendedprice_cents", BigInteger)
    discount_percent: Mapped[int] = mapped_column("l_discount_percent")
    tax_percent: Mapped[int] = mapped_column("l_tax_percent")


def create_tables(session: Session) -> None:
    """Make those of these tables that are not there yet, and commit: workers have connections of their own."""
    Base.metadata.create_all(session.connection())
    session.commit()
