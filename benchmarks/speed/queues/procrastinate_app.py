"""Procrastinate's app, on a database of its own beside the task's; BENCHMARK_BROKER is its URL."""

from __future__ import annotations

import os
from importlib import import_module

from benchmarks.speed.queues.job import BROKER, perform

procrastinate = import_module("procrastinate")
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ[BROKER]))
task = app.task(name="perform")(perform)
