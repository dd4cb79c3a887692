"""A database that is a server: can it be reached, what can it do, what may we do, and is there room."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from sqlalchemy import Connection, text

from batchrun.checkup.findings import Finding, ok, problem, skipped, warning
from batchrun.checkup.subject import Patient, Subject
from batchrun.config import effective_options
from batchrun.database.budget import Limit, limits_of, tightest
from batchrun.database.connecting import hosts_text
from batchrun.database.failures import message_of
from batchrun.database.pooler import is_pooled
from batchrun.database.urls import sqlite_file
from batchrun.errors import BatchrunError
from batchrun.ledger.schema import exists, tables
from batchrun.seating import cores

SKEW_S = 2.0
"""Beyond what NTP leaves. Ownership goes by the server's clock alone, so a skew only confuses people and schedules."""

_CAUSES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("could not translate host name", "failed to resolve host", "Name or service not known", "nodename nor servname"),
     "The host's name is not known (DNS)", "Check the host in the URL; in a container, its network and resolver."),
    (("Connection refused",), "Nothing listens there: the connection was refused",
     "Check that the server runs, that host and port are right, and that listen_addresses includes this one."),
    (("timeout expired", "timed out"), "Nobody answered in time",
     "Check the host, and the firewall or security group between here and there."),
    (("No route to host", "Network is unreachable"), "There is no way to that host from here",
     "Check the network, a VPN, the firewall."),
    (("No such file or directory",), "There is no server on this machine's socket",
     "Name the server's host in the URL, or start the server here."),
    (("password authentication failed", "no password supplied"), "The server refused user or password",
     "Check both; a special character in a password must be percent-encoded in the URL (@ is %40)."),
    (("no pg_hba.conf entry",), "The server lets nobody in from here as this user (pg_hba.conf)",
     "Have a rule added there for this host, user and database; 'no encryption' means that TLS is demanded: ?sslmode=require."),
    (("is not permitted to log in",), "The role may not log in", "ALTER ROLE ... LOGIN, or use another role."),
    (("permission denied for database",), "The role may not connect to this database", "GRANT CONNECT ON DATABASE ... TO ..."),
    (("too many clients", "connection slots are reserved", "too many connections"), "Every connection is taken",
     "See in pg_stat_activity who holds them, raise the limit, or put a pooler such as pgbouncer in between."),
    (("does not support SSL", "not accept SSL"), "TLS is demanded, but the server has none",
     "Turn ssl on in the server, or ask for less: ?sslmode=prefer."),
    (("certificate", "SSL error", "sslmode"), "TLS failed", "Check sslmode, sslrootcert and the name in the certificate."),
    (("starting up", "shutting down", "in recovery mode"), "The server is starting or stopping", "Try again in a moment."),
    (("unsupported startup parameter",), "A pooler refused an option of the URL",
     "Set it for the role instead: ALTER ROLE ... SET ..."),
)  # fmt: skip
"""What libpq says -> in plain words, and what to do. The order counts."""


def reached(subject: Subject) -> Iterator[Finding]:
    for patient in subject.patients:
        if not patient.is_sqlite:
            yield _reached(patient)
    if not subject.patients or any(patient.error is not None for patient in subject.patients):
        yield skipped("the rest", "What can only be asked of a database that is reached")


def _reached(patient: Patient) -> Finding:
    check = patient.named("database")
    if patient.error is None and patient.engine is not None:
        return ok(check, f"PostgreSQL at {_where(patient)}, by {patient.engine.driver}")
    return refused(check, patient)


def refused(check: str, patient: Patient) -> Finding:
    """Why a database cannot be reached, in plain words, and what to do."""
    error = patient.error
    assert error is not None
    if isinstance(error, BatchrunError):
        return problem(check, str(error), "Correct the URL; batchrun config shows where it comes from.")
    said = " ".join(message_of(error).split())
    if patient.engine is None:
        return problem(check, f"No engine could be made: {type(error).__name__}: {said}", "Look at [database] factory.")
    where = f" ({_where(patient)})"
    if missing := re.search(r'\b(database|role) ".*" does not exist', said):
        kind = missing[1]
        return problem(check, f"There is no such {kind}{where}: {said}", f"Check the URL, or have it made: CREATE {kind.upper()}")
    for signs, cause, advice in _CAUSES:
        if any(sign in said for sign in signs):
            return problem(check, f"{cause}{where}: {said}", advice)
    return problem(check, f"{type(error).__name__}{where}: {said}", "Check the URL and the server's log.")


def _where(patient: Patient) -> str:
    assert patient.engine is not None
    url = patient.engine.url
    if patient.is_sqlite:
        return str(sqlite_file(url))
    return f"{hosts_text(url)}, database {url.database}, user {url.username or '(your own name)'}"


def _servers(subject: Subject) -> Iterator[tuple[Patient, Connection]]:
    for patient in subject.patients:
        if patient.is_reached and not patient.is_sqlite and patient.engine is not None:
            with patient.engine.connect() as connection:
                yield patient, connection


def version(subject: Subject, number: int | None = None) -> Iterator[Finding]:
    for patient, connection in _servers(subject):
        found = number or int(connection.scalar(text("SELECT current_setting('server_version_num')")) or 0)
        shown = f"PostgreSQL {found // 10000}.{found % 10000}"
        if found < 140000:
            yield warning(
                patient.named("server"), f"{shown} has no client_connection_check_interval: what a killed worker was "
                "running goes on in the server to its end, and keeps its locks so long",
                "Upgrade to PostgreSQL 14 or later; until then keep statements short, or set statement_timeout for the role.",
            )  # fmt: skip
        else:
            yield ok(patient.named("server"), shown)


def writable(subject: Subject) -> Iterator[Finding]:
    asked = text("SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'")
    for patient, connection in _servers(subject):
        is_standby, is_read_only = connection.execute(asked).one()
        check = patient.named("writes")
        if is_standby:
            yield problem(check, "This is a standby, which takes no writes",
                          "Point the URL at the primary; with several hosts add ?target_session_attrs=read-write.")  # fmt: skip
        elif is_read_only:
            yield problem(check, "Transactions are read-only here by default",
                          "Look for default_transaction_read_only: of the role, the database, the server.")  # fmt: skip
        else:
            yield ok(check, "It takes writes")


def privileges(subject: Subject) -> Iterator[Finding]:
    """May this role use the ledger, or make it?"""
    for patient, connection in _servers(subject):
        if patient.records and patient.engine is not None:
            known = tables(subject.schema)
            if exists(patient.engine, known):
                yield _rights(patient, connection, subject.schema)
            else:
                yield _may_create(patient, connection, subject.schema)


def _rights(patient: Patient, connection: Connection, schema: str | None) -> Finding:
    known, missing = tables(schema), []
    quoted = connection.dialect.identifier_preparer.format_table
    asked = text("SELECT coalesce(has_table_privilege(to_regclass(:name), :right), true)")
    for table in known.metadata.sorted_tables:
        wanted = ("SELECT",) if table is known.meta else ("SELECT", "INSERT", "UPDATE", "DELETE")
        lacking = [right for right in wanted if not connection.scalar(asked, {"name": quoted(table), "right": right})]
        missing += [f"{', '.join(lacking)} on {table.name}"] if lacking else []
    check, role = patient.named("privileges"), connection.scalar(text("SELECT current_user"))
    if not missing:
        return ok(check, f"{role} may read and write the ledger's tables")
    names = ", ".join(quoted(table) for table in known.metadata.sorted_tables)
    return problem(check, f"{role} lacks {'; '.join(missing)}", f"GRANT SELECT, INSERT, UPDATE, DELETE ON {names} TO {role};")


def _may_create(patient: Patient, connection: Connection, schema: str | None) -> Finding:
    check, role = patient.named("privileges"), connection.scalar(text("SELECT current_user"))
    place = schema or connection.scalar(text("SELECT current_schema()"))
    advice = "Have somebody who may do so run what batchrun ledger sql prints, and grant this role the tables."
    if place is None:
        return problem(check, "The role's search_path leads to no schema that is there", advice)
    is_there = connection.scalar(text("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :name)"), {"name": place})
    asked = "has_schema_privilege(:name, 'CREATE')" if is_there else "has_database_privilege(current_database(), 'CREATE')"
    may = connection.scalar(text(f"SELECT {asked}"), {"name": place} if is_there else {})
    if may:
        return ok(check, f"{role} may make the ledger's tables in schema {place}, which the first run does")
    return problem(check, f"There is no ledger yet, and {role} may not make its tables in schema {place}", advice)


def connections(subject: Subject) -> Iterator[Finding]:
    """Do the configured workers fit? The same sum as a run does before its first worker."""
    settings = subject.settings
    try:
        options = effective_options(settings) if settings else None
    except BatchrunError:
        return  # told by ``config``
    asked = options.workers if options else "auto"
    threads = options.threads if options else 1
    workers = asked if isinstance(asked, int) else cores()
    for patient in subject.patients:
        if not patient.is_reached or patient.is_sqlite or patient.engine is None:
            continue
        found = limits_of(patient.engine, "-", threads=int(patient.works))
        check = patient.named("connections")
        if found is None:
            yield ok(check, "Behind a pooler, whose own limits hold; nothing was counted")
            continue
        parent = int(patient.works) + int(patient.records)
        limit = tightest([replace(one, parent=parent) for one in found], threads)
        if limit is not None:
            yield _room(check, limit, max(1, workers), threads, is_asked=isinstance(asked, int))


def _room(check: str, limit: Limit, workers: int, threads: int, *, is_asked: bool) -> Finding:
    fitting = limit.fitting(threads)
    said = "; ".join(" ".join(line.split()) for line in limit.sum(workers, threads).splitlines())
    remedy = f"Raise {limit.remedy}, or put a pooler such as pgbouncer in between"
    if fitting < 1:
        return problem(check, f"Not even one worker fits just now: {said}", f"{remedy}, or wait until others have closed theirs.")
    if fitting >= workers:
        return ok(check, f"{'1 worker fits' if workers == 1 else f'{workers} workers fit'}: {said}")
    if is_asked:
        return problem(check, f"{workers} workers do not fit, so a run is refused: {said}",
                       f'Set workers = {fitting:g} or "auto". Or: {remedy[0].lower()}{remedy[1:]}.')  # fmt: skip
    return warning(check, f"Only {fitting:g} of {workers} workers fit just now, so a run takes those: {said}", f"{remedy}.")


def pooler(subject: Subject) -> Iterator[Finding]:
    for patient, connection in _servers(subject):
        if is_pooled(connection):
            yield ok(
                patient.named("pooler"), "The URL leads through a pooler, such as pgbouncer; batchrun keeps to what is safe in "
                "its transaction mode. Mind its default_pool_size: so many workers are at work at once",
            )  # fmt: skip


def clock(subject: Subject, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """This host's clock beside the server's, less what the question took."""
    for patient, connection in _servers(subject):
        asked = text("SELECT extract(epoch FROM clock_timestamp())")
        connection.execute(asked)  # the first one is slower
        before = now()
        server = float(connection.scalar(asked) or 0.0)
        after = now()
        skew_s = server - (before + after) / 2
        check = patient.named("clock")
        if abs(skew_s) - (after - before) / 2 <= SKEW_S:
            yield ok(check, f"This host and the server agree within {max(0.1, abs(skew_s)):.1f} s")
            continue
        way = "behind" if skew_s > 0 else "ahead of"
        yield warning(
            check, f"This host's clock is {abs(skew_s):,.0f} s {way} the server's",
            "Turn NTP on, on both. Runs are owned by the server's clock alone and are safe, but schedules fire by this host's.",
        )  # fmt: skip
