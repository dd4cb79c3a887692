"""``batchrun report``: a run as one HTML file."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from batchrun.cli.calling import Call, command
from batchrun.cli.looking import RunArgument, overview_of
from batchrun.errors import ConfigError


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "report")(report)


def report(
    call: Call,
    run: RunArgument = "last",
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE.html", help="Write it here; - is stdout. Default: batchrun-RUN.html, in this folder."
        ),
    ] = None,
) -> int:
    """Write a run as one HTML file: pictures and numbers, for a browser, a mail or an archive.

    It needs no script, no network and nothing beside it, and does not change when the run goes on.
    """
    from batchrun.api import open_reading
    from batchrun.reporting.html_report import SHOWN_FAILURES, Sheet, page

    with open_reading(call.ledger_place()) as reading:
        seen = overview_of(reading, reading.find(run))
        failures = list(reading.troubled(seen.record.id, SHOWN_FAILURES)) if seen.record.bad else []
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    text = page(Sheet(seen, failures, made, call.command, call.out.clean))
    if output == "-":
        call.out.result(text.rstrip("\n"))
        return 0
    path = Path(output or f"batchrun-{seen.record.id}.html").expanduser()
    size = write_whole(path, text)
    call.out.result(str(path))
    call.out.say(f"The report of run {seen.record.id} is there ({max(1, round(size / 1000)):,} kB); open it in a browser.")
    return 0


def write_whole(path: Path, text: str) -> int:
    """Write a file that is there as a whole or not at all; returns its size in bytes. Raises ConfigError."""
    data = text.encode("utf-8", "backslashreplace")
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
            os.chmod(name, 0o666 & ~_umask())  # noqa: PTH101 - mkstemp's own is for the owner alone
            os.replace(name, path)  # noqa: PTH105
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(
            f"--output: {path} cannot be written: {error.strerror or error}. Name a file in a folder that you may write to."
        ) from None
    return len(data)


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found
