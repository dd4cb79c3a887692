"""What keeps a run from going on, as the error its caller gets."""

from __future__ import annotations

from batchrun.errors import AlreadyRunning, BatchrunError, DatabaseError, JobError
from batchrun.execution.orders import Failed
from batchrun.runs import Report


def as_error(failed: Failed) -> BatchrunError:
    """The error to raise; the worker's traceback is a note on it, which Python shows and the command line does not."""
    error = _error_of(failed)
    if failed.traceback:
        error.add_note(f"In the worker:\n{failed.traceback}")
    return error


def _error_of(failed: Failed) -> BatchrunError:
    if failed.kind == "fenced":
        return AlreadyRunning(failed.text)
    if failed.kind == "database":
        return DatabaseError(f"A worker was refused by the database: {failed.text}")
    if failed.kind == "corrupt":
        return BatchrunError(failed.text)
    return JobError(f"A worker could not start its work, so the run was stopped: {failed.text}")


def source_error(error: BaseException, job: str, report: Report) -> BatchrunError:
    if isinstance(error, BatchrunError):
        return error
    return JobError(
        f"The source of {job} raised {type(error).__name__}: {error}. The {report.planned} items before it are settled "
        f"or recorded; run {report.run} is interrupted."
    )
