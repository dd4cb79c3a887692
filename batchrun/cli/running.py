"""``batchrun run``, ``resume`` and ``retry``: they carry a run out.

options, name=value -> a job, its parameters, its options -> api.start_job | resume_job | retry_job -> Report
signals -> StopRequest          events -> Progress on stderr          Report -> summary, --json, exit code
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchrun.cli.calling import Call, command
from batchrun.cli.looking import RUN_HELP
from batchrun.errors import ConfigError
from batchrun.runs import FINISHED, Report, RunRecord, RunStatus

if TYPE_CHECKING:
    from batchrun.api import Place
    from batchrun.config import Settings
    from batchrun.events import Event, Observer
    from batchrun.execution.preloading import Open
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

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's name; batchrun jobs lists them.")]
ParameterArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[name=value ...]", help="The job's parameters; batchrun jobs JOB shows their types and defaults."),
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
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings, errors and failed items.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report on stdout as one JSON object.")]
AcceptOption = Annotated[
    bool, typer.Option("--accept-changes", help="Go on although the job's code, parameters or input changed since the run began.")
]


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
    """How a run is shown."""

    progress: str
    quiet: bool
    as_json: bool


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
    progress: ProgressOption = "auto",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> int:
    """Run a job: open a new run and carry it out."""
    from batchrun.cli.values import given_options, given_sample

    texts = {"workers": workers, "threads": threads, "limit": limit, "transaction": transaction}
    given = given_options({**texts, "retries": retries, "timeout": timeout, "max_failures": max_failures})
    taken = Taken(given_sample(sample, seed, limit), dry_run)
    shown = Shown(_mode(progress), quiet, as_json)
    return _carry_out(call, shown, lambda session: _start(session, job, parameters or [], given, taken))


def _start(session: Session, name: str, arguments: list[str], given: dict[str, Any], taken: Taken) -> Report:
    from batchrun.cli.values import load, typed_params
    from batchrun.config import effective_options, job_settings

    call, settings = session.call, session.settings
    job = load(call, settings, name, given)
    params = typed_params(call, settings, job, arguments)
    options = effective_options(settings, job, given)
    place = call.place(settings)
    from batchrun.api import start_job

    _prepare_forks(session, place, options)
    continues = job_settings(settings, job).on_unfinished == "resume"
    return start_job(
        job, params, options, place, given=given, observers=session.observers, stop=session.stop, continue_unfinished=continues,
        sample=taken.sample, dry_run=taken.is_dry,
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
    accept_changes: AcceptOption = False,
    progress: ProgressOption = "auto",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> int:
    """Go on with a run that was interrupted, halted or paused, where it stands; without RUN the newest unfinished one.

    What is settled stays as it is. The options of the run are kept; those given here win.
    """
    texts = {"workers": workers, "threads": threads, "retries": retries, "timeout": timeout, "max_failures": max_failures}
    shown = Shown(_mode(progress), quiet, as_json)
    return _again(call, shown, arguments or [], texts, accept_changes, retried=False)


def retry(
    call: Call,
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN", help=f"{RUN_HELP} Behind it name=value for secret parameters, which the ledger does not keep."
        ),
    ],
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    retries: RetriesOption = None,
    timeout: TimeoutOption = None,
    max_failures: MaxFailuresOption = None,
    accept_changes: AcceptOption = False,
    progress: ProgressOption = "auto",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> int:
    """Try the failed, quarantined and unknown items of a run again, in the same run.

    Changed code is accepted: a fix is why one retries. Changed parameters or input need --accept-changes.
    """
    texts = {"workers": workers, "threads": threads, "retries": retries, "timeout": timeout, "max_failures": max_failures}
    shown = Shown(_mode(progress), quiet, as_json)
    return _again(call, shown, arguments, texts, accept_changes, retried=True)


def _again(
    call: Call, shown: Shown, arguments: list[str], texts: dict[str, str | None], accept_changes: bool, *, retried: bool
) -> int:
    from batchrun.cli.values import given_options

    given = given_options(texts)
    return _carry_out(call, shown, lambda session: _go_on(session, arguments, given, accept_changes, retried))


def _go_on(session: Session, arguments: list[str], given: dict[str, Any], accept_changes: bool, retried: bool) -> Report | None:
    from batchrun.api import resume_job, retry_job
    from batchrun.cli.values import given_params, load
    from batchrun.config import effective_options

    call, settings = session.call, session.settings
    run = arguments.pop(0) if arguments and "=" not in arguments[0] else None
    place = call.place(settings)
    record = _record(session, place, run, retried)
    if record is None or (nothing := _nothing_to_do(record, retried, call.command)):
        call.out.say("Nothing to do: there is no unfinished run." if record is None else nothing)
        return None
    kept = {**_kept(record), **given}
    job = load(call, settings, record.job, kept)
    params = given_params(call, settings, job, arguments)
    options = effective_options(settings, job, kept)
    function = retry_job if retried else resume_job
    _prepare_forks(session, place, options)
    return function(
        job, record.id, options, place, given_params=params, said=[one.partition("=")[0] for one in arguments],
        accept_changes=accept_changes, observers=session.observers,
        stop=session.stop,
    )  # fmt: skip


def _record(session: Session, place: Any, run: str | None, retried: bool) -> RunRecord | None:
    from batchrun.api import open_reading

    with open_reading(place, session.observers) as reading:
        found = reading.find(run) if run is not None or retried else reading.newest_unfinished()
        return None if found is None else reading.record(found)


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


def _carry_out(call: Call, shown: Shown, start: Callable[[Session], Report | None]) -> int:
    """Settings, signals, progress, logs around ``start``; then the summary, the JSON and the exit code."""
    from batchrun.cli.signals import SignalWatch
    from batchrun.execution.preloading import what_is_open
    from batchrun.plans import StopRequest
    from batchrun.reporting.progress import Progress, mode_for

    stop = StopRequest()
    progress = Progress(
        mode_for(shown.progress, call.out.err, quiet=shown.quiet), call.out.err, quiet=shown.quiet, command=call.command
    )
    with SignalWatch(stop, lambda: _advice(session), keeps=call.out.owns_process) as watch:
        session = Session(call, call.project(), shown, stop, progress, what_is_open())
        session.observers = (progress, lambda event: _remember(session, event, watch.opened))
        try:
            with _above_the_bar(progress, shown.quiet):
                report = start(session)
        except BaseException:
            progress.close()
            watch.over()
            _print_report(session, session.report)
            raise
        watch.over()
        _print_report(session, report)
    return 0 if report is None else _exit_code(report, watch.exit_code)


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
    if not (session.shown.quiet and report.ok):
        out.say("\n".join(text.summary(report, settled_before=before, command=session.call.command)))
        if report.rehearsal is not None:
            out.say("\n".join(rehearsal.lines(report.rehearsal, report.counts)))
    if session.shown.as_json:
        out.result(jsonout.dumped(jsonout.report_json(report, settled_before=before)))


def _exit_code(report: Report, signalled: int | None) -> int:
    if report.status is RunStatus.INTERRUPTED and signalled is not None:
        return signalled
    return EXIT_CODES[report.status]


def _mode(progress: str) -> str:
    from batchrun.reporting.progress import MODES

    if progress not in MODES:
        raise ConfigError(f"--progress: {progress!r} is not one of {', '.join(MODES)}")
    return progress


class _Above(logging.Handler):
    """Log records of this process, above the bar; those of the workers come as events."""

    def __init__(self, progress: Progress, level: int) -> None:
        super().__init__(level)
        self._progress = progress
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.capitalize()}: " if record.levelno >= logging.WARNING else ""
        self._progress.above(level + self.format(record))


@contextlib.contextmanager
def _above_the_bar(progress: Progress, quiet: bool) -> Iterator[None]:
    """Logs of this process, and what is printed in it, go above the bar."""
    from batchrun.cli.output import LineStream

    handler = _Above(progress, logging.WARNING if quiet else logging.INFO)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level or logging.INFO, logging.INFO))
    prints = LineStream((lambda text: None) if quiet else progress.above)
    try:
        with contextlib.redirect_stdout(prints), contextlib.redirect_stderr(LineStream(progress.above)):
            yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
