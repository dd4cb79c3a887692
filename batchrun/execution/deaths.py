"""What a worker's exit says, in words: by which signal or code it ended, and what that likely means."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

_CRASH = "a crash in C code: an extension module, a database driver, or too deep a recursion in one"
_CAUSES = {
    "SIGSEGV": _CRASH,
    "SIGBUS": "a crash in C code, or a file that was cut while it was mapped into memory",
    "SIGILL": "a crash in C code, or an extension that was built for another processor",
    "SIGFPE": _CRASH,
    "SIGABRT": "abort(): a failed assertion or a fatal error in C code or in the interpreter",
    "SIGXCPU": "the limit of CPU time (ulimit -t)",
    "SIGSYS": "a system call that a sandbox forbids",
}
_ADVICE_MEMORY = "If it repeats, lower --workers or give it more memory."
_ADVICE_CRASH = "To see where, run it with workers=0 under: python -X faulthandler"


def describe_exit(exitcode: int | None) -> str:
    """For people: by which signal, or with which code."""
    if exitcode is None:
        return "ended together with the fork server"
    if exitcode >= 0:
        return f"exited with code {exitcode}"
    return f"was killed by {_signal_name(exitcode)}"


def likely_cause(exitcode: int | None, *, out_of_memory: bool = False) -> str:
    """What such an exit comes from; empty where nobody knows.

    out_of_memory: the kernel has counted a victim of its out-of-memory killer meanwhile.
    """
    if exitcode is None:
        return ""
    if exitcode >= 0:
        return "os._exit() or something else ended the process from inside"
    if exitcode == -signal.SIGKILL:
        if out_of_memory:
            return "the kernel's out-of-memory killer: its count of victims rose"
        return "often the out-of-memory killer"
    return _CAUSES.get(_signal_name(exitcode), "somebody sent it that signal")


def advice(exitcode: int | None) -> str:
    """What to do about it; empty where there is nothing general to say."""
    if exitcode == -signal.SIGKILL:
        return _ADVICE_MEMORY
    crashes = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT")
    return _ADVICE_CRASH if exitcode is not None and exitcode < 0 and _signal_name(exitcode) in crashes else ""


def _signal_name(exitcode: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(-exitcode).name
    return f"signal {-exitcode}"


class OomWatch:
    """Counts how many processes of our control group the out-of-memory killer has ended since the watch began.

    Reads ``oom_kill`` of the group's memory.events (cgroup v2) or memory.oom_control (v1), else the whole system's in
    /proc/vmstat. Where there is none of them nothing is ever certain.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._file = _counter_file(root) if sys.platform == "linux" else None
        self._known = self._read()

    def took_one(self) -> bool:
        """True when the count rose by one that no earlier call has answered for."""
        now = self._read()
        if now <= self._known:
            return False
        self._known += 1
        return True

    def _read(self) -> int:
        if self._file is None:
            return 0
        with contextlib.suppress(OSError, ValueError):
            for line in self._file.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
        return 0


def _counter_file(root: Path) -> Path | None:
    found = [*_group_files(root), root / "proc/vmstat"]
    return next((path for path in found if os.access(path, os.R_OK) and "oom_kill " in path.read_text()), None)


def _group_files(root: Path) -> list[Path]:
    """In a container the group's own path is not mounted, but its files are at the top."""
    groups, made = root / "sys/fs/cgroup", []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                made += [groups / path.lstrip("/") / "memory.events", groups / "memory.events"]
            elif "memory" in controllers.split(","):
                v1 = groups / "memory"
                made += [v1 / path.lstrip("/") / "memory.oom_control", v1 / "memory.oom_control"]
    return made
