"""Progress on stderr: a bar on a terminal, else a line every ten seconds; what happens on the way stands above it.

    RunOpened, Progressed -> bar (tqdm, at most ten frames a second) | plain line (every 10 s from the 10th) | nothing
    Notice, ItemTrouble, TaskOutput -> one line above the bar, control characters escaped
    RunEnded -> the last frame

The parent alone draws. There is no helper thread: what is drawn is drawn when the runner says something.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, TextIO

from batchrun.durations import text as duration
from batchrun.events import Event, ItemTrouble, Notice, Observer, Progressed, RunEnded, RunOpened, TaskOutput
from batchrun.items import Outcome, item_name
from batchrun.reporting.entries import Entry, JsonLines, LastLines, Lines, entry_of
from batchrun.reporting.pace import Pace
from batchrun.reporting.streams import GuardedStream
from batchrun.reporting.text import GUARANTEES, counted, items_text, progress_text, rate_text, trouble_text
from batchrun.runs import Counts

Stream = TextIO | GuardedStream
MODES = ("auto", "bar", "plain", "none")
PLAIN_EVERY_S = 10.0
FRAME_S = 0.1
SHOWN_TROUBLES = 20
_WITH_TOTAL = "{percentage:3.0f}%|{bar}| {desc}"
_WITHOUT_TOTAL = "{desc}, {elapsed} so far"


def mode_for(wanted: str, stream: Stream, *, quiet: bool = False) -> str:
    """Resolve ``auto``: a bar on a terminal that can move its cursor, else plain lines. quiet: none."""
    if quiet:
        return "none"
    if wanted != "auto":
        return wanted
    return "bar" if stream.isatty() and os.environ.get("TERM") != "dumb" else "plain"


def api_observer(progress: bool | None) -> Observer | None:
    """What ``run_parallel(progress=...)`` shows. None = a bar on a terminal or in a notebook; True = always; False = never."""
    stream = GuardedStream(sys.stderr)
    if progress is False or (progress is None and not _in_notebook() and mode_for("auto", stream) != "bar"):
        return None
    return Progress("bar", stream, in_api=True)


def _in_notebook() -> bool:
    python = sys.modules.get("IPython")
    return python is not None and type(python.get_ipython()).__name__ == "ZMQInteractiveShell"


class Progress:
    """An observer that shows a run's progress. It changes nothing, and nothing it does can fail the run.

    mode: "bar", "plain" or "none". quiet: only warnings, errors and failed items. in_api: nobody can type commands
    here, so none are named. command: how batchrun was called. form: makes the text of what is said. kept: keeps the last.
    """

    def __init__(
        self,
        mode: str,
        stream: Stream,
        *,
        quiet: bool = False,
        in_api: bool = False,
        command: str = "batchrun",
        clock: Callable[[], float] = time.monotonic,
        form: Lines | JsonLines | None = None,
        kept: LastLines | None = None,
    ) -> None:
        self._mode = mode
        self._stream = stream
        self._quiet = quiet
        self._in_api = in_api
        self._command = command
        self._clock = clock
        self._form = form or Lines()
        self._kept = kept
        self._bar: Any = None
        self._pace: Pace | None = None
        self._run = ""
        self._total: int | None = None
        self._began = self._drawn = 0.0
        self._troubles = 0

    def __call__(self, event: Event) -> None:
        match event:
            case RunOpened():
                self._open(event)
            case Progressed():
                self._progressed(event.counts, event.total)
            case ItemTrouble():
                self._trouble(event)
            case Notice():
                self.say(Entry(event.level, event.text))
            case TaskOutput():
                self.say(entry_of(event))
            case RunEnded():
                self._end(event)

    def say(self, entry: Entry, *, always: bool = False) -> None:
        """Write an entry above the bar. always: whatever ``quiet`` says, as it does for warnings and errors anyway."""
        if self._kept is not None:
            self._kept.add(entry)
        if always or entry.is_loud or not self._quiet:
            self._above(self._form(entry))

    def _above(self, shown: str) -> None:
        if self._bar is not None:
            self._bar.write(shown, file=self._stream)
        else:
            self._stream.write(f"{shown}\n")
        self._stream.flush()

    def close(self) -> None:
        """Take the bar off, where the run did not come to its end."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _open(self, event: RunOpened) -> None:
        self._run, self._began = "" if event.is_dry else event.run, self._clock()
        self._form.run, self._form.job = event.run, event.job
        if self._kept is not None:
            self._kept.form.run = event.run
        self._drawn, self._total = self._began, event.total
        self._pace = Pace(event.counts.settled)
        if not self._in_api:
            self.say(Entry("INFO", _opening(event)))
        if self._mode == "bar":
            self._bar = _new_bar(self._stream, _bar_text(event.counts, event.total, None, None))
            self._draw(event.counts, event.total)

    def _progressed(self, counts: Counts, total: int | None) -> None:
        now, self._total = self._clock(), total
        if self._mode == "none" or self._pace is None:
            return
        self._pace.note(now, counts.settled)
        if now - self._drawn < (FRAME_S if self._bar is not None else PLAIN_EVERY_S):
            return
        self._drawn = now
        if self._bar is not None:
            self._draw(counts, total)
        else:
            self.say(Entry("INFO", progress_text(counts, total, self._pace.rate, self._pace.left_s(total))))

    def _draw(self, counts: Counts, total: int | None) -> None:
        bar = self._bar
        assert self._pace is not None
        bar.n = counts.settled
        bar.total = None if total is None else max(total, counts.settled, 1)
        bar.bar_format = _WITHOUT_TOTAL if total is None else _WITH_TOTAL
        bar.set_description_str(_bar_text(counts, total, self._pace.rate, self._pace.left_s(total)), refresh=False)
        bar.refresh()

    def _trouble(self, event: ItemTrouble) -> None:
        self._troubles += 1
        if self._troubles <= SHOWN_TROUBLES:
            self.say(_trouble_entry(event.outcome))
        elif self._troubles == SHOWN_TROUBLES + 1:
            told = f"More than {SHOWN_TROUBLES} items went wrong; the others are not shown here but in: {self._elsewhere()}"
            self.say(Entry("ERROR", told, bare=True))

    def _elsewhere(self) -> str:
        """Where all that went wrong can be read."""
        if self._in_api:
            return "report.failures"
        return f"{self._command} failures {self._run}" if self._run else "the report below, by class"

    def _end(self, event: RunEnded) -> None:
        if self._bar is not None and self._pace is not None:
            counts = event.report.counts
            self._pace.note(self._clock(), counts.settled)
            self._draw(counts, self._total)
        self.close()


def _trouble_entry(outcome: Outcome) -> Entry:
    error = outcome.error
    more = {"error": error.type, "sqlstate": error.sqlstate} if error else {}
    return Entry(
        "ERROR", trouble_text(outcome), item=item_name(outcome.item), attempt=max(1, outcome.attempts), bare=True, more=more
    )


def _opening(event: RunOpened) -> str:
    total = "items" if event.total is None else items_text(event.total)
    settled = f", {event.counts.settled:,} of them settled before" if event.resumed else ""
    workers = "inline" if event.workers == 0 else f"{event.workers} worker{'' if event.workers == 1 else 's'}"
    if event.is_dry:
        return f"Dry run of {event.job}: {total}, {workers}"
    guarantee = "" if event.guarantee == "exactly-once" else f", {GUARANTEES.get(event.guarantee, event.guarantee)}"
    return f"Run {event.run} of {event.job}{' goes on' if event.resumed else ''}: {total}{settled}, {workers}{guarantee}"


def _bar_text(counts: Counts, total: int | None, rate: float | None, left_s: float | None) -> str:
    """What stands behind the bar; short, since the bar needs room at 80 columns."""
    return ", ".join(
        [
            f"{counts.done:,}{'' if total is None else f'/{total:,}'} done",
            *counted(counts),
            *([] if rate is None else [f"{rate_text(rate)}/s"]),
            *([] if left_s is None else [f"ETA {duration(left_s)}"]),
        ]
    )


def _new_bar(stream: Stream, text: str) -> Any:
    """A bar of tqdm's, without its monitoring thread and without its lock between processes: only the parent draws."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without ipywidgets: tqdm falls back to text and says so
        from tqdm.auto import tqdm
    kind: Any = type("Bar", (tqdm,), {"monitor_interval": 0, "_lock": threading.RLock()})
    return kind(desc=text, file=stream, bar_format=_WITHOUT_TOTAL, leave=True, **_size(stream))


def _size(stream: Stream) -> dict[str, Any]:
    """What tqdm needs to follow a terminal's size; one that does not tell it (a serial line, a container's) has 80 columns."""
    try:
        known = os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):
        known = True  # no terminal: tqdm does what it does there
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}
