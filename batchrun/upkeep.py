"""Keeping a ledger in order: old runs deleted, an older layout brought up to date. For the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError

from batchrun.api import Place
from batchrun.database.connecting import check_reachable
from batchrun.database.failures import message_of
from batchrun.errors import BatchrunError, ConfigError, DatabaseError
from batchrun.ledger.pruning import OldRun, Pruned, Pruner
from batchrun.ledger.schema import Tables, check_layout, exists, tables
from batchrun.ledger.upgrading import found_layout, script, upgrade
from batchrun.ledger.visiting import Visitor

DAY_S = 86400.0

TIDY_LIMIT_S = 2.0
"""What [ledger] keep_days may add to a run. A large run that is left over is deleted by and by, or by ``ledger prune``."""


@contextlib.contextmanager
def _visit(place: Place, what: str, *, patient: bool = True) -> Iterator[tuple[Visitor, Tables]]:
    """A visitor of the ledger of a place. Errors of the database become a DatabaseError: ``what`` was not done, and why."""
    spec = place.ledger_spec() or place.spec()
    with Visitor(spec, application_name="batchrun-upkeep", patient=patient) as visitor:
        if place.schema and visitor.engine.dialect.name == "sqlite":
            raise ConfigError(f"[ledger] schema: {place.schema!r} was given, but SQLite has no schemas; leave it out.")
        check_reachable(visitor.engine)
        try:
            yield visitor, tables(place.schema)
        except DBAPIError as error:
            said = " ".join(message_of(error).split())
            raise DatabaseError(f"The ledger was not {what}: {said}. What was done before is kept; run it again.") from error


def prune_ledger(
    place: Place,
    older_than_s: float,
    *,
    named: bool = False,
    unfinished: bool = False,
    dry_run: bool = False,
    limit_s: float | None = None,
    patient: bool = True,
) -> Pruned:
    """Delete runs that ended longer ago than so many seconds, with all their rows. See ``Pruner``.

    dry_run: only say which. Raises ConfigError for a ledger of another layout, DatabaseError.
    """
    with _visit(place, "pruned to the end", patient=patient) as (visitor, known):
        if not exists(visitor.engine, known):
            return Pruned()
        check_layout(visitor.engine, known)
        pruner = Pruner(visitor, known, older_than_s, named=named, unfinished=unfinished, limit_s=limit_s)
        if dry_run:
            return Pruned(pruner.chosen(), named=pruner.kept_for_their_names())
        return pruner.prune()


def tidy(place: Place, keep_days: int) -> tuple[Pruned, str]:
    """What [ledger] keep_days does behind a run: never long, never waiting, never failing it.

    Returns what was deleted, and a warning for people; empty where all is well or another writer was merely in the way.
    """
    try:
        return prune_ledger(place, keep_days * DAY_S, limit_s=TIDY_LIMIT_S, patient=False), ""
    except BatchrunError as error:
        is_passing = isinstance(error.__cause__, DBAPIError) and _is_in_the_way(error.__cause__)
        return Pruned(), "" if is_passing else f"[ledger] keep_days: {error}"
    except Exception as error:  # the run has ended well, and stays so
        return Pruned(), f"[ledger] keep_days: old runs were not deleted: {type(error).__name__}: {error}"


def _is_in_the_way(error: DBAPIError) -> bool:
    from batchrun.database.failures import Meaning, is_away, meaning_of

    passing = (Meaning.RETRY, Meaning.CONFLICT)
    return is_away(error) or meaning_of(error, is_lost=False, retry_on=()) in passing


def upgrade_ledger(place: Place) -> int | None:
    """Bring the ledger to this batchrun's layout. Returns the layout it had; None where there is none."""
    with _visit(place, "upgraded") as (visitor, known):
        return upgrade(visitor, known)


def upgrade_script(place: Place) -> tuple[int | None, str]:
    """The layout that is there, and the statements that lead from it to this batchrun's. Changes nothing."""
    with _visit(place, "read") as (visitor, known):
        found = found_layout(visitor.engine, known)
        return found, "" if found is None else script(visitor.engine, known, found)


__all__ = ["DAY_S", "OldRun", "Pruned", "prune_ledger", "tidy", "upgrade_ledger", "upgrade_script"]
