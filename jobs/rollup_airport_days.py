"""Roll the flights up per airport and day. Run import_flights first.

batchrun run rollup_airport_days
batchrun run rollup_airport_days since=2013-01-15
"""

from __future__ import annotations

from datetime import date

from sqlalchemy import Float, Insert, case, cast, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from batchrun import job, keyset

from ._models import AirportDay, Flight, create_tables

KEY = ("origin", "day")
FIGURES = ("flights", "cancelled", "mean_delay", "max_delay")


@job
def rollup_airport_days(session: Session, airport_day: tuple[str, date]) -> None:
    """Count the flights, cancellations and delays of each airport and day."""
    origin, day = airport_day
    session.execute(upsert(session.get_bind().dialect.name, origin, day))


@rollup_airport_days.items
def airport_days(session: Session, since: date = date(2013, 1, 1)) -> object:
    """One item for each airport and day from ``since`` on that has a flight."""
    create_tables(session)
    return keyset(select(Flight.origin, Flight.day).where(Flight.day >= since).distinct(), key=(Flight.origin, Flight.day))


def upsert(dialect: str, origin: str, day: date) -> Insert:
    """One statement that writes the row of an airport and day, whether it is there or not: running it twice changes nothing."""
    figures = (
        select(
            Flight.origin,
            Flight.day,
            func.count(),
            func.sum(case((Flight.cancelled, 1), else_=0)),
            func.avg(cast(Flight.departure_delay, Float)),
            func.max(Flight.departure_delay),
        )
        .where(Flight.origin == origin, Flight.day == day)
        .group_by(Flight.origin, Flight.day)
    )
    insert = postgresql.insert(AirportDay) if dialect == "postgresql" else sqlite.insert(AirportDay)
    adding = insert.from_select([*KEY, *FIGURES], figures)
    return adding.on_conflict_do_update(index_elements=list(KEY), set_={name: adding.excluded[name] for name in FIGURES})
