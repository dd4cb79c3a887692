"""``run --if-running``: what happens when the job is already running: fail, skip this time, or wait for its end.

Overlap is by ownership in the ledger: a run of the same job with the same parameters whose owner lives, on whatever host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from batchrun.errors import AlreadyRunning, ConfigError, DatabaseError

if TYPE_CHECKING:
    from batchrun.api import Place
    from batchrun.jobs import Job
    from batchrun.runs import Report

LOOK_EVERY_S = 1.0
"""A look is one small query; nobody notices a second after hours."""

Tell = Callable[[str], None]


def checked_policy(text: str | None) -> str | None:
    """Read ``--if-running``; None where it was not given. Raises ConfigError."""
    from batchrun.options import checked_setting

    try:
        return None if text is None else str(checked_setting("if_running", text))
    except ValueError as error:
        raise ConfigError(f"--if-running: {error}") from None


def start_or_yield(
    start: Callable[[], Report], policy: str, is_open: Callable[[], bool], is_taken: Callable[[], bool], tell: Tell
) -> Report | None:
    """Start a run; where the job is running already do as ``policy`` says. None: it was skipped.

    is_open: this run was opened; one that then loses its ownership is not "already running". is_taken: somebody else
    still runs the job. A signal ends the wait at once, as any signal before a run is open.
    """
    told = False
    while True:
        try:
            return start()
        except AlreadyRunning as error:
            if policy == "fail" or is_open():
                raise
            if policy == "skip":
                tell(f"Skipped, nothing was started. {_first_sentence(error)}")
                return None
            if not told:
                tell(f"Waiting. {_first_sentence(error)}")
                told = True
        time.sleep(LOOK_EVERY_S)
        while is_taken():
            time.sleep(LOOK_EVERY_S)


def is_running(place: Place, job: Job, params: Mapping[str, Any]) -> bool:
    """Does somebody run this job with these parameters? While the ledger cannot be read nobody knows: True."""
    from sqlalchemy.exc import SQLAlchemyError

    from batchrun.api import open_reading
    from batchrun.resuming import unfinished_runs

    try:
        with open_reading(place) as reading:
            return any(reading.is_alive(stored) for stored in unfinished_runs(reading, job, params))
    except (DatabaseError, SQLAlchemyError):
        return True


def _first_sentence(error: AlreadyRunning) -> str:
    """Who is running; what to do about it is for those who did not ask for this."""
    return str(error).partition(". ")[0].rstrip(".") + "."
