"""Fixtures of pytest for the tests of your jobs. pytest finds them by itself where batchrun is installed.

    batchrun_db        the URL of a database: a SQLite file of the test's own, or what --batchrun-db says
    batchrun_session   a Session on it, whose work is rolled back at the end
    run_job            batchrun.testing.run_job in that session

Nothing of batchrun is imported before a test asks for one of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from batchrun import Report


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("batchrun")
    group.addoption(
        "--batchrun-db",
        metavar="URL",
        default=None,
        help="The database of the fixture batchrun_db, which is used as it is. Default: a SQLite file for each test.",
    )


@pytest.fixture
def batchrun_db(request: pytest.FixtureRequest) -> str:
    """The URL of a database for this test, its driver named, so that SQLAlchemy and batchrun take the same one.

    A SQLite file of the test's own; with ``pytest --batchrun-db URL`` that database, which is neither made nor emptied.
    """
    from batchrun.database.urls import normalise

    given: str | None = request.config.getoption("--batchrun-db")
    if given is None:
        folder: Path = request.getfixturevalue("tmp_path")
        given = f"sqlite:///{folder / 'batchrun.db'}"
    return normalise(given).render_as_string(hide_password=False)


@pytest.fixture
def batchrun_session(batchrun_db: str) -> Iterator[Session]:
    """A Session on ``batchrun_db`` in an outer transaction: whatever the test does or commits is rolled back at its end."""
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.orm import Session

    engine = create_engine(batchrun_db, poolclass=NullPool)
    with engine.connect() as connection, connection.begin() as outer:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")  # sqlite3 sends none by itself before a SAVEPOINT
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        outer.rollback()
    engine.dispose()


@pytest.fixture
def run_job(batchrun_session: Session) -> Callable[..., Report]:
    """``batchrun.testing.run_job`` with ``session=batchrun_session``."""
    from batchrun import testing

    return functools.partial(testing.run_job, session=batchrun_session)
