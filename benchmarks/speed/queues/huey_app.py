"""huey's queue: on Redis where there is one, else in a file; no results are kept."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from benchmarks.speed.queues.job import BROKER, perform, trial

huey = import_module("huey")
if os.environ.get(BROKER):
    queue = huey.RedisHuey("benchmarks", url=os.environ[BROKER], results=False)
else:
    queue = huey.SqliteHuey("benchmarks", filename=str(Path(trial().folder) / "huey.db"), results=False)
task = queue.task()(perform)
