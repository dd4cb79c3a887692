"""One function that turns every database URL people write into one that SQLAlchemy can use here."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from batchrun.errors import ConfigError
from batchrun.masking import names_secret

_DRIVERS = {"psycopg2": ("psycopg2", "psycopg2-binary"), "psycopg": ("psycopg", "'psycopg[binary]'")}
_PREFERRED = ("psycopg2", "psycopg")
_HOST = r"(?:\[[^][/?@]*\]|[^][/?@,:]+)(?::\d+)?"
_SEVERAL_HOSTS = re.compile(
    rf"(?P<head>postgres(?:ql)?(?:\+\w+)?://)(?P<login>[^/?]*@)?(?P<hosts>{_HOST}(?:,{_HOST})+)(?P<path>/[^?@]*)?(?:\?(?P<query>[^@]*))?"
)
"""With an @ behind them they are a user and the beginning of a password."""


def normalise(url: str | URL, folder: Path | None = None) -> URL:
    """Return the URL with its driver named and its file absolute.

    ``postgresql://`` and ``postgres://`` mean whichever driver is installed, psycopg2 first: SQLAlchemy 2.1
    alone would demand psycopg 3, and knows no ``postgres://`` at all. A relative SQLite file is taken
    relative to ``folder`` (None = the working directory). Raises ConfigError; no message holds the URL,
    since a URL that cannot be parsed may well hold a password.
    """
    try:
        parsed = make_url(_hosts_as_query(url) if isinstance(url, str) else url)
    except (ArgumentError, ValueError, TypeError):
        raise ConfigError(
            "The database URL cannot be read. Write postgresql://user:password@host:5432/name or sqlite:///file.db, "
            "with special characters in the password percent-encoded."
        ) from None
    if parsed.drivername.partition("+")[0] != "sqlite" and "@" in f"{parsed.host}{parsed.database}":
        raise ConfigError("The database URL has more than one @. If the password holds one, write it as %40 (and / as %2F).")
    backend, _, driver = parsed.drivername.partition("+")
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername=f"postgresql+{_postgres_driver(driver)}")
    if backend == "sqlite":
        return _sqlite(parsed, driver, folder)
    raise ConfigError(f"A database URL of type {backend!r} was given; batchrun works with postgresql:// and sqlite:///.")


def _hosts_as_query(url: str) -> str:
    """Libpq's ``//user@host1:port1,host2:port2/name`` as SQLAlchemy has it: ``//user@/name?host=host1:port1&host=...``."""
    found = _SEVERAL_HOSTS.fullmatch(url)
    if found is None:
        return url
    hosts = "&".join(f"host={host}" for host in found["hosts"].split(","))
    rest = f"&{found['query']}" if found["query"] else ""
    return f"{found['head']}{found['login'] or '@'}{found['path'] or '/'}?{hosts}{rest}"


def _postgres_driver(wanted: str) -> str:
    if wanted and wanted not in _DRIVERS:
        raise ConfigError(
            f"The PostgreSQL driver {wanted!r} is not supported; batchrun runs plain functions on psycopg2 or psycopg: "
            "write postgresql+psycopg2:// or postgresql+psycopg://."
        )
    for name in (wanted,) if wanted else _PREFERRED:
        if importlib.util.find_spec(_DRIVERS[name][0]) is not None:
            return name
    package = _DRIVERS[wanted or _PREFERRED[0]][1]
    raise ConfigError(f"The PostgreSQL driver {wanted or _PREFERRED[0]} is not installed: pip install {package}")


def _sqlite(parsed: URL, driver: str, folder: Path | None) -> URL:
    if driver not in ("", "pysqlite"):
        raise ConfigError(f"The SQLite driver {driver!r} is not supported; write sqlite:///file.db.")
    name = parsed.database or ""
    if name == "" or ":memory:" in name or "mode=memory" in name or parsed.query.get("mode") == "memory":
        raise ConfigError(
            "An in-memory SQLite database lives inside one connection; each worker would see an empty one of its own. "
            "Use a file: sqlite:///work.db."
        )
    if not name.startswith("file:"):
        name = str((folder or Path.cwd()) / Path(name).expanduser())
    return parsed.set(drivername="sqlite+pysqlite", database=name)


def passwords_in(url: URL) -> list[str]:
    """The passwords of a URL, also those in its query, for ``masking.Redactor``."""
    found = [str(url.password)] if url.password else []
    for name, value in url.query.items():
        if names_secret(name):
            found += [value] if isinstance(value, str) else value
    return found


def sqlite_file(url: URL) -> Path:
    """The file of a normalised SQLite URL."""
    return Path((url.database or "").removeprefix("file:").partition("?")[0])
