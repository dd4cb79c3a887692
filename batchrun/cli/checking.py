"""``batchrun doctor``: what stands in the way of a run, and what to do about it. It changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from batchrun.cli.calling import Call, command
from batchrun.cli.looking import JsonOption

if TYPE_CHECKING:
    from batchrun.checkup.findings import Finding


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "doctor")(doctor)


def doctor(call: Call, as_json: JsonOption = False) -> int:
    """Look for what stands in the way of a run, and say what to do about it.

    Installation, config.toml, database, ledger, jobs, schedules. It changes nothing, and
    needs no config.toml. Exit code 0: no problem, if warnings; 1: a problem.
    """
    from batchrun.checkup.examination import examine
    from batchrun.checkup.findings import Verdict
    from batchrun.checkup.subject import Subject

    with Subject(call.config, call.profile, call.database_url, call.out.redact) as subject:
        found = examine(subject)
    problems = sum(one.verdict is Verdict.PROBLEM for one in found)
    warnings = sum(one.verdict is Verdict.WARNING for one in found)
    if as_json:
        from batchrun.reporting import jsonout

        call.out.result(jsonout.dumped(_json(call, found, problems)))
    else:
        call.out.result(_table(call, found))
        call.out.say(f"{_count(problems, 'problem')}, {_count(warnings, 'warning')}.")
    return 1 if problems else 0


def _json(call: Call, found: list[Finding], problems: int) -> dict[str, object]:
    clean = call.out.clean
    checks = [
        {"check": one.check, "status": one.verdict.value, "text": clean(one.text), "advice": clean(one.advice)} for one in found
    ]
    return {"schema": 1, "ok": not problems, "checks": checks}


def _table(call: Call, found: list[Finding]) -> str:
    from batchrun.reporting.tables import table

    rows: list[tuple[str, str, str]] = []
    for one in found:
        shown = one.verdict.value if one.verdict.value in ("ok", "not checked") else one.verdict.value.upper()
        rows += [(shown, one.check, call.out.clean(line)) for line in one.text.splitlines()[:1]]
        rows += [("", "", call.out.clean(line)) for line in one.text.splitlines()[1:]]
        if one.advice:
            rows.append(("", "", f"-> {call.out.clean(one.advice)}"))
    return table(("", "CHECK", "FOUND"), rows, width=call.out.table_width())


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
