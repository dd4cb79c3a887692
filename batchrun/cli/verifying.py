"""``batchrun verify``: is a run's ledger in order, and were its source's keys covered? It reads and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from batchrun.cli.calling import Call, command
from batchrun.cli.looking import JsonOption, RunArgument

if TYPE_CHECKING:
    from batchrun.jobs import Job


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "verify")(verify)


def verify(call: Call, run: RunArgument = "last", as_json: JsonOption = False) -> int:
    """Check a run: its counts add up, its chunks have no gap, and each key of its source was covered.

    Exit code 0 when nothing is wrong, 1 when something is. Keys that came or went since are told, and are not wrong.
    """
    from batchrun.api import verify_run
    from batchrun.reporting import jsonout

    place = call.ledger_place()
    found = verify_run(place, run, lambda name: _job(call, name))
    clean = call.out.clean
    if as_json:
        checks = [{"check": one.name, "status": one.status.lower(), "text": clean(one.text)} for one in found.checks]
        shown = {"schema": jsonout.SCHEMA, "run": found.run, "job": found.job, "ok": found.ok, "checks": checks}
        call.out.result(jsonout.dumped(shown))
    else:
        lines = [f"{one.status:11}  {one.name:9}  {clean(one.text)}" for one in found.checks]
        call.out.result("\n".join([f"Run {found.run} of {found.job}", *lines]))
    return 0 if found.ok else 1


def _job(call: Call, name: str) -> tuple[Job, Mapping[str, Any]]:
    from batchrun.cli.values import given_params, load

    settings = call.project()
    job = load(call, settings, name, {})
    return job, given_params(call, settings, job, [])
