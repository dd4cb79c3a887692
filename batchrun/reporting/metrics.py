"""A textfile for node_exporter's collector: what came of each job's last run.

One file may serve all jobs: what others have written in it is kept, under a lock on its folder. Or each job has its own, by
``{job}`` in the path. It is replaced by a rename, so that nobody reads half of it. Ten lines of text need no library.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

METRICS = {
    "batchrun_last_start_timestamp_seconds": "When the job's last run was opened, in Unix time.",
    "batchrun_last_end_timestamp_seconds": "When the job's last run ended, or could not begin, in Unix time.",
    "batchrun_last_success_timestamp_seconds": "When a run of the job last ended with exit code 0, in Unix time.",
    "batchrun_last_exit_code": "The exit code of the job's last run.",
    "batchrun_last_duration_seconds": "How long the job's last run took.",
    "batchrun_last_items": "Items of the job's last run, by what became of them.",
}
OUTCOMES = ("done", "failed", "skipped", "quarantined", "unknown", "pending")
LOCK_S = 2.0
_SAMPLE = re.compile(r'(?P<name>batchrun_\w+)\{(?P<labels>job="(?P<job>[^"\\]*)"(?:,outcome="\w+")?)\} (?P<value>\S+)')

Samples = dict[tuple[str, str], str]
"""(name, labels) -> value, as they are written."""


def write_metrics(
    path: Path, job: str, values: Mapping[str, float], items: Mapping[str, int], *, only_known: bool = False
) -> None:
    """Put a job's figures into the file; those that are not given stay as they are. Raises OSError, and ValueError for a
    file that is not batchrun's.

    values: of METRICS but the items. items: by outcome; empty = they stay. only_known: leave a file alone that does not
    know the job.
    """
    path = Path(str(path).replace("{job}", job))
    with _locked(path.parent):
        samples = _read(path)
        if only_known and not any(labels.startswith(f'job="{job}"') for _, labels in samples):
            return
        for name, value in values.items():
            samples[name, f'job="{job}"'] = _number(value)
        for outcome, count in items.items():
            samples["batchrun_last_items", f'job="{job}",outcome="{outcome}"'] = _number(count)
        _replace(path, _text(samples))


def _read(path: Path) -> Samples:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    found: Samples = {}
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        match = _SAMPLE.fullmatch(line)
        if match is None or match["name"] not in METRICS:
            raise ValueError(
                f"it holds {line.partition('{')[0][:80]!r}, which is none of batchrun's metrics; name a file of its own"
            )
        found[match["name"], match["labels"]] = match["value"]
    return found


def _text(samples: Samples) -> str:
    lines = []
    for name, meaning in METRICS.items():
        own = [f"{name}{{{labels}}} {value}" for (one, labels), value in sorted(samples.items()) if one == name]
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} gauge", *own] if own else []
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return str(int(value) if value == int(value) else round(value, 3))


def _replace(path: Path, text: str) -> None:
    """Not by tempfile: its files only their owner can read, and node_exporter is somebody else."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time in this folder; where it cannot be locked (a network drive), or not soon, it goes on without."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        until = time.monotonic() + LOCK_S
        while time.monotonic() < until:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)
