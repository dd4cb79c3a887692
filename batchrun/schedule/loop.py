"""``batchrun schedule run``: one leader starts each job when it is due, as a process of its own.

        +--> lead, or stand by           the ledger says who (ledger/schedules.py)
 wake --+--> reap                        children that ended; what waited for one of them is started
        +--> what is due -> mark -> start   the mark is in the ledger before the process is
        +--> sleep                       until the next firing, heartbeat, end of a child, or signal

A jump of the clock is seen at the next heartbeat at the latest. Where it went forward, what lies between was missed; where it
went back, what was dealt with is not done again.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from batchrun.database.failures import message_of
from batchrun.durations import text as duration
from batchrun.ledger.owner import Busy
from batchrun.ledger.schedules import Holder, ScheduleBook
from batchrun.schedule.agenda import Agenda, Due
from batchrun.schedule.commands import project_command, run_command
from batchrun.schedule.waking import Waker

if TYPE_CHECKING:
    from batchrun.config import Settings
    from batchrun.schedule.gathering import Scheduled

T = TypeVar("T")

BEAT_S = 10.0
"""Between two heartbeats of the leader: a third of the lease."""

LOOK_S = 5.0
"""Between two looks of one that stands by, or that cannot reach the ledger."""

PATIENCE_S = 5.0
"""How long a write waits for its turn before the loop looks after other things: SQLite has one writer at a time."""

MEANINGS = {
    0: "done",
    1: "some items failed",
    2: "usage or configuration",
    3: "halted or cancelled",
    4: "the job's code cannot be loaded",
    5: "paused",
    6: "the database is unreachable or refused",
    75: "already running",
    129: "interrupted",
    130: "interrupted",
    143: "interrupted",
}


class Tell(Protocol):
    """Says something to whoever reads the loop's log."""

    def __call__(self, text: str, is_warning: bool = False) -> None: ...


@dataclass(slots=True)
class Child:
    """A run that was started."""

    process: subprocess.Popen[bytes]
    since: float


@dataclass(slots=True)
class Loop:
    """One such loop. missed: "run" or "skip". environment: what its children get beside ours."""

    settings: Settings
    jobs: Sequence[Scheduled]
    book: ScheduleBook
    tell: Tell
    missed: str = "run"
    environment: Mapping[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.time
    _agenda: Agenda = field(init=False)
    _waker: Waker = field(init=False)
    _children: dict[str, Child] = field(init=False, default_factory=dict)
    _waiting: dict[str, Due] = field(init=False, default_factory=dict)
    _leads: bool = field(init=False, default=False)
    _beaten: float = field(init=False, default=0.0)
    _told: str = field(init=False, default="")
    _is_away: bool = field(init=False, default=False)

    def run(self) -> int:
        """Go on until a signal asks to end. Returns the exit code: 0, because that is how it ends."""
        self._agenda = Agenda(self.jobs)
        with Waker() as self._waker:
            try:
                while not self._waker.asked:
                    self._waker.wait(self._turn())
            finally:
                self._end()
        return 0

    def _turn(self) -> float:
        """Do what is to be done now. Returns the seconds until there is more."""
        try:
            if not self._lead():
                self._reap()
                return LOOK_S
            self._reap()
            self._put_right()
            for due in self._agenda.due(self.clock()):
                self._deal_with(due)
        except (Busy, SQLAlchemyError) as error:
            self._hear_of_outage(error)
            self._reap()
            return LOOK_S
        if self._is_away:
            self._is_away = False
            self.tell("The ledger can be written again.")
        return self._pause_s()

    def _hear_of_outage(self, error: Busy | SQLAlchemyError) -> None:
        if not self._is_away:
            self._is_away = True
            self.tell(f"The ledger cannot be written just now; what is due waits: {_said(error)}", True)

    def _pause_s(self) -> float:
        now = self.clock()
        coming = self._agenda.next_firing(now)
        beat = max(0.0, BEAT_S - (time.monotonic() - self._beaten))
        return beat if coming is None else min(beat, max(0.0, coming[0].timestamp() - now))

    # Leading.

    def _lead(self) -> bool:
        if self._leads:
            if time.monotonic() - self._beaten < BEAT_S:
                return True
            self._leads = self._patiently(self.book.renew)
            self._beaten = time.monotonic()
            if self._leads:
                return True
            self.tell("Another process leads the schedule now; this one was silent for too long.", True)
        if (holder := self._patiently(self.book.lead)) is not None:
            self._stand_by(holder)
            return False
        now = self.clock()
        self._agenda.fired = self._patiently(lambda: self.book.fired([job.job for job in self.jobs], now))
        self._leads, self._beaten = True, time.monotonic()
        self._tell_once(f"Leads the schedule of {self.settings.need_file()}: {self._outlook()}.")
        return True

    def _stand_by(self, holder: Holder) -> None:
        self._tell_once(f"Stands by: {holder.shown} leads the schedule. Takes over when it is gone.")

    def _outlook(self) -> str:
        count = f"{len(self.jobs)} job{'s' if len(self.jobs) > 1 else ''}"
        coming = self._agenda.next_firing(self.clock())
        return count if coming is None else f"{count}, next {coming[1].job} at {coming[0]:%a %Y-%m-%d %H:%M %Z}"

    def _patiently(self, step: Callable[[], T]) -> T:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return step()
            except Busy as busy:
                if busy.away or self._waker.asked or time.monotonic() > until:
                    raise
                time.sleep(0.02)  # not by the waker: what woke it would be forgotten

    def _tell_once(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self.tell(text)

    # Firing.

    def _put_right(self) -> None:
        now = self.clock()
        for name in [job.job for job in self._agenda.ahead(now)]:
            if self._patiently(partial(self.book.mark, name, now, is_reset=True)):
                self.tell(f"{name}: its last firing lies ahead, so the clock was put back; its firings go on from now.", True)
            self._agenda.fired[name] = now

    def _deal_with(self, due: Due) -> None:
        name = due.job.job
        is_mine = self._patiently(partial(self.book.mark, name, due.firing.timestamp()))
        self._agenda.fired[name] = max(self._agenda.fired[name], due.firing.timestamp())
        if not is_mine:
            self._leads = self._leads and self._patiently(self.book.renew)
        elif due.was_missed and self.missed == "skip":
            self.tell(f"{name}: missed {_shown(due)} and is not made up for ([schedule] missed).")
        elif name not in self._children:
            self._start(due)
        elif due.job.if_running == "wait":
            self._waiting[name] = due
            self.tell(f"{name}: due {_shown(due)}, waits for its run before.")
        else:
            self.tell(f"{name}: due {_shown(due)}, left out: its run before is going on.", due.job.if_running == "fail")

    def _start(self, due: Due) -> None:
        name = due.job.job
        try:
            process = subprocess.Popen(
                run_command(self.settings, name), stdin=subprocess.DEVNULL, env={**os.environ, **self.environment},
                process_group=0,
            )  # fmt: skip  # a group of its own: Ctrl-C is for us to hand on
        except OSError as error:
            self.tell(f"{name}: cannot be started: {error}", True)
            return
        self._children[name] = Child(process, time.monotonic())
        self.tell(f"{name}: {'missed' if due.was_missed else 'due'} {_shown(due)}, started as process {process.pid}.")

    def _reap(self) -> None:
        for name, child in list(self._children.items()):
            code = child.process.poll()
            if code is None:
                continue
            del self._children[name]
            self._tell_end(name, code, time.monotonic() - child.since)
            if (waiting := self._waiting.pop(name, None)) and not self._waker.asked:
                self._start(waiting)

    def _tell_end(self, name: str, code: int, took_s: float) -> None:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else MEANINGS.get(code, "not one of ours")
        if code == 0:
            self.tell(f"{name}: done, {duration(took_s)}.")
            return
        if self._waker.asked and code in (-signal.SIGTERM, -signal.SIGINT, 129, 130, 143):
            self.tell(f"{name}: interrupted, {duration(took_s)}; its next firing goes on or begins anew (on_unfinished).")
            return
        look = shlex.join(project_command(self.settings, f"show {name}"))
        self.tell(f"{name}: ended with exit code {code} ({how}), {duration(took_s)}; see: {look}", code not in (5, 75))

    # Ending.

    def _end(self) -> None:
        """Hand the lead on, then end the children and wait for them. A second signal goes to them as well."""
        with contextlib.suppress(Busy, SQLAlchemyError):
            self.book.release()
        said = self._waker.asked[0] if self._waker.asked else "An error"
        names = ", ".join(self._children)
        self.tell(f"{said}: {f'ends {names} and waits' if names else 'nothing is running'}; the schedule is handed on.")
        handed = 0
        while self._children:
            if handed < max(1, len(self._waker.asked)):
                handed += 1
                for child in self._children.values():
                    with contextlib.suppress(ProcessLookupError):
                        child.process.terminate()
            self._waker.wait(BEAT_S)
            self._reap()


def _shown(due: Due) -> str:
    return f"{due.firing:%a %Y-%m-%d %H:%M %Z}"


def _said(error: Busy | SQLAlchemyError) -> str:
    return str(error) if isinstance(error, Busy) else " ".join(message_of(error).split())
