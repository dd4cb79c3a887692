"""One measurement, in a process and a session of its own: ``python -m benchmarks.speed.program TRIAL``; JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

from benchmarks.speed import streams, work
from benchmarks.speed.peers import PEERS
from benchmarks.speed.trial import Measured, Trial, arrivals


def main(text: str) -> None:
    """Carry the trial out. What a peer prints must not get between: it goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    trial = Trial.read(text)
    import_module("batchrun.api")  # now, so that its import is nobody's time and nobody's memory
    os.environ[work.FOLDER] = trial.folder
    called_s, memory_mb = time.monotonic(), streams.resident_mb()
    measured = PEERS[trial.peer].run(trial)
    more = {**measured.more, "growth_mb": streams.peak_mb() - memory_mb, **others(trial, measured, called_s)}
    print(json.dumps(asdict(replace(measured, more=more))), file=out, flush=True)


def others(trial: Trial, measured: Measured, called_s: float) -> Mapping[str, float]:
    """What else there is to say about a trial.

    growth_mb, elsewhere: the most memory over what there was before the call. ready_ms: from the call to the last worker's
    arrival. idle_s: how long the worker that first ran out of work was idle at the end. of_ideal: of the speed that waiting
    alone would allow.
    """
    found = {}
    if arrived := arrivals(trial.folder):
        found["ready_ms"] = (arrived[-1] - called_s) * 1000
    if ended := [float(path.read_text()) for path in Path(trial.folder).glob("ended-*")]:
        found["idle_s"] = max(ended) - min(ended)
    if trial.task in ("wait", "wait_for_server"):
        found["of_ideal"] = measured.rate * work.WAIT_S / (trial.workers * trial.options.get("threads", 1))
    return found


if __name__ == "__main__":
    main(sys.argv[1])
