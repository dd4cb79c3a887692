"""``batchrun schedule``: when jobs run by themselves, and what starts them: cron, systemd or a loop of our own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchrun.cli.calling import Call, command, group_of
from batchrun.cli.looking import JsonOption
from batchrun.cli.offered import QuietOption
from batchrun.errors import BatchrunError, ConfigError

if TYPE_CHECKING:
    from batchrun.config import Settings
    from batchrun.runs import RunRecord
    from batchrun.schedule.gathering import Scheduled

FIRINGS = 3


def add_to(app: typer.Typer) -> None:
    """Add the group to the application."""
    app.add_typer(group, name="schedule")


group = group_of("When jobs run by themselves, and what starts them.")


def _warn(call: Call) -> Any:
    return lambda sentence: call.out.say(f"Warning: {sentence}")


# ---------------------------------------------------------------------------------------------------------- list
@command(group, "list")
def list_jobs(call: Call, as_json: JsonOption = False) -> int:
    """List the scheduled jobs: when, the next three firings in the job's zone, and how the last run ended."""
    from batchrun.reporting.jsonout import dumped
    from batchrun.schedule.gathering import scheduled_jobs
    from batchrun.schedule.listing import schedule_json, schedule_table

    settings = call.project()
    jobs = scheduled_jobs(settings, _warn(call))
    last = _last_runs(call, settings, jobs)
    now = datetime.now(UTC)
    rows = [(one, one.next_firings(now, FIRINGS) if one.enabled else [], last.get(one.job)) for one in jobs]
    if as_json:
        call.out.result(dumped(schedule_json(rows, call.out.clean)))
    elif rows:
        call.out.result(schedule_table(rows, call.out.table_width(), call.out.clean))
    else:
        call.out.say('No job has a schedule. Give it one: @job(schedule="0 3 * * *"), or schedule = under [jobs.NAME].')
    return 0


def _last_runs(call: Call, settings: Settings, jobs: Sequence[Scheduled]) -> dict[str, RunRecord]:
    """The newest run of each job; none where the ledger cannot be read, which is a warning."""
    from batchrun.api import open_reading

    found: dict[str, RunRecord] = {}
    if not jobs:
        return found
    try:
        with open_reading(call.place(settings)) as reading:
            for one in jobs:
                if record := reading.newest_of_job(one.job):
                    found[one.job] = record
    except BatchrunError as error:
        call.out.say(f"Warning: the last results are not known: {error}")
    return found


# ------------------------------------------------------------------------------------------------ cron and systemd
@command(group, "export")
def export(
    call: Call,
    crontab: Annotated[bool, typer.Option("--crontab", help="Print lines for a crontab.")] = False,
    systemd: Annotated[bool, typer.Option("--systemd", help="Print a service and a timer for each job.")] = False,
    folder: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write the units there, such as /etc/systemd/system."),
    ] = None,
    for_user: Annotated[
        bool, typer.Option("--user", help="Units for your own systemd. Default: for the system's, run as you.")
    ] = False,
) -> int:
    """Print what starts the jobs from cron or systemd; with -o write the units.

    What neither can start at the right time is refused, with the reason and a way out.
    """
    if crontab == systemd:
        raise ConfigError("Say which: --crontab for lines of a crontab, or --systemd for units.")
    if crontab and (folder or for_user):
        raise ConfigError(f"{'-o' if folder else '--user'} is for --systemd. The lines go to stdout; install puts them in place.")
    settings, jobs = _exportable(call)
    if crontab:
        call.out.result(_block(call, settings, jobs).rstrip("\n"))
        return 0
    from batchrun.schedule.systemd import shown_units, unit_files, write_units

    units = unit_files(settings, jobs, for_user=for_user)
    if folder is None:
        call.out.result(shown_units(units))
        return 0
    for path in write_units(Path(folder).expanduser(), units):
        call.out.result(str(path))
    manager = "systemctl --user" if for_user else "systemctl"
    timers = " ".join(name for name in units if name.endswith(".timer"))
    call.out.say(f"Next: {manager} daemon-reload && {manager} enable --now {timers}")
    return 0


def _exportable(call: Call) -> tuple[Settings, list[Scheduled]]:
    from batchrun.schedule.commands import missing_variables
    from batchrun.schedule.gathering import enabled_jobs

    if call.database_url:
        raise ConfigError(
            "--database-url would stand in a file that others may read, and may hold a password. "
            "Put the URL into config.toml as url_file, or into a profile, and give --profile."
        )
    settings = call.project()
    jobs = enabled_jobs(settings, _warn(call))
    if names := missing_variables(settings):
        call.out.say(
            f"Warning: this project takes values from {', '.join(names)}; cron and systemd start without your shell's variables. "
            "Set them there (a line NAME=value in the crontab, EnvironmentFile= in a drop-in of the unit), or use url_file."
        )
    return settings, jobs


def _block(call: Call, settings: Settings, jobs: Sequence[Scheduled]) -> str:
    from batchrun.schedule.crontab import crontab_block, doubtful_zone

    block = crontab_block(settings, jobs)
    if doubt := doubtful_zone():
        call.out.say(f"Warning: {doubt}")
    return block


@command(group, "install")
def install(call: Call) -> int:
    """Put the jobs into your crontab, in a marked block of this project; all else in it stays as it is.

    Doing it again brings the block up to date.
    """
    from batchrun.schedule.crontab import read_crontab, with_block, write_crontab

    settings, jobs = _exportable(call)
    block = _block(call, settings, jobs)
    before = read_crontab()
    after = with_block(before, block, settings.need_file())
    if after == before:
        call.out.say(f"The crontab is up to date: {_named(jobs)}.")
        return 0
    write_crontab(after)
    call.out.say(f"In the crontab now: {_named(jobs)}. See it with: crontab -l")
    return 0


@command(group, "uninstall")
def uninstall(call: Call) -> int:
    """Take this project's block out of your crontab; all else in it stays as it is."""
    from batchrun.schedule.crontab import read_crontab, without_block, write_crontab

    config = call.project().need_file()
    after = without_block(read_crontab(), config)
    if after is None:
        call.out.say(f"Nothing to do: the crontab has no block of {config}.")
        return 0
    write_crontab(after)
    call.out.say(f"The block of {config} is out of the crontab.")
    return 0


def _named(jobs: Sequence[Scheduled]) -> str:
    return ", ".join(f"{one.job} ({one.words})" for one in jobs)


# ----------------------------------------------------------------------------------------------------------- run
@command(group, "run")
def run(call: Call, quiet: QuietOption = False) -> int:
    """Start the jobs when they are due, in the foreground, until SIGTERM or Ctrl-C: for containers.

    Of several such loops on one ledger one leads; the others stand by and take over when it is gone.
    """
    from batchrun.schedule.gathering import enabled_jobs
    from batchrun.schedule.loop import Loop
    from batchrun.schedule.opening import open_book
    from batchrun.schedule.systemd import missed_policy

    settings = call.project()
    jobs = enabled_jobs(settings, _warn(call))
    environment = {"BATCHRUN_DATABASE_URL": call.database_url} if call.database_url else {}
    place = call.place(settings)
    with open_book(place.ledger_spec() or place.spec(), place.schema) as book:
        return Loop(settings, jobs, book, _teller(call, quiet), missed_policy(settings), environment).run()


def _teller(call: Call, quiet: bool) -> Any:
    def tell(text: str, is_warning: bool = False) -> None:
        if is_warning or not quiet:
            moment = datetime.now(UTC).astimezone().isoformat(sep=" ", timespec="seconds")
            call.out.say(f"{moment} {'Warning: ' if is_warning else ''}{text}")

    return tell
