"""Where an item is: the innermost line of the user's own code, and the statement that was cut off.

Both ends need it: a worker reads the traceback of what its time limit raised, the parent the stack of a worker that
does not heed the limit.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy.exc import StatementError

from batchrun.database.failures import sqlstate_of
from batchrun.errors import ItemTimeout

MAX_STATEMENT = 200
CANCELLED, LOCKED = "57014", "55P03"
_CHAIN = 20
_OURS = str(Path(__file__).parents[1]) + os.sep
_RUNNER = str(Path(__file__).with_name("strategies.py"))
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_TUPLE = re.compile(r"\(\d+,\d+\)")


class Frame(NamedTuple):
    """A line of a stack."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        here = os.curdir
        with contextlib.suppress(OSError):
            here = os.getcwd()  # noqa: PTH109 - of the process as it is, and without a link followed
        inside = self.file.startswith(here + os.sep)
        return f"{self.file[len(here) + 1 :] if inside else self.file}:{self.line} in {self.function}"


def task_frame(stack: Sequence[Frame]) -> Frame | None:
    """The innermost line that is neither ours nor a library's; of a task in a library its own; None where none is left.

    stack: outermost first.
    """
    first = max((n for n, frame in enumerate(stack) if frame.file == _RUNNER), default=-1) + 1
    while first < len(stack) and stack[first].file.startswith(_OURS):
        first += 1
    inner = [frame for frame in stack[first:] if not frame.file.startswith((_OURS, "<frozen"))]
    own = [frame for frame in inner if not frame.file.startswith(_LIBRARIES) and not frame.file.endswith(".pyx")]
    if own:
        return own[-1]
    ended_in_ours = bool(stack) and stack[-1].file.startswith(_OURS)
    is_tasks = bool(inner) and not ended_in_ours and f"{os.sep}sqlalchemy{os.sep}" not in inner[0].file
    return inner[0] if is_tasks else None


def shortened(statement: str) -> str:
    """SQL on one line, cut."""
    line = " ".join(statement.split())
    return line if len(line) <= MAX_STATEMENT else line[: MAX_STATEMENT - 4] + " ..."


def overrun_text(limit_s: float, error: BaseException) -> str:
    """What the ItemTimeout of an item says whose limit showed as ``error``: what was running."""
    cut = [one for one in _chain(error) if isinstance(one, ItemTimeout) or is_cancelled(one)]
    statement = next(filter(None, map(_statement_of, cut)), "")
    frame = next(filter(None, (task_frame(_frames(one)) for one in [error, *cut])), None)
    place = f" ({frame})" if frame else ""
    over = f"The item's time limit of {limit_s:g} s is over"
    if any(map(_waited_for_lock, cut)):
        return f"{over}: it waited for a lock{f', in: {shortened(statement)}' if statement else ''}{place}"
    if statement:
        return f"{over}; cancelled was: {shortened(statement)}{place}"
    return f"{over}; it was at {frame}" if frame else f"{over}; the task ended only after it."


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found and len(found) < _CHAIN:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found


def is_cancelled(error: BaseException) -> bool:
    """Was a statement cut off: cancelled, interrupted (SQLite), or by the limit on waiting for a lock?"""
    inner = getattr(error, "orig", None) or error
    if isinstance(inner, sqlite3.Error):
        return getattr(inner, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT
    return sqlstate_of(error) in (CANCELLED, LOCKED)


def by_lock_timeout(error: BaseException) -> bool:
    """55P03 is also what NOWAIT gives; only lock_timeout cuts a statement off in this function of the server."""
    return sqlstate_of(error) == LOCKED and _diagnosis(error, "source_function") == "ProcessInterrupts"


def _waited_for_lock(error: BaseException) -> bool:
    """Its own code says so, or the line of context that names a row, whatever the server's language."""
    return by_lock_timeout(error) or (
        sqlstate_of(error) == CANCELLED and bool(_TUPLE.search(_diagnosis(error, "context").partition("\n")[0]))
    )


def _diagnosis(error: BaseException, name: str) -> str:
    inner: Any = getattr(error, "orig", None) or error
    return getattr(getattr(inner, "diag", None), name, None) or ""


def _statement_of(error: BaseException) -> str:
    """As SQLAlchemy tells it, or else as it stands in the frame that ran it."""
    if isinstance(error, StatementError) and error.statement:
        return str(error.statement)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name.startswith("do_execute") and "sqlalchemy" in frame.f_code.co_filename:
            return str(frame.f_locals.get("statement") or "")
    return ""


def _frames(error: BaseException) -> list[Frame]:
    return list(_walk(error))


def _walk(error: BaseException) -> Iterator[Frame]:
    for frame, line in traceback.walk_tb(error.__traceback__):
        yield Frame(frame.f_code.co_filename, line, frame.f_code.co_name)
