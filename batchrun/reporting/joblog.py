"""``--joblog FILE``: a line for each attempt of an item, in the columns of GNU parallel's log, so that its readers read ours.

Seq is the number of the line in the file. Host is ":" as there: this machine. Send and Receive, bytes to and from other
hosts, are 0. Exitval: 0 done or skipped, 75 to be tried again, 1 failed or unknown. Signal: 9 where the item was
quarantined because its workers died, else 0. Command: the job and the item.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from batchrun.codec import key_text
from batchrun.errors import ConfigError
from batchrun.events import Event, ItemTimed, ItemTrouble, RunEnded, RunOpened
from batchrun.items import OutcomeStatus
from batchrun.reporting.streams import printable

HEADER = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"
EXITVALS = {"done": 0, "skipped": 0, "retry": 75}
KILLED = 9


class Joblog:
    """An observer that writes the log. A file that exists is gone on with. clean: hides secrets. tell: says a warning.

    Raises ConfigError where the file cannot be written; an error later ends the log and not the run.
    """

    def __init__(self, path: Path, clean: Callable[[str], str], tell: Callable[[str], None]) -> None:
        self._path = path
        self._clean = clean
        self._tell = tell
        self._job = ""
        try:
            self._seq = _lines(path)
            self._file: TextIO | None = path.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise ConfigError(f"--joblog: {path} cannot be written: {error.strerror or error}") from None
        if self._seq < 0:
            self._write(HEADER)
            self._seq = 0

    def __call__(self, event: Event) -> None:
        match event:
            case RunOpened():
                self._job = event.job
            case ItemTimed():
                self._line(event.item, EXITVALS.get(event.status, 1), 0, event.began, event.seconds)
            case ItemTrouble() if event.outcome.status is OutcomeStatus.QUARANTINED:
                self._line(event.outcome.item, 1, KILLED, 0.0, 0.0)
            case RunEnded():
                self.close()

    def close(self) -> None:
        """Write what is left; the log is over."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                self._lost(error)

    def _line(self, item: object, exitval: int, signal: int, began: float, seconds: float) -> None:
        self._seq += 1
        command = printable(self._clean(f"{self._job} {key_text(item)}"))
        self._write(f"{self._seq}\t:\t{began:.3f}\t{seconds:10.3f}\t0\t0\t{exitval}\t{signal}\t{command}\n")

    def _write(self, text: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(text)
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        self._file = None
        self._tell(f"The job log {self._path} cannot be written any more: {error.strerror or error}. The run goes on.")


def _lines(path: Path) -> int:
    """The lines that a log has below its header; -1 where there is none yet."""
    if not path.exists() or path.stat().st_size == 0:
        return -1
    with path.open("rb") as file:
        return sum(1 for _ in file) - 1
