"""Python, SQLAlchemy, the drivers, and whether a worker process can be started here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sqlite3
import sys
import time
from collections.abc import Iterator

from batchrun.checkup.findings import Finding, ok, problem, warning
from batchrun.checkup.subject import Subject

OLDEST_PYTHON = (3, 11)
OLDEST_SQLALCHEMY, FIRST_UNTRIED = (2, 0, 40), (2, 2)
DRIVERS = {"psycopg2": ("psycopg2-binary", "psycopg2"), "psycopg": ("psycopg",)}
"""Module -> the distributions it comes in."""

INSTALL = "pip install psycopg2-binary"


def python(subject: Subject, running: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Finding]:
    number = ".".join(map(str, running))
    text = f"Python {number} ({platform.system()}), batchrun {version_of('batchrun-db') or '(not installed)'}"
    if running[:2] < OLDEST_PYTHON:
        yield problem("python", text, "Install Python 3.11 or later; batchrun is tested on 3.11 to 3.14.")
    else:
        yield ok("python", text)


def sqlalchemy(subject: Subject, installed: str | None = None) -> Iterator[Finding]:
    found = installed or version_of("sqlalchemy") or "0"
    number = tuple(int(part) for part in found.split(".")[:3] if part.isdigit())
    if number < OLDEST_SQLALCHEMY:
        yield problem("sqlalchemy", f"SQLAlchemy {found} is too old", "pip install --upgrade 'SQLAlchemy>=2.0.40,<2.2'")
    elif number >= FIRST_UNTRIED:
        yield warning(
            "sqlalchemy", f"SQLAlchemy {found} is newer than what batchrun was tested with",
            "Try your jobs on a copy first, or: pip install 'SQLAlchemy<2.2'",
        )  # fmt: skip
    else:
        yield ok("sqlalchemy", f"SQLAlchemy {found}")


def drivers(subject: Subject) -> Iterator[Finding]:
    found = [f"{module} {_version_of_any(names)}" for module, names in DRIVERS.items() if importlib.util.find_spec(module)]
    text = ", ".join([*found, f"sqlite3 (SQLite {sqlite3.sqlite_version})"])
    if not found:
        yield warning("drivers", f"No driver for PostgreSQL is installed; there is {text}", f"For PostgreSQL: {INSTALL}")
    else:
        yield ok("drivers", text)


def workers(subject: Subject) -> Iterator[Finding]:
    """Really start one."""
    from batchrun import run_parallel
    from batchrun.execution.processes import default_start_method
    from batchrun.seating import cores

    began = time.monotonic()
    method = default_start_method()
    try:
        run_parallel(abs, [-1], workers=1, progress=False).raise_for_failures()
    except Exception as error:
        yield problem(
            "workers", f"A worker process cannot be started by {method}: {type(error).__name__}: {error}",
            "Look at the limits of this user and container: processes (ulimit -u), memory, a writable /tmp and /dev/shm. "
            "Until then -j 0 runs a job without workers.",
        )  # fmt: skip
        return
    took_s = time.monotonic() - began
    yield ok("workers", f"A worker was started by {method}, ran and ended in {took_s:.1f} s; {cores()} cores may be used")


def version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version_of_any(distributions: tuple[str, ...]) -> str:
    return next((found for name in distributions if (found := version_of(name))), "(version unknown)")
