"""The tasks of jobs/ are plain functions that do what their docstrings say, on each database."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from batchrun import Skip
from jobs._models import AirportDay, Flight, Order, create_tables
from jobs.import_flights import import_flights, typed
from jobs.recompute_order_totals import recompute_each_order_total, recompute_order_totals
from jobs.rollup_airport_days import rollup_airport_days
from tests.support import tpch
from tests.support.databases import engine_for

FLIGHTS = Path(__file__).parents[2] / "jobs" / "data" / "flights-2013-01.csv.gz"

ROLLUP = text("""
    SELECT origin, day, count(*), sum(CASE WHEN departure_delay IS NULL THEN 1 ELSE 0 END),
           avg(CAST(departure_delay AS DOUBLE PRECISION)), max(departure_delay)
    FROM flights GROUP BY origin, day ORDER BY origin, day
""")
TOTALS_THAT_DIFFER = text("""
    SELECT count(*) FROM orders LEFT JOIN (
        SELECT l_orderkey, sum(l_extendedprice_cents * (100 - l_discount_percent) / 100 * (100 + l_tax_percent) / 100) AS cents
        FROM lineitem GROUP BY l_orderkey
    ) AS lines ON l_orderkey = o_orderkey
    WHERE recomputed_cents IS NULL OR recomputed_cents <> cents OR recomputed_cents <> o_totalprice_cents
""")


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    engine = engine_for(database_url)
    with Session(engine) as session:
        create_tables(session)
        yield session
    engine.dispose()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(gzip.decompress(FLIGHTS.read_bytes()).decode())))


@pytest.fixture(scope="session")
def tpch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tpch.make(tmp_path_factory.mktemp("tpch"), scale=0.001)


def test_the_month_that_is_shipped_has_27004_flights(rows: list[dict[str, str]]) -> None:
    assert len(rows) == 27_004
    assert {(row["year"], row["month"]) for row in rows} == {("2013", "1")}
    assert sum(row["dep_time"] == "NA" for row in rows) == 521


def test_a_flight_is_typed(rows: list[dict[str, str]]) -> None:
    assert typed(rows[0]) == {
        "day": date(2013, 1, 1),
        "origin": "EWR",
        "destination": "IAH",
        "carrier": "UA",
        "number": 1545,
        "tail_number": "N14228",
        "scheduled_departure": datetime(2013, 1, 1, 5, 15),  # noqa: DTZ001  # the airport's own time
        "cancelled": False,
        "departure_delay": 2,
        "arrival_delay": 11,
        "air_time": 227,
        "distance": 1400,
    }


def test_what_is_not_known_is_null(rows: list[dict[str, str]]) -> None:
    cancelled = typed(next(row for row in rows if row["dep_time"] == "NA"))
    assert cancelled["cancelled"] is True
    assert [cancelled[name] for name in ("departure_delay", "arrival_delay", "air_time")] == [None] * 3


def test_every_flight_is_imported(session: Session, rows: list[dict[str, str]]) -> None:
    import_flights(session, rows)
    found = session.execute(select(func.count(), func.sum(Flight.distance), func.count(Flight.departure_delay))).one()
    assert tuple(found) == (27_004, sum(int(row["distance"]) for row in rows), 27_004 - 521)


def test_the_rollup_of_every_airport_and_day_equals_one_statement_and_may_run_twice(
    session: Session, rows: list[dict[str, str]]
) -> None:
    import_flights(session, rows)
    for _ in range(2):
        for origin, day in session.execute(select(Flight.origin, Flight.day).distinct()).all():
            rollup_airport_days(session, (origin, day))
    days = session.scalars(select(AirportDay).order_by(AirportDay.origin, AirportDay.day))
    made = [(day.origin, day.day, day.flights, day.cancelled, pytest.approx(day.mean_delay), day.max_delay) for day in days]
    assert len(made) == 3 * 31
    assert [with_date(row) for row in session.execute(ROLLUP)] == made


def with_date(row: Any) -> tuple[Any, ...]:
    day = row[1]
    return (row[0], date.fromisoformat(day) if isinstance(day, str) else day, *row[2:])


def test_a_rollup_that_exists_is_brought_up_to_date(session: Session, rows: list[dict[str, str]]) -> None:
    for wanted in (100, 200):
        import_flights(session, rows[wanted - 100 : wanted])
        rollup_airport_days(session, ("JFK", date(2013, 1, 1)))
        jfk = [row for row in rows[:wanted] if row["origin"] == "JFK"]
        assert session.scalars(select(AirportDay.flights)).all() == [len(jfk)]


def recompute_each(session: Session, keys: list[int]) -> None:
    for key in keys:
        recompute_each_order_total(session, key)
    session.flush()


@pytest.mark.parametrize("recompute", [recompute_order_totals, recompute_each])
def test_each_recomputed_total_equals_the_generators_and_one_statement(
    database_url: str, tpch_folder: Path, recompute: Callable[[Session, list[int]], None]
) -> None:
    tpch.load(database_url, tpch_folder)
    engine = engine_for(database_url)
    with Session(engine) as session:
        keys = list(session.scalars(select(Order.key)))
        assert session.scalar(TOTALS_THAT_DIFFER) == len(keys) == 1500
        recompute(session, keys)
        assert session.scalar(TOTALS_THAT_DIFFER) == 0
    engine.dispose()


def test_an_order_that_is_gone_is_skipped(session: Session) -> None:
    with pytest.raises(Skip, match="deleted"):
        recompute_each_order_total(session, 1)


def test_of_a_list_an_order_that_is_gone_is_left_out(session: Session) -> None:
    session.add_all(Order(key=key, ordered_on=date(1997, 1, 1), total_cents=0) for key in (1, 3))
    session.flush()
    recompute_order_totals(session, [1, 2, 3])
    assert session.execute(select(Order.key, Order.recomputed_cents)).all() == [(1, 0), (3, 0)]
