"""Log records and prints of this process while a run is carried out: above the bar, or as JSON; those of workers come as events.

log record, print, warning -> Entry, with the item where one runs right here (workers=0) -> Progress.say
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from batchrun.cli.output import LineStream, Output
from batchrun.cli.signals import above_a_bar
from batchrun.execution.output import place, said_of
from batchrun.reporting.entries import Entry

if TYPE_CHECKING:
    from batchrun.reporting.progress import Progress


class _Above(logging.Handler):
    """Log records of this process as entries."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        try:
            said = said_of(record)
            entry = Entry(said.level, said.text, said.logger, said.item, said.attempt, traceback=said.traceback, at=said.at)
            self._progress.say(entry)
        except Exception:
            self.handleError(record)


@contextlib.contextmanager
def above_the_bar(progress: Progress) -> Iterator[None]:
    """Logs of this process, and what is printed in it, go above the bar. What is printed to stderr is shown though quiet."""
    handler = _Above(progress)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level or logging.INFO, logging.INFO))
    out, err = (LineStream(_printed(progress, always=always)) for always in (False, True))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def _printed(progress: Progress, *, always: bool) -> Callable[[str], None]:
    def say(text: str) -> None:
        item, attempt = place()
        progress.say(Entry("PRINT", text, item=item, attempt=attempt), always=always)

    return say


def signal_line(out: Output, text: str) -> str:
    """What a signal handler writes: it asks only then, since the settings may say so."""
    return above_a_bar(text) if out.json is None else out.json(Entry("WARNING", text))
