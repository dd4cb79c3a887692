"""Who is told of a run beside the terminal: ``[notify]`` and ``[metrics]``.

RunOpened -> start ping, start time           RunEnded, exit code -> end ping, on_failure, figures

Good is a run that is done, or paused: then somebody, or its window, wanted it so. Nobody is told of a run that was not begun
because the job was running or paused, nor of a signal before a run was open.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchrun.cli.calling import Call
from batchrun.cli.signals import Interrupted
from batchrun.config_layers import TOLD_COUNTS
from batchrun.errors import AlreadyRunning, BatchrunError, JobError, RunPaused
from batchrun.events import Event, RunOpened
from batchrun.runs import Report, RunStatus

if TYPE_CHECKING:
    from batchrun.config import Settings
    from batchrun.reporting.entries import LastLines
    from batchrun.reporting.notify import Pings

GiveUp = Callable[[], bool]
UNOPENED = "unopened"
"""The status of a run that could not begin."""
_SILENT = (AlreadyRunning, RunPaused, Interrupted, KeyboardInterrupt)
_GOOD = (RunStatus.DONE, RunStatus.PAUSED)


class Telling:
    """Tells of one firing. job: its name where the command line says it; else it is known when the run is open."""

    def __init__(self, call: Call, settings: Settings, job: str) -> None:
        from batchrun.config import setting

        self._call = call
        self._settings = settings
        self._job, self._run = job, ""
        self._textfile: str | None = setting(settings, "metrics", "textfile")
        self._notify = settings.notify
        self.kept = self._last_lines() if self._notify.ping_url or self._notify.on_failure else None

    def _last_lines(self) -> LastLines:
        from batchrun.reporting.entries import LastLines

        return LastLines(self._call.out.redact)

    def heard(self, event: Event) -> None:
        """An observer: a run that is open has begun."""
        if not isinstance(event, RunOpened):
            return
        self._job, self._run = event.job, event.run
        if self._pings is not None:
            self._pings.start(f"Run {event.run} of {event.job} began.")
        self._write({"batchrun_last_start_timestamp_seconds": time.time()})

    def ended(self, report: Report, code: int, gives_up: GiveUp) -> None:
        """The run came to an end that has a report. gives_up: somebody wants to leave."""
        from batchrun.reporting.text import summary

        lines = summary(report, command=self._call.command)
        self._tell(report, code, "\n".join(lines), gives_up)

    def failed(self, error: BaseException, report: Report | None, gives_up: GiveUp) -> None:
        """It could not begin, or not go on."""
        if report is None and isinstance(error, _SILENT):
            return
        if isinstance(error, AlreadyRunning):  # taken over: whoever runs it now tells of it
            return
        code = error.exit_code if isinstance(error, BatchrunError) else 1
        text = str(error) if isinstance(error, BatchrunError) else f"{type(error).__name__}: {error}"
        self._tell(report, code, f"Error: {text}", gives_up, only_known=report is None and isinstance(error, JobError))

    def _tell(self, report: Report | None, code: int, text: str, gives_up: GiveUp, *, only_known: bool = False) -> None:
        text = self._call.out.clean(text)
        good = code == 0 or (report is not None and report.status in _GOOD)
        self._write_end(report, code, only_known=only_known)
        log = self.kept.text() if self.kept is not None and not good else ""
        body = f"{log}\n{text}" if log else text
        wait = self._pings.end(gives_up, good=good, body=body) if self._pings is not None else None
        if not good and self._notify.on_failure is not None:
            self._command(self._notify.on_failure, self._environ(report, code, text), body, gives_up)
        if wait is not None:
            wait()

    @cached_property
    def _pings(self) -> Pings | None:
        url = self._notify.ping_url
        if url is None or ("{job}" in url and not self._job.isidentifier()):
            return None
        from urllib.parse import quote

        from batchrun.reporting.notify import Pings

        return Pings(url.replace("{job}", quote(self._job)), "batchrun", self._call.out.warn)

    def _command(self, arguments: list[str], environ: dict[str, str], body: str, gives_up: GiveUp) -> None:
        from batchrun.reporting.notify import run_command

        if wrong := run_command(arguments, self._settings.folder, environ, body, gives_up):
            self._call.out.warn(wrong)

    def _environ(self, report: Report | None, code: int, text: str) -> dict[str, str]:
        status = UNOPENED if report is None else report.status.value
        told: dict[str, Any] = {"run": self._run, "job": self._job, "status": status, "exit_code": code, "message": text}
        counts = {name: getattr(report, name) for name in TOLD_COUNTS} if report is not None else dict.fromkeys(TOLD_COUNTS, 0)
        return {f"BATCHRUN_{name}".upper(): str(value).replace("\0", "") for name, value in {**told, **counts}.items()}

    # Figures.

    def _write_end(self, report: Report | None, code: int, *, only_known: bool) -> None:
        from batchrun.reporting.metrics import OUTCOMES

        now = time.time()
        values = {"batchrun_last_end_timestamp_seconds": now, "batchrun_last_exit_code": float(code)}
        if code == 0:
            values["batchrun_last_success_timestamp_seconds"] = now
        if report is not None:
            values["batchrun_last_duration_seconds"] = report.elapsed
        items = {name: getattr(report, name) for name in OUTCOMES} if report is not None else {}
        self._write(values, items, only_known=only_known)

    def _write(self, values: dict[str, float], items: dict[str, int] | None = None, *, only_known: bool = False) -> None:
        if self._textfile is None or not self._job.isidentifier():
            return
        from batchrun.reporting.metrics import write_metrics

        path = self._settings.folder / Path(self._textfile).expanduser()
        try:
            write_metrics(path, self._job, values, items or {}, only_known=only_known)
        except (OSError, ValueError) as error:
            why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            self._call.out.warn(f"[metrics] textfile: {path} could not be written: {why}. The run is not affected.")
