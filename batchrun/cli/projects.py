"""``batchrun jobs``, ``init`` and ``config``: what a project consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from batchrun.cli.calling import Call, command, existing_folder

if TYPE_CHECKING:
    from batchrun.config import Settings


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command(app, "jobs")(jobs)
    command(app, "init")(init)
    command(app, "config")(config)


def jobs(
    call: Call,
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Show this job's parameters and options instead.")] = None,
) -> int:
    """List the jobs; with JOB its parameters with types and defaults, and its options with their origins.

    The list is made by reading the files; only JOB's own file is imported.
    """
    settings = call.project()
    return _list_jobs(call, settings) if job is None else _show_job(call, settings, job)


def _list_jobs(call: Call, settings: Settings) -> int:
    from batchrun.config import unknown_jobs
    from batchrun.loading import find_jobs
    from batchrun.reporting.tables import table

    found = find_jobs(settings.folder, lambda sentence: call.out.say(f"Warning: {sentence}"))
    for sentence in unknown_jobs(settings, [one.name for one in found]):
        call.out.say(f"Warning: {sentence}")
    if not found:
        call.out.say(f"There are no jobs in {settings.folder / 'jobs'}. A job is a function under @job from batchrun.")
        return 0
    rows = [(one.name, f"jobs/{one.file.name}:{one.line}", call.out.clean(one.summary)) for one in found]
    call.out.result(table(("JOB", "WHERE", "WHAT IT DOES"), rows, width=call.out.table_width()))
    return 0


def _show_job(call: Call, settings: Settings, name: str) -> int:
    from dataclasses import asdict

    from batchrun.cli.values import load
    from batchrun.config import BUILT_IN, effective_options, job_settings, option_origins
    from batchrun.parameters import parameters_of
    from batchrun.reporting.tables import table

    job = load(call, settings, name, {})
    options, origins = effective_options(settings, job), option_origins(settings, job)
    width, clean = call.out.table_width(), call.out.clean
    parameters = [
        (one.name, one.type_text, "required" if one.required else clean(str(one).partition(" = ")[2]))
        for one in parameters_of(job).values()
    ]
    rows = [(key, clean(_shown(value)), origins.get(key, BUILT_IN)) for key, value in asdict(options).items()]
    own = job_settings(settings, job)
    rows += [(key, _shown(getattr(own, key)), "") for key in ("schedule", "timezone", "if_running", "enabled", "on_unfinished")]
    call.out.result(f"{job.name}: {clean(job.summary)}" if job.summary else job.name)
    call.out.result(f"\n{table(('PARAMETER', 'TYPE', 'DEFAULT'), parameters, width=width)}" if parameters else "\nNo parameters.")
    call.out.result(f"\n{table(('OPTION', 'VALUE', 'ORIGIN'), rows, width=width)}")
    return 0


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ", ".join(one.__qualname__ if isinstance(one, type) else str(one) for one in value) or "-"
    return "-" if value is None else str(value)


def init(
    call: Call,
    folder: Annotated[str | None, typer.Argument(metavar="[DIR]", help="Where; made if need be. Default: here.")] = None,
) -> int:
    """Make a project: config.toml, a job that runs, a test that passes. Overwrites nothing."""
    from batchrun.scaffold import init_project

    for path in init_project(existing_folder(folder)):
        call.out.result(str(path))
    where = f"cd {folder} && " if folder not in (None, ".") else ""
    call.out.say(f"Next: {where}batchrun run measure_words\nIts tests: pip install pytest, then {where}pytest")
    return 0


def config(call: Call) -> int:
    """Show every setting with its value and where it comes from; secrets are hidden.

    The later wins: built-in, decorator, config.toml, profile, environment (BATCHRUN_<TABLE>_<KEY>), command line.
    """
    from batchrun.reporting.tables import settings_table

    settings = call.settings()
    call.out.say(f"Settings from {settings.file}" if settings.file else "There is no config.toml; batchrun init makes one.")
    call.out.result(settings_table(settings.values(), call.out.table_width(), call.out.clean))
    return 0
