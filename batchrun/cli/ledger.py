"""``batchrun ledger``: the tables that runs are recorded in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from batchrun.cli.calling import Call, command, group_of
from batchrun.cli.looking import JsonOption
from batchrun.errors import ConfigError

if TYPE_CHECKING:
    from batchrun.upkeep import Pruned


def add_to(app: typer.Typer) -> None:
    """Add the group to the application."""
    app.add_typer(group, name="ledger")


group = group_of("The tables that runs are recorded in.")


@command(group, "sql")
def sql(call: Call) -> int:
    """Print the statements that make the ledger's tables.

    batchrun makes them by itself where its role may create tables; where it may not,
    give these to whoever may. Nothing is changed.
    """
    from batchrun.api import ledger_ddl

    call.out.result(ledger_ddl(call.ledger_place()).rstrip("\n"))
    return 0


@command(group, "upgrade")
def upgrade(
    call: Call,
    sql: Annotated[bool, typer.Option("--sql", help="Print the statements instead, for whoever may run them.")] = False,
) -> int:
    """Bring the ledger of an earlier batchrun to the layout of this one.

    In one transaction, which only adds tables: runs that are going on go on, those that
    were interrupted are resumed afterwards. Nothing is done where nothing is to be done.
    """
    from batchrun.ledger.schema import LAYOUT
    from batchrun.upkeep import upgrade_ledger, upgrade_script

    place = call.ledger_place()
    found, script = upgrade_script(place) if sql else (upgrade_ledger(place), "")
    if found is None:
        call.out.say("There is no ledger yet; the first run makes one, of the newest layout.")
    elif script:
        call.out.result(script.rstrip("\n"))
    elif found == LAYOUT:
        call.out.say(f"The ledger has layout {LAYOUT} already; nothing was changed.")
    else:
        call.out.say(f"The ledger was upgraded from layout {found} to layout {LAYOUT}.")
    return 0


@command(group, "prune")
def prune(
    call: Call,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="90d", help="How long ago a run must have ended. Default: [ledger] keep_days."),
    ] = None,
    named: Annotated[
        bool, typer.Option("--named", help="Also runs that have a name, whose next call then begins from the beginning.")
    ] = False,
    unfinished: Annotated[
        bool,
        typer.Option("--unfinished", help="Also runs that could be resumed or retried where they stand, if nobody owns them."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show which runs would be deleted.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Delete old finished runs from the ledger, with everything it holds of them.

    Of your own tables nothing is touched. It may run beside anything and be killed at any time.
    """
    from batchrun.reporting import jsonout
    from batchrun.upkeep import prune_ledger

    place = call.ledger_place()
    seconds, said = _age(call, older_than)
    found = prune_ledger(place, seconds, named=named, unfinished=unfinished, dry_run=dry_run)
    if as_json:
        call.out.result(jsonout.dumped(_pruned_json(call, found, dry_run)))
    elif not quiet:
        _show_pruned(call, found, said, dry_run)
    return 0


def _age(call: Call, older_than: str | None) -> tuple[float, str]:
    """How old a run must be, in seconds, and in words."""
    from batchrun.durations import seconds

    if older_than is None:
        days = call.settings().ledger.keep_days
        if days is None:
            raise ConfigError("How old must a run be? Say --older-than 90d, or set keep_days in [ledger].")
        return days * 86400.0, f"{days} days"
    if older_than.strip().isdigit():
        raise ConfigError(f"--older-than: {older_than!r} has no unit; write {older_than}d for days, {older_than}h for hours")
    try:
        return seconds(older_than), older_than
    except ValueError as error:
        raise ConfigError(f"--older-than: {error}") from None


def _show_pruned(call: Call, found: Pruned, said: str, dry_run: bool) -> None:
    from datetime import UTC, datetime

    from batchrun.reporting.tables import table

    rows = [
        (
            one.id, call.out.clean(one.job if one.name is None else f"{one.job} ({one.name})"), one.status,
            datetime.fromtimestamp(one.ended, UTC).strftime("%Y-%m-%d %H:%M"), f"{one.chunks:,}",
        )
        for one in found.runs
    ]  # fmt: skip
    if rows:
        call.out.result(table(("RUN", "JOB", "STATUS", "ENDED (UTC)", "CHUNKS"), rows, width=call.out.table_width()))
    count = f"{len(rows):,} run{'' if len(rows) == 1 else 's'}"
    if dry_run:
        call.out.say(f"{count} would be deleted, older than {said}; nothing was changed.")
    else:
        call.out.say(f"Deleted {count} older than {said}, {found.rows:,} rows in all.")
    if found.leftovers:
        call.out.say(f"{found.leftovers:,} of these rows were left behind by a prune that was cut off.")
    if found.named:
        kept = (
            "1 run as old was kept for its name" if found.named == 1 else f"{found.named:,} runs as old were kept for their names"
        )
        call.out.say(f"{kept}: once it is gone, the next call of that name begins anew. --named deletes those too.")


def _pruned_json(call: Call, found: Pruned, dry_run: bool) -> dict[str, object]:
    runs = [
        {"run": one.id, "job": one.job, "name": None if one.name is None else call.out.clean(one.name), "status": one.status,
         "chunks": one.chunks}
        for one in found.runs
    ]  # fmt: skip
    return {"schema": 1, "dry_run": dry_run, "runs": runs, "rows": found.rows, "kept_named": found.named}
