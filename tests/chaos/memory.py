"""How much memory and how many descriptors this process has."""

from __future__ import annotations

import os
import resource
from pathlib import Path

PAGE_KIB = resource.getpagesize() / 1024


def resident_kib(pid: int | None = None) -> float:
    """What a process has in memory now."""
    return int(Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()[1]) * PAGE_KIB


def descriptors() -> int:
    """How many files, pipes and sockets are open."""
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 # the listing itself is one


class Peak:
    """The most memory this process has had since this was made, beyond what it had then; the kernel keeps the record."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._highest()

    @staticmethod
    def _highest() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    @property
    def grown_mb(self) -> float:
        return (self._highest() - self._before) / 1024
