"""``batchrun runs``, ``show`` and ``failures``: what the ledger knows. They read and change nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from batchrun.cli.calling import Call, command
from batchrun.errors import ConfigError

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
    as_json: JsonOption = False,
) -> int:
    """List the runs, the newest first."""
    from batchrun.api import open_reading
    from batchrun.reporting import jsonout, tables

    most = _count("--limit", limit)
    with open_reading(call.ledger_place()) as reading:
        records = reading.runs(most)
    if as_json:
        call.out.result(jsonout.dumped(jsonout.runs_json(records, call.out.clean)))
    elif records:
        call.out.result(tables.runs_table(records, call.out.table_width(), call.out.clean))
    else:
        call.out.say("There is no run yet; batchrun run JOB makes one.")
    return 0


def show(call: Call, run: RunArgument = "last", as_json: JsonOption = False) -> int:
    """Show one run: its status, its counts, its guarantee, and how to go on."""
    from batchrun.api import open_reading
    from batchrun.reporting import jsonout, tables

    with open_reading(call.ledger_place()) as reading:
        record = reading.record(reading.find(run))
    shown = (
        jsonout.dumped(jsonout.record_json(record, call.out.clean))
        if as_json
        else tables.run_text(record, call.out.clean, call.command)
    )
    call.out.result(shown)
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
) -> int:
    """List the items of a run that failed, were quarantined or are unknown, in the order they were cut."""
    from batchrun.api import open_reading
    from batchrun.reporting import tables

    if layout not in FORMATS:
        raise ConfigError(f"--format: {layout!r} is not one of {', '.join(FORMATS)}")
    with open_reading(call.ledger_place()) as reading:
        found = reading.troubled(reading.find(run))
        if layout == "table":
            rows = list(found)
            text = tables.failures_table(rows, call.out.table_width(), call.out.clean)
            call.out.result(text) if rows else call.out.say("No item of this run went wrong.")
            return 0
        lines = tables.failures_csv if layout == "csv" else tables.failures_jsonl
        for line in lines(found, call.out.clean):
            call.out.result(line)
    return 0


def _count(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 10**6):
        raise ConfigError(f"{option}: {text!r} is not a whole number from 1 to 1,000,000, such as 20")
    return int(text)
