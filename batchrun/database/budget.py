"""The connection budget: do a run's connections fit into what PostgreSQL has to give?

    needed      workers x threads (x databases on that server) + what the parent holds
    available   a limit, less what is reserved for others, less what others have open now

Three limits count at the same time, each on its own: the server's, the role's, the database's. What is asked of the
server is one query; what follows from the answer is arithmetic over plain numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.pool import QueuePool

from batchrun.database.pooler import is_pooled


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit and what weighs on it, in connections.

    key: limits with the same key are one and the same. name: for people. remedy: how to raise it. most: what it
    allows. reserved: kept back for others. in_use: open now, ours included. ours: those of them that the parent has
    open. threads: what each thread of a worker will open. parent: what the parent needs in all.
    """

    key: tuple[Any, ...]
    name: str
    remedy: str
    most: int
    reserved: int
    in_use: int
    ours: int
    threads: int
    parent: int = 1

    @property
    def others(self) -> int:
        return max(0, self.in_use - self.ours)

    @property
    def available(self) -> int:
        return self.most - self.reserved - self.others

    def needed(self, workers: int, threads: int) -> int:
        return workers * threads * self.threads + self.parent

    def fitting(self, threads: int) -> float:
        """How many workers fit; infinite where workers open nothing here and the parent's own do."""
        left, each = self.available - self.parent, threads * self.threads
        if left < 0:
            return 0
        return left // each if each else float("inf")

    def sum(self, workers: int, threads: int) -> str:
        """Both sides, a line each, to be checked at a glance."""
        factors = [_many(workers, "worker"), _many(threads, "thread")] if self.threads else ["no worker"]
        if self.threads > 1:
            factors.append(_many(self.threads, "database"))
        reserved = f" - {self.reserved} reserved" if self.reserved else ""
        return (
            f"  needed     {' x '.join(factors)} + {self.parent} of the parent = {self.needed(workers, threads)}\n"
            f"  available  {self.name} {self.most}{reserved} - {self.others} in use by others = {self.available}"
        )

    @property
    def state(self) -> str:
        """How much of it is taken, ours included."""
        reserved = f" - {self.reserved} reserved" if self.reserved else ""
        return f"{self.name} {self.most}{reserved} - {self.in_use} in use = {self.most - self.reserved - self.in_use}"


def merged(limits: Iterable[Limit]) -> list[Limit]:
    """Add up what weighs on the same limit by way of several engines."""
    found: dict[tuple[Any, ...], Limit] = {}
    for limit in limits:
        known = found.get(limit.key)
        found[limit.key] = limit if known is None else replace(
            known, in_use=max(known.in_use, limit.in_use), ours=known.ours + limit.ours,
            threads=known.threads + limit.threads, parent=known.parent + limit.parent,
        )  # fmt: skip
    return list(found.values())


def tightest(limits: Iterable[Limit], threads: int) -> Limit | None:
    """The limit that lets the fewest workers in; None where there is no limit."""
    return min(limits, key=lambda limit: limit.fitting(threads), default=None)


_ASK = text("""
SELECT pg_postmaster_start_time() AS started, current_setting('port') AS port, session_user AS role, current_database() AS name,
       role.rolsuper AS is_super, role.rolconnlimit AS role_most, database.datconnlimit AS name_most,
       current_setting('max_connections')::int AS most,
       current_setting('superuser_reserved_connections')::int AS for_supers,
       coalesce(current_setting('reserved_connections', true), '0')::int AS for_members,
       EXISTS (SELECT FROM pg_roles WHERE rolname = 'pg_use_reserved_connections'
               AND pg_has_role(session_user, oid, 'USAGE')) AS is_member,
       count(*) AS in_use, count(*) FILTER (WHERE usesysid = role.oid) AS role_in_use,
       count(*) FILTER (WHERE datid = database.oid) AS name_in_use
FROM pg_roles AS role CROSS JOIN pg_database AS database LEFT JOIN pg_stat_activity AS session
     ON session.usesysid IS NOT NULL AND session.datid IS NOT NULL AND session.application_name NOT LIKE :leftovers
     AND coalesce(session.backend_type, 'client backend') = 'client backend'
WHERE role.rolname = session_user AND database.datname = current_database()
GROUP BY role.oid, role.rolsuper, role.rolconnlimit, database.oid, database.datconnlimit
""")
"""A role without special rights sees of others' sessions whose they are, but not of which type."""


def limits_of(engine: Engine, run: str, *, threads: int) -> list[Limit] | None:
    """Ask the server of an engine the parent holds; None behind a pooler, whose own limits hold.

    run: what an earlier owner of it left open does not count, because it is about to be ended. threads: what each
    thread of a worker opens there.
    """
    with engine.connect() as connection:
        if is_pooled(connection):
            return None
        row = connection.execute(_ASK, {"leftovers": f"batchrun:{run[:8]}:%"}).one()
        ours = engine.pool.checkedout() if isinstance(engine.pool, QueuePool) else 1  # idle ones of a factory may be another's
    server = (str(row.started), row.port)
    reserved = 0 if row.is_super else row.for_supers + (0 if row.is_member else row.for_members)
    found = [Limit(("server", *server), "max_connections", "max_connections", row.most, reserved, row.in_use, ours, threads)]
    if row.role_most >= 0 and not row.is_super:
        name, remedy = f"connection limit of role {row.role}", f"the role's limit (ALTER ROLE {row.role} CONNECTION LIMIT n)"
        found.append(Limit(("role", *server, row.role), name, remedy, row.role_most, 0, row.role_in_use, ours, threads))
    if row.name_most >= 0 and not row.is_super:
        name = f"connection limit of database {row.name}"
        remedy = f"the database's limit (ALTER DATABASE {row.name} CONNECTION LIMIT n)"
        found.append(Limit(("database", *server, row.name), name, remedy, row.name_most, 0, row.name_in_use, ours, threads))
    return found


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
