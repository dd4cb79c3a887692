"""What ``batchrun run``, ``resume`` and ``retry`` offer on their command lines: each option once, with its help."""

from __future__ import annotations

from typing import Annotated

import typer

from batchrun.cli.looking import RUN_HELP

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's name; batchrun jobs lists them.")]
ParameterArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[name=value ...]", help="The job's parameters; batchrun jobs JOB shows their types and defaults."),
]
RetryArguments = Annotated[
    list[str],
    typer.Argument(metavar="RUN", help=f"{RUN_HELP} Behind it name=value for secret parameters, which the ledger does not keep."),
]
RunArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]", help=f"{RUN_HELP} Behind it name=value for secret parameters, which the ledger does not keep."
    ),
]
WorkersOption = Annotated[
    str | None,
    typer.Option(
        "--workers",
        "-j",
        metavar="N|auto",
        help="Worker processes. 0: inline, for a debugger. auto, the default: the cores, or as many as connections are free.",
    ),
]
ThreadsOption = Annotated[
    str | None,
    typer.Option(
        "--threads",
        metavar="N",
        help="Chunks at once in each worker, for tasks that wait on the network. Default: 1, as Python computes one at a time.",
    ),
]
LimitOption = Annotated[str | None, typer.Option("--limit", metavar="N", help="Plan at most N items. Default: all.")]
SampleOption = Annotated[
    str | None,
    typer.Option("--sample", metavar="N|P%", help="Plan a random sample: N items, or P% of them. Default: all."),
]
SeedOption = Annotated[
    str | None,
    typer.Option("--seed", metavar="N", help="Draw the same sample again. Default: another one each time; it is said."),
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Run the tasks for real, roll every item back, record nothing; report what was found."),
]
TransactionOption = Annotated[
    str | None,
    typer.Option(
        "--transaction",
        metavar="item|chunk|none",
        help="item: one transaction for each item (the default). chunk: one for many, several times faster. none: no session.",
    ),
]
RetriesOption = Annotated[
    str | None,
    typer.Option(
        "--retries", metavar="N", help="Further attempts for errors that may pass. Default: 3, which outlives a deadlock."
    ),
]
TimeoutOption = Annotated[
    str | None,
    typer.Option(
        "--timeout", metavar="30s", help="Time for one attempt, as 30s, 5m or 2h. Default: none, as the database's own."
    ),
]
MaxFailuresOption = Annotated[
    str | None,
    typer.Option(
        "--max-failures",
        metavar="N|P%",
        help="Halt beyond N failed items, or P% of those settled from the 100th on. Default: never.",
    ),
]
ProgressOption = Annotated[
    str,
    typer.Option(
        "--progress",
        metavar="auto|bar|plain|none",
        show_default=False,
        help="auto (the default): a bar on a terminal, else a line every ten seconds. It goes to stderr.",
    ),
]
JoblogOption = Annotated[
    str | None,
    typer.Option("--joblog", metavar="FILE", help="Write a line for each attempt of an item, in GNU parallel's columns."),
]
LogFormatOption = Annotated[
    str | None,
    typer.Option(
        "--log-format", metavar="text|json", help="Lines for people (the default), or one JSON object a line, on stderr."
    ),
]
IfRunningOption = Annotated[
    str | None,
    typer.Option(
        "--if-running",
        metavar="skip|wait|fail",
        help="When the job is already running: skip: exit 0; wait for its end; fail (the default): exit 75.",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings, errors and failed items.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report on stdout as one JSON object.")]
AcceptOption = Annotated[
    bool, typer.Option("--accept-changes", help="Go on although the job's code, parameters or input changed since the run began.")
]

OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="CLASS|SQLSTATE", help="Only items with this error, as ValueError or 40001. May be given several times."
    ),
]
