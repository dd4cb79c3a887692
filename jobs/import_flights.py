"""Import a month of flights from a compressed CSV file.

batchrun run import_flights
batchrun run import_flights file=jobs/data/flights-2013-01.csv.gz -j 4
"""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

from sqlalchemy import insert
from sqlalchemy.orm import Session

from batchrun import csv_rows, job

from ._models import Flight, create_tables

NOT_KNOWN = "NA"


@job(batched=True)
def import_flights(session: Session, rows: list[dict[str, str]]) -> None:
    """Insert each row of a CSV file of flights, typed, exactly once."""
    session.execute(insert(Flight), [typed(row) for row in rows])


@import_flights.items
def flights(session: Session, file: Path = Path("jobs/data/flights-2013-01.csv.gz")) -> object:
    """One item for each row of ``file``, a path from the project's folder. A new run imports the file once more."""
    create_tables(session)
    return csv_rows(file)


def typed(row: dict[str, str]) -> dict[str, object]:
    """The columns of Flight from a row of text. Raises ValueError or KeyError for a row that is none."""
    day = date(int(row["year"]), int(row["month"]), int(row["day"]))
    return {
        "day": day,
        "origin": row["origin"],
        "destination": row["dest"],
        "carrier": row["carrier"],
        "number": int(row["flight"]),
        "tail_number": known(row["tailnum"]),
        "scheduled_departure": datetime(day.year, day.month, day.day, int(row["hour"]), int(row["minute"])),  # noqa: DTZ001  # the airport's own time
        "cancelled": known(row["dep_time"]) is None,
        "departure_delay": number(row["dep_delay"]),
        "arrival_delay": number(row["arr_delay"]),
        "air_time": number(row["air_time"]),
        "distance": int(row["distance"]),
    }


def known(text: str) -> str | None:
    """The text, or None where the file says that it is not known."""
    return None if text in ("", NOT_KNOWN) else text


def number(text: str) -> int | None:
    """The whole number, or None where the file says that it is not known."""
    return None if known(text) is None else int(text)
