"""Pausing, cancelling and tuning a run from another process: ask its owner and wait until it obeyed.

a living owner     the request is written; the owner sees it within a second, ends or changes, and says so in the run's row
no living owner    nothing runs: to pause is to say so; to cancel, this process becomes the owner for a moment
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from batchrun.api import Place, open_reading
from batchrun.database.engines import control_engine
from batchrun.database.runfolder import AliveLock, run_folder
from batchrun.database.turnstile import OwnerTurn
from batchrun.database.urls import sqlite_file
from batchrun.errors import AlreadyRunning, ConfigError
from batchrun.ledger import requests
from batchrun.ledger.owner import Owner
from batchrun.ledger.reading import Reading, StoredRun
from batchrun.ledger.requests import CANCEL, PAUSE
from batchrun.options import checked_option, rate_shown
from batchrun.outages import insistently
from batchrun.reporting.text import sum_text
from batchrun.runs import FINISHED, RunStatus

OBEY_S = 10.0
"""How long an owner that lives may take to notice, beyond the ``grace`` that its running items have."""

LOOK_S = 0.1
PATIENT_S = 2.0
"""After that long people are told what is waited for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it, for people. ok: the run is as it was wished."""

    text: str
    ok: bool = True


def pause_run(place: Place, run: str, tell: Callable[[str], None], command: str = "batchrun") -> Answer:
    """Have a run pause after its running items. run: as for ``Reading.find``. tell: shows a line while it is waited for."""
    with open_reading(place) as reading:
        control = _Control(reading, run, tell, command)
        if not control.is_alive():
            return Answer(control.idle_text("pause"))
        control.ask(PAUSE)
        if not control.wait(lambda stored: stored.status is not RunStatus.RUNNING, "what is running ends first"):
            return control.not_yet("pause")
        return control.paused()


def cancel_run(place: Place, run: str, tell: Callable[[str], None], command: str = "batchrun") -> Answer:
    """End a run for good, after its running items. What is done stays done, and what is not stays undone."""
    with open_reading(place) as reading:
        control = _Control(reading, run, tell, command)
        until = time.monotonic() + control.patience_s
        while (stored := control.stored()).status not in FINISHED:
            if control.is_alive():
                control.ask(CANCEL)
                control.wait(lambda found: found.status is not RunStatus.RUNNING, "what is running ends first")
            elif _cancelled(place, reading, stored):
                break
            if time.monotonic() > until:
                return control.not_yet("cancel")
        return control.cancelled(was_finished=stored.status in FINISHED and not control.asked)


def tune_run(place: Place, run: str, given: Mapping[str, str], tell: Callable[[str], None], command: str = "batchrun") -> Answer:
    """Give a run that is going on other options: "workers", "rate"; as texts. Raises ConfigError where that cannot be."""
    tuned = _tuned(given)
    with open_reading(place) as reading:
        control = _Control(reading, run, tell, command)
        if not control.is_alive():
            raise ConfigError(control.idle_text("tune", " ".join(f"{_OPTIONS[name]} {text}" for name, text in given.items())))
        if "workers" in tuned and reading.record(control.run).workers == 0:
            raise ConfigError(f"Run {control.run} works inline (-j 0), so it has no workers to tune; --rate can be tuned.")
        control.ask("", tuned)
        if not control.wait(
            lambda stored: stored.status is not RunStatus.RUNNING or not control.pending(), "it has not obeyed yet"
        ):
            return control.not_yet("tune")
        return control.tuned(tuned)


_OPTIONS = {"workers": "-j", "rate": "--rate"}


def _tuned(given: Mapping[str, str]) -> dict[str, Any]:
    if not given:
        raise ConfigError("There is nothing to tune: give -j N, --rate 50/s, or both; --rate none takes a rate away.")
    made: dict[str, Any] = {}
    for name, text in given.items():
        try:
            made[name] = int(text) if name == "workers" and text.isascii() and text.isdigit() else text
            checked_option(name, made[name])
            if name == "workers" and made[name] in ("auto", 0):
                raise ValueError(f"{text!r} is no number of workers that a run can be given while it goes on, such as 4")
        except ValueError as error:
            raise ConfigError(f"--{name}: {error}") from None
    return made


class _Control:
    """One run, seen from outside. asked: something was."""

    def __init__(self, reading: Reading, run: str, tell: Callable[[str], None], command: str) -> None:
        self._reading = reading
        self._engine, self._tables = reading.parts
        self._tell = tell
        self._command = command
        self.run = reading.find(run)
        self.asked = False

    def stored(self) -> StoredRun:
        found = self._reading.stored(self.run)
        if found is None:
            raise ConfigError(f"Run {self.run} is no longer in the ledger.")
        return found

    def is_alive(self) -> bool:
        return self._reading.is_alive(self.stored())

    @property
    def patience_s(self) -> float:
        """How long to wait for the owner."""
        grace = self.stored().options.get("grace")
        return OBEY_S + (float(grace) if isinstance(grace, int | float) else 0.0)

    def ask(self, wanted: str, tuned: Mapping[str, Any] | None = None) -> None:
        self.asked = True
        requests.ask(self._engine, self._tables, self.run, wanted, tuned)

    def pending(self) -> bool:
        """Is what was tuned still to be obeyed?"""
        with self._engine.connect() as connection:
            found = requests.pending(connection, self._tables, self.run)
        return found is not None and bool(found.tuned)

    def wait(self, obeyed: Callable[[StoredRun], bool], meanwhile: str) -> bool:
        """Until it obeyed, or its owner is gone. False when that took too long."""
        began, told = time.monotonic(), False
        while not obeyed(stored := self.stored()) and self._reading.is_alive(stored):
            waited = time.monotonic() - began
            if waited > self.patience_s:
                return False
            if waited > PATIENT_S and not told:
                self._tell(f"Run {self.run} was asked; {meanwhile}. Waiting up to {self.patience_s:.0f} s.")
                told = True
            time.sleep(LOOK_S)
        return True

    # What people are told.

    def idle_text(self, what: str, options: str = "") -> str:
        """Nobody runs it: what that means for whoever wants it paused or tuned."""
        record = self._reading.record(self.run)
        if record.status in FINISHED:
            return f"There is nothing to {what}: run {self.run} is {record.status}."
        resume = f"{self._command} resume {self.run}" + (f" {options}" if options else "")
        return f"Run {self.run} is not running, it is {record.status}; go on with{' these options' if options else ''}: {resume}"

    def not_yet(self, what: str) -> Answer:
        return Answer(
            f"Run {self.run} was asked to {what}, and its owner has not obeyed within {self.patience_s:.0f} s. The request "
            f"stays; see how it is with: {self._command} show {self.run}",
            ok=False,
        )

    def paused(self) -> Answer:
        record = self._reading.record(self.run)
        resume = f"go on with: {self._command} resume {self.run}"
        if record.status is RunStatus.PAUSED:
            return Answer(f"Run {self.run} of {record.job} is paused ({sum_text(record.counts)}); {resume}")
        if record.status in FINISHED:
            return Answer(f"Run {self.run} was {record.status} before it could pause.")
        requests.withdraw(self._engine, self._tables, self.run)
        return Answer(f"Run {self.run} ended as {record.status} before it could pause ({record.note}); {resume}")

    def cancelled(self, *, was_finished: bool) -> Answer:
        record = self._reading.record(self.run)
        if record.status is RunStatus.CANCELLED:
            already = "was cancelled before" if was_finished else "is cancelled"
            return Answer(f"Run {self.run} of {record.job} {already} ({sum_text(record.counts)}); it does not go on any more.")
        if self.asked:
            requests.withdraw(self._engine, self._tables, self.run)
            return Answer(f"Run {self.run} was {record.status} before it could be cancelled.")
        return Answer(f"There is nothing to cancel: run {self.run} is {record.status}.")

    def tuned(self, tuned: Mapping[str, Any]) -> Answer:
        record = self._reading.record(self.run)
        if record.status is not RunStatus.RUNNING:
            if self.pending():
                requests.withdraw(self._engine, self._tables, self.run)
            return Answer(f"Run {self.run} is {record.status} by now; it was not tuned.", ok=record.status in FINISHED)
        told = []
        if "workers" in tuned:
            fewer = "" if record.workers >= tuned["workers"] else f", as PostgreSQL has no connections for {tuned['workers']}"
            told.append(f"{record.workers} worker{'' if record.workers == 1 else 's'}{fewer}")
        if "rate" in tuned:
            rate = checked_option("rate", tuned["rate"])
            told.append("no rate" if rate is None else f"a rate of {rate_shown(rate)}")
        return Answer(f"Run {self.run} of {record.job}: {'; '.join(told)}.")


def _cancelled(place: Place, reading: Reading, stored: StoredRun) -> bool:
    """Become the owner of a run that has none, and end it. False when somebody was quicker."""
    _, tables = reading.parts
    engine = control_engine(  # named as an owner's, so that the next one can end it if this process stands still
        place.ledger_spec() or place.spec(), application_name=f"batchrun-owner:{stored.id[:8]}:{stored.job}"
    )
    owner = Owner(engine, tables, stored.id)
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        if engine.dialect.name == "sqlite":
            lock = AliveLock(run_folder(sqlite_file(engine.url), stored.id))
            if not lock.take():
                lock.release(remove=False)
                return False
            stack.callback(lock.release, remove=True)
            owner.turn = OwnerTurn(run_folder(sqlite_file(engine.url), stored.id))
            stack.callback(owner.turn.close)
        try:
            insistently(lambda: owner.take_over(stored.epoch), again=owner.end_stuck_owner)
        except AlreadyRunning:
            return False
        insistently(owner.end_older_sessions)
        cut_off = "retry" if stored.options.get("idempotent") else "unknown"
        insistently(lambda: owner.adopt(cut_off=cut_off), again=owner.end_older_sessions)
        insistently(lambda: owner.finish(RunStatus.CANCELLED, f"asked to cancel by {requests.asker()}", 0.0))
        return True
