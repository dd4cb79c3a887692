"""Orders and lines of TPC-H, made by the benchmark's own generator: data nobody here wrote."""

from __future__ import annotations

import csv
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from jobs._models import create_tables
from jobs.load_tpch import load_line_items, load_orders
from tests.support.databases import engine_for

Rows = list[dict[str, str]]
_LOADERS: dict[str, Callable[[Session, Rows], Any]] = {"orders.csv": load_orders, "lineitem.csv": load_line_items}


def make(folder: Path, scale: float = 0.01) -> Path:
    """Write orders.csv and lineitem.csv into ``folder``. scale: 0.01 = 15,000 orders and 60,175 lines."""
    generator = Path(sysconfig.get_path("scripts")) / "tpchgen-cli"
    options = ["csv", "-s", str(scale), "--tables", "orders,lineitem", "-o", str(folder)]
    subprocess.run([str(generator), *options], check=True, capture_output=True)
    return folder


def load(url: str, folder: Path) -> None:
    """Load both files into a database, as the jobs in jobs/load_tpch.py do."""
    engine = engine_for(url)
    with Session(engine) as session:
        create_tables(session)
        for name, task in _LOADERS.items():
            for rows in _batches(folder / name, 5000):
                task(session, rows)
        session.commit()
    engine.dispose()


def _batches(file: Path, size: int) -> Iterator[Rows]:
    with file.open(newline="") as opened:
        reader = csv.DictReader(opened)
        while rows := list(islice(reader, size)):
            yield rows
