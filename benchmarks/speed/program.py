"""One measurement, in a process and a session of its own: ``python -m benchmarks.speed.program TRIAL``; JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

from benchmarks.speed.peers import PEERS
from benchmarks.speed.trial import Trial


def main(text: str) -> None:
    """Carry the trial out. What a peer prints must not get between: it goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    trial = Trial.read(text)
    measured = PEERS[trial.peer].run(trial)
    print(json.dumps(asdict(measured)), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
