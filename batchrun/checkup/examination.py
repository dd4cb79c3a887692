"""All checks in order. Each looks at the subject and yields findings; none changes anything, and none stops the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from batchrun.checkup import files, ledgers, programs, projects, servers
from batchrun.checkup.findings import Finding, problem
from batchrun.checkup.subject import Subject
from batchrun.database.failures import message_of

CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    programs.python,
    programs.sqlalchemy,
    programs.drivers,
    programs.workers,
    projects.config,
    projects.secrets,
    servers.reached,
    servers.version,
    servers.writable,
    servers.privileges,
    servers.connections,
    servers.pooler,
    servers.clock,
    files.sqlite,
    ledgers.ledger,
    ledgers.unfinished,
    ledgers.size,
    projects.jobs,
    projects.schedules,
)
"""From what everything stands on to what stands on it, so that the first problem is the one to begin with."""


def examine(subject: Subject) -> list[Finding]:
    """Carry out every check. One that fails by itself is a problem like any other, with the error's own words."""
    found: list[Finding] = []
    for check in CHECKS:
        try:
            found += check(subject)
        except Exception as error:
            said = f"This could not be looked at: {type(error).__name__}: {' '.join(message_of(error).split())}"
            found.append(problem(check.__name__, said, "Correct what the lines above say, then call batchrun doctor again."))
    return found
