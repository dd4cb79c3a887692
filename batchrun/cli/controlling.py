"""``batchrun pause``, ``cancel`` and ``tune``: what one shell says to a run of another; and the options of a run's speed."""

from __future__ import annotations

from typing import Annotated

import typer

from batchrun.cli.calling import Call, command
from batchrun.cli.looking import RUN_HELP

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)]
RateOption = Annotated[
    str | None,
    typer.Option("--rate", metavar="50/s", help="At most so many items, as 50/s, 100/min or 6/h; none: as fast as it goes."),
]
WindowOption = Annotated[
    str | None,
    typer.Option(
        "--window",
        metavar="22:00-06:00",
        help="Work in these hours of the job's timezone, or of this machine; pause outside of them. none: at any.",
    ),
]
MaxRuntimeOption = Annotated[
    str | None,
    typer.Option("--max-runtime", metavar="2h", help="Pause after so long, as 30m or 2h. none: never, the default."),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command(app, "pause")(pause)
    command(app, "cancel")(cancel)
    command(app, "tune")(tune)


def pause(call: Call, run: RunArgument) -> int:
    """Pause a run, from any shell: its running items end, nothing new begins, and resume goes on with it.

    Returns when it is paused.
    """
    from batchrun.controlling import pause_run

    answer = pause_run(call.ledger_place(), run, call.out.say, call.command)
    call.out.say(answer.text)
    return 0 if answer.ok else 1


def cancel(call: Call, run: RunArgument) -> int:
    """Cancel a run, from any shell: its running items end, the rest stays undone, and it never goes on.

    Returns when it is cancelled. A run that is not running can be cancelled too.
    """
    from batchrun.controlling import cancel_run

    answer = cancel_run(call.ledger_place(), run, call.out.say, call.command)
    call.out.say(answer.text)
    return 0 if answer.ok else 1


def tune(
    call: Call,
    run: RunArgument,
    workers: Annotated[
        str | None, typer.Option("--workers", "-j", metavar="N", help="From now on so many worker processes.")
    ] = None,
    rate: RateOption = None,
) -> int:
    """Change the speed of a run that is going on, from any shell. It keeps what is set here, also when it is resumed."""
    from batchrun.controlling import tune_run

    given = {name: text for name, text in (("workers", workers), ("rate", rate)) if text is not None}
    answer = tune_run(call.ledger_place(), run, given, call.out.say, call.command)
    call.out.say(answer.text)
    return 0 if answer.ok else 1
