"""A thread that says for the owner that it lives, where the runner's loop may stand still for long.

It stands still in a consumer of ``iter_parallel`` that takes its time, and with ``workers=0`` in a long item. The loop's own
heartbeat would then stop, and after the lease another process might take the run over although this one lives. A process
that is stopped (SIGSTOP, a suspended machine) is silent with all of its threads, and loses the run, as it should.
"""

from __future__ import annotations

import contextlib
import threading

from sqlalchemy.exc import SQLAlchemyError

from batchrun.ledger.liveness import HEARTBEAT_S
from batchrun.ledger.marks import Fenced
from batchrun.ledger.owner import Busy, Owner


class Heartbeat:
    """Beats for ``owner`` over a connection of its pool until ``stop`` is called; fenced or not, it raises nothing.

    What it finds out the loop finds out by itself: each of the owner's statements carries the epoch.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="batchrun-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more; a beat that is on its way is waited for."""
        self._over.set()
        self._thread.join(HEARTBEAT_S)

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            with contextlib.suppress(Busy, Fenced, SQLAlchemyError):
                self._owner.beat()
