"""How a PostgreSQL server is doing: replica lag, waiting locks, active sessions, WAL that waits to be archived.

Each question is a short transaction with a statement_timeout of its own, over a connection that serves nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from batchrun.database.failures import message_of, sqlstate_of
from batchrun.throttling import Throttle

TIMEOUT_S = 2.0
"""For one question. A server that takes longer over its own statistics has other troubles; the run is not slowed for it."""

# The lag of a replica that has caught up is NULL. One that no longer answers has its last lag for ever, and a reply_time
# that ages; by default it replies every ten seconds.
_LAG = """
SELECT max(extract(epoch FROM greatest(replay_lag, CASE WHEN replay_lsn < pg_current_wal_lsn() AND
           clock_timestamp() - reply_time > interval '20 seconds' THEN clock_timestamp() - reply_time END))),
       count(*) FILTER (WHERE state IS NULL)
FROM pg_stat_replication
"""
_WAITING = """
SELECT count(DISTINCT held.pid), 0 FROM pg_locks AS held JOIN pg_stat_activity AS session ON session.pid = held.pid
WHERE NOT held.granted AND session.datname = current_database()
"""
_ACTIVE = """
SELECT count(*) FILTER (WHERE state = 'active' AND backend_type = 'client backend'),
       count(*) FILTER (WHERE query = '<insufficient privilege>')
FROM pg_stat_activity WHERE pid <> pg_backend_pid()
"""
_BACKLOG = """
SELECT count(*) * pg_size_bytes(current_setting('wal_segment_size')), 0
FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'
"""
PRIVILEGE = "42501"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look found. reasons: what is beyond its limit. troubles: what could not be asked, and what to do about it."""

    reasons: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()


def look(engine: Engine, throttle: Throttle, check: Callable[..., Any] | None) -> Seen:
    """Ask everything that is limited. Raises nothing: an error is a trouble."""
    reasons, troubles = [], []
    for ask in (*_measures(engine, throttle), *([_asking(engine, check, throttle.check or "")] if check else [])):
        try:
            found = ask()
        except _Blind as blind:
            troubles.append(str(blind))
        except Exception as error:  # whatever the server, the network or the user's own function makes of it
            troubles.append(f"{type(error).__name__}: {' '.join(message_of(error).split())}")
        else:
            reasons += [found] if found else []
    return Seen(tuple(reasons), tuple(troubles))


class _Blind(Exception):
    """It cannot be seen, and why."""


def _measures(engine: Engine, throttle: Throttle) -> Iterator[Callable[[], str]]:
    """A function for each limit; it returns what is beyond it, in words, or nothing."""
    kinds: list[tuple[str, str, float | None, Callable[[float], str]]] = [
        ("replica lag", _LAG, throttle.max_replica_lag, lambda value: f"{value:.1f} s"),
        ("sessions waiting for locks", _WAITING, throttle.max_waiting_locks, lambda value: f"{value:.0f}"),
        ("active sessions", _ACTIVE, throttle.max_active_sessions, lambda value: f"{value:.0f}"),
        ("WAL to be archived", _BACKLOG, throttle.max_wal_backlog, lambda value: f"{value / 1e6:,.0f} MB"),
    ]
    for name, query, limit, shown in kinds:
        if limit is not None:
            yield lambda name=name, query=query, limit=limit, shown=shown: _measured(engine, name, query, limit, shown)  # type: ignore[misc]


def _measured(engine: Engine, name: str, query: str, limit: float, shown: Callable[[float], str]) -> str:
    try:
        with engine.connect() as connection, connection.begin():
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int(TIMEOUT_S * 1000)}")
            value, hidden = connection.exec_driver_sql(query.replace("%", "%%")).one()
    except SQLAlchemyError as error:
        if sqlstate_of(error) == PRIVILEGE:
            raise _Blind(_grant(engine, name)) from None
        raise
    if hidden:
        raise _Blind(_grant(engine, name))
    return f"{name} {shown(float(value))} > {_limit(shown, limit)}" if value is not None and float(value) > limit else ""


def _limit(shown: Callable[[float], str], limit: float) -> str:
    """``2 s`` rather than ``2.0 s``."""
    return shown(limit).replace(".0 ", " ")


def _grant(engine: Engine, name: str) -> str:
    role = engine.dialect.identifier_preparer.quote(engine.url.username or "this_role")
    return f"{name}: role {engine.url.username} may not see it; let it, with: GRANT pg_monitor TO {role}"


def _asking(engine: Engine, check: Callable[[Connection], Any], named: str) -> Callable[[], str]:
    """The user's own check, with a connection whose transaction is rolled back."""

    def ask() -> str:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int(TIMEOUT_S * 1000)}")
            found = check(connection)
        if found is None or found is True or found == "":
            return ""
        if found is False:
            return f"{named} says no"
        if isinstance(found, str):
            return " ".join(found.split())
        raise _Blind(f"{named} returned {type(found).__name__}; return True to go on, or False or a text to slow down")

    return ask
