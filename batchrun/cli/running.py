"""``batchrun run``, ``resume`` and ``retry``: they carry a run out.

options, name=value -> a job, its parameters, its options -> api.start_job | resume_job | retry_job -> Report
signals -> StopRequest          events -> Progress on stderr          Report -> summary, --json, exit code
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from batchrun.cli.calling import Call, command
from batchrun.cli.controlling import MaxRuntimeOption, RateOption, WindowOption
from batchrun.cli.offered import (
    AcceptOption,
    DryRunOption,
    IfRunningOption,
    JobArgument,
    JoblogOption,
    JsonOption,
    LimitOption,
    LogFormatOption,
    MaxFailuresOption,
    OnlyOption,
    ParameterArguments,
    ProgressOption,
    QuietOption,
    RetriesOption,
    RetryArguments,
    RunArguments,
    SampleOption,
    SeedOption,
    ThreadsOption,
    TimeoutOption,
    TransactionOption,
    WorkersOption,
)
from batchrun.errors import ConfigError
from batchrun.runs import FINISHED, Report, RunRecord, RunStatus

if TYPE_CHECKING:
    from batchrun.api import Place
    from batchrun.cli.telling import Telling
    from batchrun.config import Settings
    from batchrun.events import Event, Observer
    from batchrun.execution.preloading import Open
    from batchrun.ledger.troubles import Wanted
    from batchrun.options import RunOptions
    from batchrun.plans import StopRequest
    from batchrun.reporting.progress import Progress
    from batchrun.sources.sampling import Sample

EXIT_CODES = {
    RunStatus.DONE: 0,
    RunStatus.FAILED: 1,
    RunStatus.HALTED: 3,
    RunStatus.CANCELLED: 3,
    RunStatus.PAUSED: 5,
    RunStatus.INTERRUPTED: 130,
}
"""A signal has a code of its own: see cli/signals.py."""
GC_THRESHOLDS = (700, 10, 10)
"""Python's own, which cli/main.py changes for the time of the imports."""


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command(app, "run")(run)
    command(app, "resume")(resume)
    command(app, "retry")(retry)


@dataclass(frozen=True, slots=True)
class Taken:
    """What of the job is run: a sample, for real or not."""

    sample: Sample | None
    is_dry: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """How a run is shown. log_format: as given, None = as the settings say."""

    progress: str
    quiet: bool
    as_json: bool
    joblog: str | None
    log_format: str | None


def run(
    call: Call,
    job: JobArgument,
    parameters: ParameterArguments = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    limit: LimitOption = None,
    sample: SampleOption = None,
    seed: SeedOption = None,
    dry_run: DryRunOption = False,
    transaction: TransactionOption = None,
    retries: RetriesOption = None,
    timeout: TimeoutOption = None,
    max_failures: MaxFailuresOption = None,
    rate: RateOption = None,
    window: WindowOption = None,
    max_runtime: MaxRuntimeOption = None,
    if_running: IfRunningOption = None,
    progress: ProgressOption = "auto",
    joblog: JoblogOption = None,
    log_format: LogFormatOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> int:
    """Run a job: open a new run and carry it out."""
    from batchrun.cli.overlap import checked_policy
    from batchrun.cli.values import given_options, given_sample

    shown = _shown(call, progress, quiet, as_json, joblog, log_format)
    texts = {"workers": workers, "threads": threads, "limit": limit, "transaction": transaction}
    paced = {"rate": rate, "window": window, "max_runtime": max_runtime}
    given = given_options({**texts, **paced, "retries": retries, "timeout": timeout, "max_failures": max_failures})
    policy = checked_policy(if_running)
    taken = Taken(given_sample(sample, seed, limit), dry_run)
    return _carry_out(call, shown, lambda session: _start(session, job, parameters or [], given, policy, taken), job)


def _start(
    session: Session, name: str, arguments: list[str], given: dict[str, Any], policy: str | None, taken: Taken
) -> Report | None:
    from batchrun.cli.overlap import is_running, start_or_yield
    from batchrun.cli.values import load, typed_params
    from batchrun.config import effective_options, job_settings
    from batchrun.windows import zoned

    call, settings = session.call, session.settings
    job = load(call, settings, name, given)
    params = typed_params(call, settings, job, arguments)
    options = zoned(effective_options(settings, job, given), job_settings(settings, job).timezone)
    place = call.place(settings)
    from batchrun.api import start_job

    _prepare_forks(session, place, options)
    own = job_settings(settings, job)

    def start() -> Report:
        return start_job(
            job, params, options, place, given=given, observers=session.observers, stop=session.stop,
            continue_unfinished=own.on_unfinished == "resume", wants_spans=session.shown.joblog is not None,
            sample=taken.sample, dry_run=taken.is_dry,
        )  # fmt: skip

    return start_or_yield(
        start, policy or own.if_running or "fail", lambda: bool(session.run), lambda: is_running(place, job, params),
        lambda said: None if session.shown.quiet else call.out.say(said),
    )  # fmt: skip


def _prepare_forks(session: Session, place: Place, options: RunOptions) -> None:
    """The job is imported, and the database not opened yet: fork the fork server (see execution/preloading.py)."""
    if not session.call.out.owns_process:
        return
    gc.freeze()  # what is here stays, and workers share its pages, as long as no collector writes to them
    gc.set_threshold(*GC_THRESHOLDS)
    if options.workers != 0:
        from batchrun.execution.preloading import fork_server_from_here
        from batchrun.execution.work import drivers_of

        fork_server_from_here(drivers_of([place.spec(), place.ledger_spec()]), session.open_before)


def resume(
    call: Call,
    arguments: RunArguments = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    retries: RetriesOption = None,
    timeout: TimeoutOption = None,
    max_failures: MaxFailuresOption = None,
    rate: RateOption = None,
    window: WindowOption = None,
    max_runtime: MaxRuntimeOption = None,
    accept_changes: AcceptOption = False,
    progress: ProgressOption = "auto",
    joblog: JoblogOption = None,
    log_format: LogFormatOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> int:
    """Go on with a run that was interrupted, halted or paused, where it stands; without RUN the newest unfinished one.

    What is settled stays as it is. The options of the run are kept; those given here win.
    """
    texts = {"workers": workers, "threads": threads, "retries": retries, "timeout": timeout, "max_failures": max_failures}
    texts |= {"rate": rate, "window": window, "max_runtime": max_runtime}
    shown = _shown(call, progress, quiet, as_json, joblog, log_format)
    return _again(call, shown, arguments or [], texts, accept_changes, retried=False)


def retry(
    call: Call,
    arguments: RetryArguments,
    only: OnlyOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    retries: RetriesOption = None,
    timeout: TimeoutOption = None,
    max_failures: MaxFailuresOption = None,
    rate: RateOption = None,
    window: WindowOption = None,
    max_runtime: MaxRuntimeOption = None,
    accept_changes: AcceptOption = False,
    progress: ProgressOption = "auto",
    joblog: JoblogOption = None,
    log_format: LogFormatOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> int:
    """Try the failed, quarantined and unknown items of a run again, in the same run.

    Changed code is accepted: a fix is why one retries. Changed parameters or input need --accept-changes.
    """
    texts = {"workers": workers, "threads": threads, "retries": retries, "timeout": timeout, "max_failures": max_failures}
    texts |= {"rate": rate, "window": window, "max_runtime": max_runtime}
    shown = _shown(call, progress, quiet, as_json, joblog, log_format)
    return _again(call, shown, arguments, texts, accept_changes, retried=True, only=only or [])


def _again(
    call: Call,
    shown: Shown,
    arguments: list[str],
    texts: dict[str, str | None],
    accept_changes: bool,
    *,
    retried: bool,
    only: Sequence[str] = (),
) -> int:
    from batchrun.cli.values import given_options

    given = given_options(texts)
    return _carry_out(call, shown, lambda session: _go_on(session, arguments, given, accept_changes, retried, only))


def _go_on(
    session: Session, arguments: list[str], given: dict[str, Any], accept_changes: bool, retried: bool, only: Sequence[str]
) -> Report | None:
    from batchrun.api import resume_job, retry_job
    from batchrun.cli.values import given_params, load
    from batchrun.config import effective_options, job_settings
    from batchrun.resuming import refuse_cancelled
    from batchrun.windows import zoned

    call, settings = session.call, session.settings
    run = arguments.pop(0) if arguments and "=" not in arguments[0] else None
    place = call.place(settings)
    record = _record(session, place, run, retried)
    if record is not None:
        refuse_cancelled(record)
    if record is None or (nothing := _nothing_to_do(record, retried, call.command)):
        call.out.say("Nothing to do: there is no unfinished run." if record is None else nothing)
        return None
    wanted = _wanted(session, place, record.id, only)
    kept = {**_kept(record), **given}
    job = load(call, settings, record.job, kept)
    params = given_params(call, settings, job, arguments)
    options = zoned(effective_options(settings, job, kept), job_settings(settings, job).timezone)
    function = functools.partial(retry_job, only=wanted) if retried else resume_job
    _prepare_forks(session, place, options)
    return function(
        job, record.id, options, place, given_params=params, said=[one.partition("=")[0] for one in arguments],
        accept_changes=accept_changes, observers=session.observers,
        stop=session.stop, wants_spans=session.shown.joblog is not None,
    )  # fmt: skip


def _record(session: Session, place: Any, run: str | None, retried: bool) -> RunRecord | None:
    from batchrun.api import open_reading

    with open_reading(place, session.observers) as reading:
        found = reading.find(run) if run is not None or retried else reading.newest_unfinished()
        return None if found is None else reading.record(found)


def _wanted(session: Session, place: Place, run: str, only: Sequence[str]) -> Wanted:
    """What ``--only`` names. Raises ConfigError, with what there is, for a word that fits no item."""
    from batchrun.api import open_reading
    from batchrun.ledger.troubles import Wanted

    wanted = Wanted(either=tuple(only))
    if only:
        with open_reading(place, session.observers) as reading:
            wanted.refuse_unmatched(reading.trouble_groups(run), run)
    return wanted


def _kept(record: RunRecord) -> dict[str, Any]:
    """The options of the command line that the run began with."""
    given = record.options.get("given")
    return dict(given) if isinstance(given, dict) else {}


def _nothing_to_do(record: RunRecord, retried: bool, command: str) -> str:
    """Why there is nothing to do, in a sentence; empty where there is."""
    counts = record.counts
    bad = counts.failed + counts.quarantined + counts.unknown
    if retried:
        return "" if bad else f"Nothing to do: no item of run {record.id} failed."
    if record.status not in FINISHED:
        return ""
    hint = f" Try what failed again with: {command} retry {record.id}" if bad else ""
    return f"Nothing to do: run {record.id} is {record.status}.{hint}"


# ------------------------------------------------------------------------------------------------ carrying it out
@dataclass(slots=True)
class Session:
    """One run as the command line sees it. open_before: what the process had open before it began. report: as its events said."""

    call: Call
    settings: Settings
    shown: Shown
    stop: StopRequest
    progress: Progress
    open_before: Open
    observers: tuple[Observer, ...] = ()
    run: str = ""
    is_dry: bool = False
    settled_before: int = 0
    report: Report | None = None


def _carry_out(call: Call, shown: Shown, start: Callable[[Session], Report | None], job: str = "") -> int:
    """Settings, signals, progress, logs around ``start``; then the summary, the JSON, who else is told, the exit code.

    job: its name, where the command line says it.
    """
    from batchrun.cli.logs import above_the_bar, signal_line
    from batchrun.cli.signals import SignalWatch
    from batchrun.cli.telling import Telling
    from batchrun.execution.preloading import what_is_open
    from batchrun.plans import StopRequest

    stop = StopRequest()
    with SignalWatch(
        stop, lambda: _advice(session), keeps=call.out.owns_process, line=functools.partial(signal_line, call.out)
    ) as watch:
        settings = _settings(call, shown)
        telling = Telling(call, settings, job)
        session = Session(call, settings, shown, stop, _progress(call, shown, telling), what_is_open())
        remembering = functools.partial(_remember, session, opened=watch.opened)
        session.observers = (telling.heard, session.progress, remembering, *_joblog(call, shown))
        try:
            with above_the_bar(session.progress):
                report = start(session)
        except BaseException as error:
            session.progress.close()
            watch.over()
            _print_report(session, session.report)
            telling.failed(error, session.report, lambda: watch.came_late)
            raise
        watch.over()
        _print_report(session, report)
        code = 0 if report is None else _exit_code(report, watch.exit_code)
        if report is not None:
            telling.ended(report, code, lambda: watch.came_late)
    _tidy(session, report)
    return code


def _settings(call: Call, shown: Shown) -> Settings:
    from batchrun.config import setting

    settings = call.project(log__format=shown.log_format)
    if setting(settings, "log", "format") == "json":
        if shown.progress == "bar":
            raise ConfigError("--progress: a bar is no JSON; leave out --progress bar, or use --log-format text")
        call.out.speak_json()
    return settings


def _progress(call: Call, shown: Shown, telling: Telling) -> Progress:
    from batchrun.reporting.progress import Progress, mode_for

    out = call.out
    stream = out.err if out.json is None else out.bare_err
    wanted = "plain" if out.json is not None and shown.progress == "auto" else shown.progress
    mode = mode_for(wanted, stream, quiet=shown.quiet)
    return Progress(mode, stream, quiet=shown.quiet, command=call.command, form=out.json, kept=telling.kept)


def _joblog(call: Call, shown: Shown) -> tuple[Observer, ...]:
    if shown.joblog is None:
        return ()
    from batchrun.reporting.joblog import Joblog

    return (Joblog(Path(shown.joblog).expanduser(), call.out.clean, call.out.warn),)


def _remember(session: Session, event: Event, opened: Callable[[], None]) -> None:
    from batchrun.events import RunEnded, RunOpened

    if isinstance(event, RunOpened):
        session.run, session.settled_before, session.is_dry = event.run, event.counts.settled, event.is_dry
        opened()
    elif isinstance(event, RunEnded):
        session.report = event.report


def _advice(session: Session) -> str:
    if session.is_dry:
        return "press Ctrl-C again to stop at once; a dry run leaves nothing to resume"
    return f"press Ctrl-C again to stop at once; resume with: {session.call.command} resume {session.run}"


def _print_report(session: Session, report: Report | None) -> None:
    from batchrun.reporting import jsonout, rehearsal, text

    if report is None:
        return
    out, before = session.call.out, session.settled_before
    made = jsonout.report_json(report, settled_before=before)
    if not (session.shown.quiet and report.ok):
        out.say("\n".join(text.summary(report, settled_before=before, command=session.call.command)), **made)
        if report.rehearsal is not None:
            out.say("\n".join(rehearsal.lines(report.rehearsal, report.counts)))
    if session.shown.as_json:
        out.result(jsonout.dumped(made))


def _tidy(session: Session, report: Report | None) -> None:
    """[ledger] keep_days: behind a run that was not stopped, old ones are deleted; see batchrun/upkeep.py."""
    days = session.settings.ledger.keep_days
    if days is None or report is None or session.stop.level:
        return
    from batchrun.upkeep import tidy

    with contextlib.suppress(KeyboardInterrupt):  # the run has ended, and its exit code stands
        found, warning = tidy(session.call.place(session.settings), days)
        if warning:
            session.call.out.say(f"Warning: {warning}")
        elif found.runs and not session.shown.quiet:
            runs = "1 run was" if len(found.runs) == 1 else f"{len(found.runs):,} runs were"
            session.call.out.say(f"{runs} older than {days} days and deleted from the ledger ([ledger] keep_days).")


def _exit_code(report: Report, signalled: int | None) -> int:
    if report.status is RunStatus.INTERRUPTED and signalled is not None:
        return signalled
    return EXIT_CODES[report.status]


def _shown(call: Call, progress: str, quiet: bool, as_json: bool, joblog: str | None, log_format: str | None) -> Shown:
    """How a run is to be shown, from now on. Raises ConfigError."""
    from batchrun.reporting.entries import FORMATS
    from batchrun.reporting.progress import MODES

    if log_format not in (None, *FORMATS):
        raise ConfigError(f"--log-format: {log_format!r} is not one of {', '.join(FORMATS)}")
    if (log_format or os.environ.get("BATCHRUN_LOG_FORMAT")) == "json":
        call.out.speak_json()  # before the settings are read, as they may be wrong
    if progress not in MODES:
        raise ConfigError(f"--progress: {progress!r} is not one of {', '.join(MODES)}")
    return Shown(progress, quiet, as_json, joblog, log_format)
