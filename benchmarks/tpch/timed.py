"""Run a command and tell the CPU seconds of everything it started: ``python -m benchmarks.tpch.timed COMMAND ...``.

A fork server outlives its program by a moment and its workers are its own children, so nobody who waits for the program
alone would count them. Here what is left behind comes to us, and we wait for it too (Linux; elsewhere it is not counted).
The last line on stdout is the JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Returns the command's exit code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    began = time.monotonic()
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    seconds = time.monotonic() - began
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"seconds": seconds, "client_s": used.ru_utime + used.ru_stime}))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
