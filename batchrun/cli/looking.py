"""``batchrun runs``, ``show`` and ``failures``: what the ledger knows. They read and change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from batchrun.cli.calling import Call, command
from batchrun.errors import ConfigError
from batchrun.runs import RunStatus

if TYPE_CHECKING:
    from batchrun.ledger.reading import Reading
    from batchrun.ledger.troubles import Wanted
    from batchrun.reporting.figures import Overview

RUN_HELP = "last (the newest), an id, a run's name, a job (its newest run), or the beginning of an id."
FORMATS = ("table", "csv", "jsonl")

RunArgument = Annotated[str, typer.Argument(metavar="[RUN]", help=f"{RUN_HELP} Default: last.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command(app, "runs")(runs)
    command(app, "show")(show)
    command(app, "failures")(failures)


def runs(
    call: Call,
    limit: Annotated[
        str,
        typer.Option(
            "--limit", metavar="N", show_default=False, help="At most N runs, the newest first. Default: 20, what fits a screen."
        ),
    ] = "20",
    job: Annotated[str | None, typer.Option("--job", metavar="NAME", help="Only runs of this job.")] = None,
    status: Annotated[
        list[str] | None,
        typer.Option("--status", metavar="STATUS", help="Only runs that are running, failed, ... May be given several times."),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """List the runs, the newest first."""
    from batchrun.api import open_reading
    from batchrun.reporting import jsonout, tables

    most, statuses = _count("--limit", limit), [_status(one) for one in status or []]
    with open_reading(call.ledger_place()) as reading:
        records = reading.runs(most, job=job, statuses=statuses)
    if as_json:
        call.out.result(jsonout.dumped(jsonout.runs_json(records, call.out.clean)))
    elif records:
        call.out.result(tables.runs_table(records, call.out.table_width(), call.out.clean, colour=call.out.has_colours()))
    elif job is not None or statuses:
        call.out.say("There is no such run; batchrun runs, without --job and --status, lists what is there.")
    else:
        call.out.say("There is no run yet; batchrun run JOB makes one.")
    return 0


def _status(text: str) -> RunStatus:
    try:
        return RunStatus(text.lower())
    except ValueError:
        raise ConfigError(f"--status: {text!r} is not one of {', '.join(RunStatus)}") from None


def show(
    call: Call,
    run: RunArgument = "last",
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it live, once a second, until it ends; without a terminal a line every 10 s.")
    ] = False,
    item: Annotated[
        str | None,
        typer.Option("--item", metavar="KEY", help="Say where this item stands: as the source gives it, or as JSON."),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Show one run: how far it is, where its time went, what went wrong, and how to go on."""
    from batchrun.api import open_reading
    from batchrun.reporting import jsonout, overview

    if watch and (as_json or item is not None):
        raise ConfigError("--watch: it goes with neither --json nor --item, which answer once")
    with open_reading(call.ledger_place()) as reading:
        found = reading.find(run)
        if watch:
            from batchrun.cli.watching import watch_run

            return watch_run(call, reading, found)
        if item is not None:
            return _show_item(call, reading, found, item, as_json=as_json)
        seen = overview_of(reading, found)
    out = call.out
    shown = (
        jsonout.dumped(jsonout.overview_json(seen, out.clean))
        if as_json
        else overview.run_text(seen, out.clean, call.command, width=out.table_width(), colour=out.has_colours())
    )
    out.result(shown)
    return 0


def overview_of(reading: Reading, run: str) -> Overview:
    """A run with all that the ledger knows of it."""
    from batchrun.reporting.figures import Overview

    record = reading.record(run)
    return Overview(record, reading.insight(run), reading.trouble_groups(run) if record.bad else ())


def _show_item(call: Call, reading: Reading, run: str, key: str, *, as_json: bool) -> int:
    from batchrun.ledger.standing import standing
    from batchrun.reporting import jsonout, text

    found = standing(reading, run, key)
    if as_json:
        call.out.result(jsonout.dumped(jsonout.standing_json(found, run, call.out.clean)))
    else:
        call.out.result(text.standing_text(found, call.out.clean))
    return 0


def failures(
    call: Call,
    run: RunArgument = "last",
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="table|csv|jsonl",
            help="table for people (the default), csv for a spreadsheet, jsonl for programs.",
        ),
    ] = "table",
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Only errors of this class, as ValueError. May be given several times."),
    ] = None,
    sqlstates: Annotated[
        list[str] | None,
        typer.Option("--sqlstate", metavar="CODE", help="Only errors with this SQLSTATE, as 23505. May be given several times."),
    ] = None,
    limit: Annotated[
        str | None, typer.Option("--limit", metavar="N", help="At most N items. The counts are of all. Default: all.")
    ] = None,
) -> int:
    """List the items of a run that failed, were quarantined or are unknown: how many of each error, then each one."""
    from batchrun.api import open_reading
    from batchrun.ledger.troubles import Wanted
    from batchrun.reporting import tables

    if layout not in FORMATS:
        raise ConfigError(f"--format: {layout!r} is not one of {', '.join(FORMATS)}")
    most = None if limit is None else _count("--limit", limit)
    wanted = Wanted(classes=tuple(classes or ()), sqlstates=tuple(sqlstates or ()))
    with open_reading(call.ledger_place()) as reading:
        found = reading.find(run)
        if layout == "table":
            return _failures_table(call, reading, found, wanted, most)
        if not wanted.is_all and (groups := reading.trouble_groups(found)):
            wanted.refuse_unmatched(groups, found)
        lines = tables.failures_csv if layout == "csv" else tables.failures_jsonl
        for line in lines(reading.troubled(found, most, wanted=wanted), call.out.clean):
            call.out.result(line)
    return 0


def _failures_table(call: Call, reading: Reading, run: str, wanted: Wanted, most: int | None) -> int:
    """The classes with their counts, then each item; a page at a time, so that a million fit."""
    from batchrun.reporting import tables

    out = call.out
    groups = reading.trouble_groups(run)
    if not groups:
        out.say("No item of this run went wrong.")
        return 0
    wanted.refuse_unmatched(groups, run)
    width, colour = out.table_width(), out.has_colours()
    chosen = [group for group in groups if wanted.takes(group)]
    out.result(tables.groups_table(chosen, width, out.clean, colour=colour))
    rows = reading.troubled(run, most, wanted=wanted, by_class=True)
    for page in tables.failures_table(rows, width, out.clean, colour=colour):
        out.result(page)
    left = sum(group.items for group in chosen) - (most or 0)
    if most is not None and left > 0:
        out.say(f"... and {left:,} more; a higher --limit shows them.")
    return 0


def _count(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 10**6):
        raise ConfigError(f"{option}: {text!r} is not a whole number from 1 to 1,000,000, such as 20")
    return int(text)
