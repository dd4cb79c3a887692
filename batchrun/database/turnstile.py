"""Whose turn it is to write to a SQLite file.

SQLite has one writer at a time and no queue: with a plain busy timeout four workers with 0.2 s items got 40, 1, 1
and 1 of them, and the parent wrote once in 8 s. Three lock files make a turnstile. A worker takes ``queue``, steps
through ``owner``, takes ``writer`` and lets ``queue`` go, so whoever has just written stands behind those who wait.
The parent never blocks: it takes ``owner``, and once those already past it have written, ``writer`` is free.
The kernel frees the locks of a process that is killed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

NAMES = ("queue", "owner", "writer")


class Turnstile:
    """A worker thread's way in. ``enter`` blocks until it is its turn; ``leave`` may be called when not inside."""

    def __init__(self, folder: Path) -> None:
        self._queue, self._owner, self._writer = (_open(folder / name) for name in NAMES)
        self._inside = False

    def enter(self, on_wait: tuple[Callable[[], None], Callable[[], None]] | None = None) -> None:
        """Wait for this thread's turn. on_wait: called before a wait that is not over at once, and after it."""
        if self._inside:
            return
        waits = _take(self._queue, fcntl.LOCK_EX, on_wait)
        try:
            waits = _take(self._owner, fcntl.LOCK_SH, None if waits else on_wait) or waits
            fcntl.flock(self._owner, fcntl.LOCK_UN)
            waits = _take(self._writer, fcntl.LOCK_EX, None if waits else on_wait) or waits
            self._inside = True
        finally:
            fcntl.flock(self._queue, fcntl.LOCK_UN)
        if waits:
            _tell(on_wait, 1)

    def leave(self) -> None:
        if self._inside:
            self._inside = False
            fcntl.flock(self._writer, fcntl.LOCK_UN)

    def close(self) -> None:
        for descriptor in (self._queue, self._owner, self._writer):
            os.close(descriptor)


class OwnerTurn:
    """The parent's way in: ``try_enter`` answers at once and keeps its place between calls."""

    def __init__(self, folder: Path) -> None:
        self._owner, self._writer = (_open(folder / name) for name in NAMES[1:])
        self._waiting = False

    def try_enter(self) -> bool:
        """True = the parent may write now, until ``leave``. False = call again; no worker can pass meanwhile."""
        self._waiting = self._waiting or _try(self._owner)
        return self._waiting and _try(self._writer)

    def leave(self) -> None:
        fcntl.flock(self._writer, fcntl.LOCK_UN)
        fcntl.flock(self._owner, fcntl.LOCK_UN)
        self._waiting = False

    def close(self) -> None:
        os.close(self._owner)
        os.close(self._writer)


def _take(descriptor: int, way: int, on_wait: tuple[Callable[[], None], Callable[[], None]] | None) -> bool:
    """Take a lock. True when it had to be waited for."""
    if _try(descriptor, way):
        return False
    _tell(on_wait, 0)
    fcntl.flock(descriptor, way)
    return True


def _tell(on_wait: tuple[Callable[[], None], Callable[[], None]] | None, which: int) -> None:
    if on_wait:
        on_wait[which]()


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try(descriptor: int, way: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, way | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
