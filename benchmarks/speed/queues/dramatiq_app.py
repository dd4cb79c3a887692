"""Dramatiq's broker and actor, with its own middleware and retries as they come."""

from __future__ import annotations

import os
from importlib import import_module

from benchmarks.speed.queues.job import BROKER, perform

dramatiq = import_module("dramatiq")
broker = import_module("dramatiq.brokers.redis").RedisBroker(url=os.environ[BROKER])
dramatiq.set_broker(broker)
task = dramatiq.actor(perform)
