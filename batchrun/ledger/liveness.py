"""Is the owner of a run alive? By its heartbeat on the server's clock; on its own host, by looking at its process."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

LEASE_S = 30.0
"""An owner whose heartbeat is older is taken for gone. Six heartbeats, so that one slow commit costs nothing."""

HEARTBEAT_S = 5.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told apart from a later one with the same number: host, boot, process id, start time."""

    host: str
    boot: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.host}|{self.boot}|{self.pid}|{self.started}"

    @property
    def shown(self) -> str:
        """For people."""
        return f"process {self.pid} on {self.host}"


def this_process() -> Process:
    return Process(socket.gethostname(), _boot(), os.getpid(), _started(os.getpid()) or "")


def parse(text: str) -> Process | None:
    """Read what ``str(Process)`` wrote; None for anything else."""
    host, boot, pid, started = [*text.split("|"), "", "", "", ""][:4]
    return Process(host, boot, int(pid), started) if pid.isdigit() else None


def is_provably_gone(owner: Process) -> bool:
    """True only when the owner ran on this very host and is not there any more."""
    here = this_process()
    if owner.host != here.host:
        return False
    if owner.boot != here.boot:
        return owner.boot.partition(":")[2] == here.boot.partition(":")[2]  # same pid namespace name, another boot
    return _started(owner.pid) != owner.started


def _boot() -> str:
    """The boot and the process namespace, because a container may share its host's name with another."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ":"


def _started(pid: int) -> str | None:
    """When the process started; None when there is none, or it is a zombie."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    asked = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or None
