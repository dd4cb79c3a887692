"""SQLite: the folder beside the database that holds a run's lock files while the run goes on.

<database>-batchrun-<run>/alive                    locked by the owner for as long as it lives
                          queue, owner, writer     the turnstile
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path


def run_folder(database: Path, run: str) -> Path:
    return database.with_name(f"{database.name}-batchrun-{run}")


class AliveLock:
    """The owner's lock. The kernel frees it when the owner dies, whatever it dies of."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder
        self._descriptor = os.open(folder / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _held.add(self._descriptor)

    def take(self) -> bool:
        """True when it is ours now; False when a living owner holds it."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self, *, remove: bool) -> None:
        """Let go. remove: the run's lock files are needed no more."""
        if remove:
            shutil.rmtree(self._folder, ignore_errors=True)
        _held.discard(self._descriptor)
        os.close(self._descriptor)


_held: set[int] = set()


def let_go_in_child() -> None:
    """In a forked child: close our copies, or the parent would seem to live on in its workers."""
    while _held:
        os.close(_held.pop())


def is_held(folder: Path) -> bool:
    """True when a living owner holds the run of this folder."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(folder / "alive", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False
