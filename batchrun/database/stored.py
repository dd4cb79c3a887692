"""A statement that the server keeps prepared, since planning the mark anew costs it more than running it.

first           BEGIN; PREPARE m(int, int) AS UPDATE ...; EXECUTE m(7, 41)      one message, as ever
after that      BEGIN; EXECUTE m(7, 42)
now and then    BEGIN; DEALLOCATE m; PREPARE m(int, int) AS ...; EXECUTE m(7, 43)

Its name is made of its text. So whatever session a pooler that was not noticed leads to, what is found there under this
name is this very statement; and where nothing is found, or something unexpectedly, a few times, it goes as a text again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

RENEWED_AFTER = 1000
"""Executions until it is prepared anew. The server keeps the plan of a table that was small then: a scan of all its rows."""

MOST_SURPRISES = 5

_NOT_THERE, _THERE_ALREADY = "26000", "42P05"


class Statement:
    """Over two whole numbers. text: makes it of them, or of their placeholders."""

    __slots__ = ("forget", "head", "prepare", "text")

    def __init__(self, text: Callable[[int | str, int | str], str]) -> None:
        body = text("$1", "$2")
        name = f"batchrun_{hashlib.blake2b(body.encode(), digest_size=12).hexdigest()}"
        self.text = text
        self.prepare = f"PREPARE {name}(int, int) AS {body}"
        self.forget = f"DEALLOCATE {name}"
        self.head = f"EXECUTE {name}("


Call = tuple[Statement, int, int]
"""A statement and its numbers."""


class Keeper:
    """What the server of one connection keeps. is_trusted: it is where we left it; not so behind a pooler."""

    __slots__ = ("_kept", "_left", "_surprises", "is_trusted")

    def __init__(self, *, is_trusted: bool) -> None:
        self.is_trusted = is_trusted
        self._kept: Statement | None = None
        self._left = 0
        self._surprises = 0

    def statements(self, call: Call) -> tuple[str, ...]:
        """What to send for it."""
        statement, first, second = call
        if self._left > 0 and self._kept is statement:
            self._left -= 1
            return (f"{statement.head}{first}, {second})",)
        if not self.is_trusted:
            return (statement.text(first, second),)
        forget = () if self._kept is None else (self._kept.forget,)
        self._kept, self._left = statement, RENEWED_AFTER
        return (*forget, statement.prepare, f"{statement.head}{first}, {second})")

    def is_surprised(self, error: BaseException) -> bool:
        """Did they fail only because of what the server keeps? ``statements`` then answers differently from now on."""
        state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        if not self.is_trusted or state not in (_NOT_THERE, _THERE_ALREADY):
            return False
        self._surprises += 1
        self.is_trusted = self._surprises < MOST_SURPRISES
        if state == _NOT_THERE:
            self._kept = None
        self._left = RENEWED_AFTER if state == _THERE_ALREADY and self.is_trusted else 0
        return True
