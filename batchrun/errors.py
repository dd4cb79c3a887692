"""Every error batchrun raises, on one page.

    BatchrunError                    the base; carries the exit code of the command line
    +-- ConfigError           (2)    an option, a parameter or config.toml is wrong
    |   +-- UnknownRun        (2)    no run, or more than one, goes by that name
    |   +-- RunChanged        (2)    a resume over changed code, parameters or input
    +-- JobError              (4)    the job's code cannot be found, loaded or called
    +-- DatabaseError         (6)    the database cannot be reached, or refuses us
    +-- AlreadyRunning       (75)    the run has a living owner
    +-- RunPaused             (5)    a firing found its run paused by a person
    +-- RunHalted             (3)    a firing found its run halted by max_failures
    +-- ItemsFailed           (1)    raised only by ``Report.raise_for_failures()``
    +-- ItemTimeout           (1)    raised inside a task whose time is up

    Skip, Retry                      raised *by* a task to steer the runner; never errors

Each survives pickling: the arguments of ``__init__`` are the arguments of the exception.
"""

from __future__ import annotations

from typing import ClassVar


class BatchrunError(Exception):
    """The base of all errors of batchrun. ``exit_code`` is what the command line ends with."""

    exit_code: ClassVar[int] = 1


class ConfigError(BatchrunError):
    """Raised when an option, a parameter or a line of config.toml is wrong, before any work starts."""

    exit_code = 2


class UnknownRun(ConfigError):
    """Raised when a run is named that the ledger does not hold, or a prefix fits several."""


class RunChanged(ConfigError):
    """Raised when a run is resumed but its code, parameters or input are not what they were."""


class JobError(BatchrunError):
    """Raised when a job or task cannot be found, loaded, called or sent to a worker."""

    exit_code = 4


class DatabaseError(BatchrunError):
    """Raised when the database cannot be reached, refuses us, or lacks what the ledger needs."""

    exit_code = 6


class AlreadyRunning(BatchrunError):
    """Raised when another living process owns the run."""

    exit_code = 75


class RunPaused(BatchrunError):
    """Raised when on_unfinished="resume" finds a run that a person has paused: only a person lets it go on."""

    exit_code = 5


class RunHalted(BatchrunError):
    """Raised when on_unfinished="resume" finds a run that max_failures has halted: somebody must look first."""

    exit_code = 3


class ItemsFailed(BatchrunError):
    """Raised by ``Report.raise_for_failures()`` when a run did not settle every item as done or skipped."""


class ItemTimeout(BatchrunError):
    """Raised inside a task when the ``timeout`` of its item is over. Retried only where ``retry_on`` names it."""


class Skip(Exception):
    """Raised by a task to leave its item out: what it did is rolled back and the item counts as skipped.

    ``reason`` is for people and may be empty.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Retry(Exception):
    """Raised by a task to have its item tried again.

    after: seconds until the next attempt; None = the usual back-off. The attempt counts:
    ``retries=N`` still means N + 1 attempts, and the last one fails the item with this reason.
    """

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after

    def __reduce__(self) -> tuple[object, ...]:
        return (_retry, (self.reason, self.after))


def _retry(reason: str, after: float | None) -> Retry:
    return Retry(reason, after=after)
