"""What an exception means for its item: judged in the worker, where the driver's objects still exist."""

from __future__ import annotations

import enum
import sqlite3
import traceback
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import DBAPIError, StatementError

from batchrun.database.gate import GateError, PartialCommit
from batchrun.errors import ItemTimeout, Retry, Skip
from batchrun.items import ItemError

MAX_MESSAGE = 10_000
MAX_TRACEBACK = 20_000
MAX_SEARCHED = 1_000_000
"""So many characters are searched for secrets, 0.1 s of work; half a secret at their end is far beyond what is shown."""


class Meaning(enum.Enum):
    """What to do about it."""

    SKIP = "skip"
    RETRY = "retry"  # it may pass: after a pause, while attempts are left
    CONFLICT = "conflict"  # a deadlock or serialization failure: at once, in place, twice
    LOST = "lost"  # the connection is gone, COMMIT included: ask the ledger
    READ_ONLY = "read-only"  # the server writes nothing now: another connection may lead to one that does
    FULL = "full"  # no room, no memory, no connection left: wait until somebody mends it
    PARTIAL = "partial"  # the task committed by itself: part of its work may stand
    TIMEOUT = "timeout"
    FAIL = "fail"


READ_ONLY_STATE = "25006"
_CONFLICTS = frozenset({"40001", "40P01"})
_PASSING = ("08", "53", "57P")
_FULL = frozenset({"53000", "53100", "53200", "53300"})  # not 53400: a limit that was set, such as temp_file_limit
_BUSY = {5, 6}  # SQLITE_BUSY, SQLITE_LOCKED: the low byte of the extended code
_SQLITE_FULL = 13


def meaning_of(error: BaseException, *, is_lost: bool, retry_on: tuple[type[BaseException], ...], writes: bool = True) -> Meaning:
    """Classify an exception that came out of a task, its mark or its COMMIT.

    is_lost: the worker's own connection is known to be unusable now. psycopg2 gives no SQLSTATE after an
    administrator's shutdown, so the state alone cannot work. writes: False in a run that may only read, where a
    write that is refused is the task's fault.
    """
    if isinstance(error, Skip):
        return Meaning.SKIP
    if isinstance(error, Retry):
        return Meaning.RETRY
    if isinstance(error, PartialCommit):
        return Meaning.PARTIAL
    if is_lost:
        return Meaning.LOST
    if isinstance(error, ItemTimeout) and not isinstance(error, retry_on):
        return Meaning.TIMEOUT
    if retry_on and isinstance(error, retry_on):
        return Meaning.RETRY
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return Meaning.RETRY  # a connection of the task's own
    driver_error = _driver_error(error)
    if driver_error is not None:
        return _of_database(driver_error, writes)
    if isinstance(error, GateError):
        return Meaning.FAIL
    return Meaning.RETRY if isinstance(error, ConnectionError | TimeoutError) else Meaning.FAIL


def _driver_error(error: BaseException) -> BaseException | None:
    """The driver's own exception: inside SQLAlchemy's wrapper, or bare where the gate spoke to the driver."""
    if isinstance(error, StatementError):
        return error.orig if isinstance(error, DBAPIError) else None
    return error if is_driver_error(error) else None


def is_driver_error(error: BaseException) -> bool:
    """True for an exception of psycopg2, psycopg or sqlite3 itself."""
    return type(error).__module__.partition(".")[0] in ("psycopg2", "psycopg") or isinstance(error, sqlite3.Error)


def _of_database(error: BaseException, writes: bool) -> Meaning:
    state = sqlstate_of(error) or ""
    if state in _CONFLICTS:
        return Meaning.CONFLICT
    if state in _FULL or (isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF == _SQLITE_FULL):
        return Meaning.FULL
    if state == READ_ONLY_STATE and writes:
        return Meaning.READ_ONLY
    if state.startswith(_PASSING) or state == "55P03":
        return Meaning.RETRY
    if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY:
        return Meaning.RETRY
    return Meaning.FAIL


def sqlstate_of(error: BaseException) -> str | None:
    """The five characters, wherever the driver keeps them."""
    inner: Any = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    state = getattr(inner, "sqlstate", None) or getattr(inner, "pgcode", None)
    return state if isinstance(state, str) and len(state) == 5 else None


# libpq reports a refused connection without any code, so here, and only here, the text has to do.
_REFUSALS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied",
             "is not permitted to log in",
             "permission denied", "certificate", "not accept SSL", "unable to open database file", "file is not a database",
             "invalid response to SSL", "invalid integer value", "could not translate host name", "invalid connection option",
             "invalid sslmode", "root certificate", "unsupported startup parameter")  # fmt: skip


def is_refusal(error: BaseException) -> bool:
    """True when connecting failed for a reason that waiting does not mend: a password, a missing database."""
    state, said = sqlstate_of(error) or "", str(error)
    if "Temporary failure in name resolution" in said:
        return False
    return state[:2] in ("28", "3D", "42") or any(refusal in said for refusal in _REFUSALS)


def is_away(error: BaseException) -> bool:
    """True when a statement of the parent's failed because its connection broke or could not be made, because the
    server has no room, or because it takes no writes now; but not for a refusal."""
    if not isinstance(error, DBAPIError) or is_refusal(error):
        return False
    state = sqlstate_of(error) or ""
    if error.connection_invalidated or state.startswith(("08", "57P")) or (error.statement is None and not state):
        return True
    return meaning_of(error, is_lost=False, retry_on=()) in (Meaning.FULL, Meaning.READ_ONLY)


def plain_error(error: BaseException, *, with_traceback: bool = True, hide: Callable[[str], str] = str) -> ItemError:
    """Turn an exception into plain data. Never raises, whatever its ``__str__`` does.

    hide: takes secrets out, before long texts are cut, since half a secret would not be known for one.
    """
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ in ("builtins", "batchrun.errors") else f"{kind.__module__}.{kind.__qualname__}"
    text = traceback_text(error, hide) if with_traceback else ""
    return ItemError(name, message_of(error, hide), sqlstate_of(error), text)


def message_of(error: BaseException, hide: Callable[[str], str] = str) -> str:
    """The exception's text, cut, and always encodable."""
    try:
        said = error.reason if isinstance(error, Skip | Retry) else str(getattr(error, "orig", None) or error)
    except BaseException as second:  # a broken __str__ is the task's fault and must not end the worker
        said = f"(its text cannot be shown: __str__ raised {type(second).__name__})"
    return _clean(hide(said[:MAX_SEARCHED]), MAX_MESSAGE)


def traceback_text(error: BaseException, hide: Callable[[str], str] = str) -> str:
    """The traceback as text, the frames of batchrun itself left out. Never raises."""
    try:
        lines = traceback.format_exception(type(error), error, _past_our_frames(error), limit=50)
        return _clean(hide("".join(lines)[:MAX_SEARCHED]), MAX_TRACEBACK)
    except BaseException:  # a broken __str__, a recursion at its limit: the type is told elsewhere
        return ""


def place_of(error: BaseException) -> str:
    """Where it was raised, as `` (file:line)``, for a message of one line; empty where nobody knows."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return "" if frame is None else f" ({frame.tb_frame.f_code.co_filename}:{frame.tb_lineno})"


def _past_our_frames(error: BaseException) -> Any:
    found = error.__traceback__
    while (
        found is not None and found.tb_next is not None and found.tb_frame.f_globals.get("__name__", "").startswith("batchrun.")
    ):
        found = found.tb_next
    return found


def _clean(text: str, longest: int) -> str:
    text = text.strip() if len(text) <= longest else text[: longest - 5].strip() + " ..."
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\\x00")
