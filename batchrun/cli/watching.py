"""``batchrun show --watch``: one run, live, until it ends.

terminal      the text of ``show``, drawn again every second, and left there at the end
no terminal   a line at once and every ten seconds, and the text of ``show`` at the end
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from batchrun.runs import RunStatus

if TYPE_CHECKING:
    from batchrun.cli.calling import Call
    from batchrun.ledger.reading import Reading
    from batchrun.reporting.figures import Overview

EVERY_S = 1.0
LINE_EVERY_S = 10.0


def watch_run(
    call: Call,
    reading: Reading,
    run: str,
    *,
    wait: Callable[[float], object] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Show a run until it is no longer running. Ctrl-C ends the watching, not the run, without a word."""
    watching = _Watching(call, reading, run, wait or threading.Event().wait, clock)
    with contextlib.suppress(KeyboardInterrupt):
        watching.live() if call.out.results.isatty() else watching.lines()
    return 0


class _Watching:
    """One run that is looked at again and again."""

    def __init__(
        self, call: Call, reading: Reading, run: str, wait: Callable[[float], object], clock: Callable[[], float]
    ) -> None:
        from batchrun.reporting.pace import Pace

        self._call, self._reading, self._run = call, reading, run
        self._wait, self._clock = wait, clock
        self._pace: Pace | None = None
        self._away = ""

    def live(self) -> None:
        """On a terminal. What does not fit on the screen is cut below; at the end the whole is written."""
        from rich.console import Console
        from rich.live import Live

        seen: Overview | None = None
        out: Any = self._call.out.results
        colour = self._call.out.has_colours()
        console = Console(
            file=out, force_terminal=True, color_system="standard" if colour else None, highlight=False, markup=False, emoji=False
        )
        try:
            with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as screen:
                while (seen := self._look()) is None or seen.record.status is RunStatus.RUNNING:
                    screen.update(self._drawing(seen), refresh=True)
                    self._wait(EVERY_S)
        finally:
            if seen is not None:
                self._end(seen)  # at Ctrl-C too: what was there last stays on the terminal

    def lines(self) -> None:
        """Where there is no terminal."""
        said: float | None = None
        while (seen := self._look()) is None or seen.record.status is RunStatus.RUNNING:
            if said is None or self._clock() - said >= LINE_EVERY_S:
                said = self._clock()
                self._call.out.result(self._line(seen))
            self._wait(EVERY_S)
        self._end(seen)

    def _look(self) -> Overview | None:
        """None while the database does not answer: it may come back, as the run itself waits for it."""
        from dataclasses import replace

        from sqlalchemy.exc import SQLAlchemyError

        from batchrun.cli.looking import overview_of
        from batchrun.database.failures import message_of

        try:
            seen = overview_of(self._reading, self._run)
        except SQLAlchemyError as error:
            self._away = message_of(error)
            return None
        return replace(seen, rate=self._rate(seen))

    def _rate(self, seen: Overview) -> float | None:
        from batchrun.reporting.pace import Pace

        settled = seen.record.counts.settled
        if self._pace is None:
            self._pace = Pace(settled)
        self._pace.note(self._clock(), settled)
        return self._pace.rate

    def _drawing(self, seen: Overview | None) -> Any:
        from rich.text import Text

        if seen is None:
            return Text(self._line(None))
        out = self._call.out
        return Text.from_ansi(self._text(seen, out.table_width(), colour=out.has_colours()))

    def _line(self, seen: Overview | None) -> str:
        from batchrun.reporting.figures import left_s
        from batchrun.reporting.streams import printable
        from batchrun.reporting.text import progress_text

        if seen is None:
            return printable(self._call.out.clean(f"The database does not answer ({self._away}); asking again ..."))
        rate = seen.present_rate
        return f"Run {self._run}: {progress_text(seen.record.counts, seen.record.expected, rate, left_s(seen.record, rate))}"

    def _text(self, seen: Overview, width: int | None, *, colour: bool) -> str:
        from batchrun.reporting.overview import run_text

        return run_text(seen, self._call.out.clean, self._call.command, width=width, colour=colour)

    def _end(self, seen: Overview) -> None:
        out = self._call.out
        out.result(self._text(seen, out.table_width(), colour=out.has_colours()))
