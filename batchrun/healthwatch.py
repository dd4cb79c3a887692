"""A thread that looks after the database's health while a run goes on; the runner's loop reads what it saw last.

A question may take as long as the network wants, and the user's own check as long as it wants. The loop must meanwhile hear
its workers, beat and obey, so it does not ask itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from batchrun.database.health import Seen, look
from batchrun.throttling import Throttle


class HealthWatch:
    """Looks every ``throttle.every`` seconds, until ``stop`` is called. seen: the last look; looks: how many there were."""

    def __init__(self, engine: Engine, throttle: Throttle, check: Callable[..., Any] | None) -> None:
        self._engine = engine
        self._throttle = throttle
        self._check = check
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="batchrun-health", daemon=True)
        self.seen = Seen()
        self.looks = 0
        self._looked = 0.0

    def start(self) -> None:
        """Look once, so that a run does not begin at full speed on a server that is in trouble; then begin to watch."""
        self._look()
        self._thread.start()

    @property
    def is_stuck(self) -> bool:
        """Is the last look long over, and the next one not done? Then nobody knows how the database is."""
        return time.monotonic() - self._looked > 4 * self._throttle.every + 10.0

    def stop(self) -> None:
        """Look no more. One that is on its way is waited for only a moment: it changes nothing."""
        self._over.set()
        self._thread.join(1.0)

    def _watch(self) -> None:
        while not self._over.wait(self._throttle.every):
            self._look()

    def _look(self) -> None:
        self.seen = look(self._engine, self._throttle, self._check)
        self._looked = time.monotonic()
        self.looks += 1
