"""What is said of a run, entry by entry: as lines for people, as JSON lines for programs, and the last of them kept.

events, log records, prints, summary -> Entry -> Lines | JsonLines -> one text, written above the bar
                                             \\-> LastLines, for those who are told how a run ended
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from batchrun.events import TaskOutput
from batchrun.reporting.jsonout import cleaned, dumped
from batchrun.reporting.streams import printable_lines
from batchrun.reporting.text import item_text

FORMATS = ("text", "json")
OUR_LOGGER = "batchrun"
PRINT_LOGGER = "print"
LOUD = ("WARNING", "ERROR", "CRITICAL")
KEPT_LINES = 100
KEPT_CHARACTERS = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that is said.

    level: a logging level's name, or "PRINT". logger: empty = batchrun's own. item: the item's name where attempt is above
    0. worker: None = this process. at: Unix time; 0 = now. bare: people read it without its level before it. more: further
    keys of the JSON object.
    """

    level: str
    text: str
    logger: str = ""
    item: str | int | float | bool | None = None
    attempt: int = 0
    worker: int | None = None
    traceback: str = ""
    at: float = 0.0
    bare: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_loud(self) -> bool:
        """Shown whatever ``--quiet`` says."""
        return self.level in LOUD


def entry_of(output: TaskOutput) -> Entry:
    """What a worker passed on."""
    return Entry(
        output.level, output.text, output.logger, output.item, output.attempt, output.worker, output.traceback, output.at
    )


class Lines:
    """Entries as lines for people. run, job: known once the run is open."""

    def __init__(self) -> None:
        self.run = self.job = ""

    def __call__(self, entry: Entry) -> str:
        level = f"{entry.level.capitalize()}: " if entry.is_loud and not entry.bare else ""
        name = f"{entry.logger}{self._where(entry)}: " if entry.logger else ""
        trace = f"\n{entry.traceback}" if entry.traceback else ""
        return printable_lines(f"{level}{name}{entry.text}{trace}")

    def _where(self, entry: Entry) -> str:
        """`` [run 4f7k2m9xab, item 17, attempt 2]`` behind the name of a logger that a task used."""
        if not entry.attempt:
            return ""
        again = f", attempt {entry.attempt}" if entry.attempt > 1 else ""
        return f" [run {self.run}, item {item_text(entry.item)}{again}]"


class JsonLines:
    """Entries as JSON objects, one a line. clean: hides secrets, in each text by itself, as it could spoil the line's form."""

    def __init__(self, clean: Callable[[str], str] = str) -> None:
        self.run = self.job = ""
        self._clean = clean

    def __call__(self, entry: Entry) -> str:
        is_print = entry.level == "PRINT"
        made: dict[str, Any] = {
            "time": _time_text(entry.at or time.time()),
            "level": "INFO" if is_print else entry.level,
            "logger": entry.logger or (PRINT_LOGGER if is_print else OUR_LOGGER),
            "message": entry.text,
            "run": self.run or None,
            "job": self.job or None,
        }
        if entry.attempt:
            made |= {"item": entry.item, "attempt": entry.attempt}
        if entry.worker is not None:
            made["worker"] = entry.worker
        if entry.traceback:
            made["traceback"] = entry.traceback
        return dumped({name: cleaned(value, self._clean) for name, value in {**made, **entry.more}.items()})


def _time_text(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class LastLines:
    """The last lines of a run's log, for those who are told how it ended: everything, also what ``--quiet`` does not show."""

    def __init__(self, clean: Callable[[str], str] = str) -> None:
        self.form = Lines()
        self._clean = clean
        self._kept: deque[str] = deque(maxlen=KEPT_LINES)

    def add(self, entry: Entry) -> None:
        """Keep an entry, and let the oldest go."""
        self._kept.append(self._clean(self.form(entry))[-KEPT_CHARACTERS:])  # in this order, or half a secret could be left

    def text(self) -> str:
        """The last of them, oldest first, at most 10,000 characters; without secrets."""
        return "\n".join(self._kept)[-KEPT_CHARACTERS:]
