"""Celery's app: results are ignored, and short tasks are fetched many at a time, as its manual advises."""

from __future__ import annotations

import os
from importlib import import_module

from benchmarks.speed.queues.job import BROKER, perform, trial

app = import_module("celery").Celery("benchmarks", broker=os.environ[BROKER])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=trial().options["prefetch"],
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)
task = app.task(name="perform")(perform)
