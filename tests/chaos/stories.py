"""All scenarios, by the modules that hold them."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import make_url

from tests.chaos import (  # noqa: F401  # importing a module registers its scenarios
    commits,
    connections,
    contention,
    endings,
    forks,
    growth,
    hangs,
    kills,
    owners,
    parents,
    poolers,
    servers,
    shells,
    sources,
    streams,
    transactions,
    values,
)
from tests.chaos.scenario import SCENARIOS as ALL
from tests.chaos.world import PASSWORD

__all__ = ["ALL", "url_for"]

_FIXTURES = {"postgresql": "pg_url", "psycopg3": "psycopg_url", "sqlite": "sqlite_url"}


def url_for(database: str, fixture: Callable[[str], str]) -> str:
    """The URL of a database of its own, with the password that nothing may show."""
    return with_password(fixture(_FIXTURES[database]))


def with_password(url: str) -> str:
    made = make_url(url)
    if made.get_backend_name() == "sqlite":
        return url
    return made.set(password=PASSWORD).render_as_string(hide_password=False)
