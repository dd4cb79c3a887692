"""Asking a worker that does not heed its time limit where it is, though it may hold the interpreter's lock.

worker   faulthandler on a real-time signal, writing into a file that has no name; a table there says which thread is
         at which order: 16 bytes written an order, nothing an item
parent   sends the signal, and reads the file through /proc/<pid>/fd

faulthandler's handler is C and takes no lock, so it answers also for a call into C that never comes back. Only Linux
has what this needs; elsewhere an item's place stays unknown.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import re
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from batchrun.execution.places import Frame, task_frame

NAME = "batchrun-stack"
PATIENCE_S = 0.2
"""How long an answer is waited for, where the worker is to be killed at once. A handler needs microseconds."""

_ENTRY = struct.Struct("=QQ")
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-fA-F]+)")
_LINE = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')


class Hook(NamedTuple):
    """How to ask a worker: the signal, the descriptor of its file, and the bytes of the table at its beginning."""

    signal: int
    descriptor: int
    table: int


class Stacks:
    """The worker's side."""

    def __init__(self, threads: int) -> None:
        """Register. ``hook`` is None where it cannot be done."""
        self.hook: Hook | None = None
        self._slots = 0
        if sys.platform == "linux":
            with contextlib.suppress(OSError, ValueError, AttributeError):  # without it only a message says less
                self.hook = self._register(threads)

    def _register(self, threads: int) -> Hook | None:
        number = _free_signal()
        if number is None:
            return None
        size = -(-threads * _ENTRY.size // mmap.PAGESIZE) * mmap.PAGESIZE
        descriptor = os.memfd_create(NAME)
        os.ftruncate(descriptor, size)
        os.lseek(descriptor, size, os.SEEK_SET)
        self._table = mmap.mmap(descriptor, size)
        faulthandler.register(number, file=descriptor, all_threads=True, chain=False)
        return Hook(number, descriptor, size)

    def slot(self) -> Callable[[int], None]:
        """For one thread, called in it: a function that notes the order it is at."""
        if self.hook is None:
            return lambda order: None
        ident, table, at = threading.get_ident(), self._table, self._slots * _ENTRY.size
        self._slots += 1
        return lambda order: _ENTRY.pack_into(table, at, ident, order)


def _free_signal() -> int | None:
    """The highest real-time signal that nobody handles; the very last is what valgrind takes."""
    numbers = range(signal.SIGRTMAX - 1, signal.SIGRTMIN, -1)
    return next((number for number in numbers if signal.getsignal(number) is signal.SIG_DFL), None)


class Question:
    """The parent's side: asks one worker, once, when it is made."""

    def __init__(self, pid: int, hook: Hook | None) -> None:
        self._pid, self._hook = pid, hook
        self._file = Path(f"/proc/{pid}/fd/{hook.descriptor}") if hook else None
        self._asked = time.monotonic()
        self._from = self._ask()

    def _ask(self) -> int:
        """Send the signal, which would kill a process that has not registered it: so look first that it is our worker's."""
        if self._hook is None or self._file is None:
            return 0
        with contextlib.suppress(OSError):
            if NAME in os.readlink(self._file):  # noqa: PTH115 - the target is no path
                size = self._file.stat().st_size
                os.kill(self._pid, self._hook.signal)
                return size
        return 0

    def answer(self, order: int) -> str | None:
        """What is known about the thread that runs the order, as the end of a sentence; None = wait a moment."""
        state = _state(self._pid)
        if state in "Tt":
            return "it was stopped (SIGSTOP)" if state == "T" else "it was held by a debugger"
        if not self._from:
            return "where it was is not known"
        table, stacks = self._read()
        if not stacks and time.monotonic() - self._asked < PATIENCE_S:
            return None
        if not stacks:
            return "it did not answer" + (": it waited inside the kernel, for a disk perhaps" if state == "D" else "")
        idents = [ident for ident, at in _ENTRY.iter_unpack(table) if at == order and ident]
        frame = task_frame(stacks.get(idents[0], [])) if idents else None
        return f"it was at {frame}" if frame else "where it was is not known"

    def _read(self) -> tuple[bytes, dict[int, list[Frame]]]:
        assert self._hook is not None
        assert self._file is not None
        with contextlib.suppress(OSError), self._file.open("rb") as opened:
            data = opened.read()
            return data[: self._hook.table], parsed(data[self._from :].decode(errors="replace"))
        return b"", {}


def parsed(dump: str) -> dict[int, list[Frame]]:
    """What faulthandler wrote: each thread's stack, outermost first, by its ident."""
    found: dict[int, list[Frame]] = {}
    stack: list[Frame] = []
    for line in dump.splitlines():
        if match := _THREAD.match(line):
            stack = found.setdefault(int(match[1], 16), [])
        elif match := _LINE.match(line):
            stack.insert(0, Frame(match[1], int(match[2]), match[3]))
    return found


def _state(pid: int) -> str:
    """R, S, D, T ... as the kernel has it; "?" where it does not say."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "?"
