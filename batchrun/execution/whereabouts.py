"""Which item this thread is at, for what a task logs and prints meanwhile. Only asked when something is said."""

from __future__ import annotations

import threading
from typing import Any, Protocol


class Runner(Protocol):
    """What runs items in a thread. at: the item and the number of its attempt; None between items."""

    at: tuple[Any, int] | None


_here = threading.local()


def stay(runner: Runner) -> None:
    """From now on this thread's items are this runner's."""
    _here.runner = runner


def whereabouts() -> tuple[Any, int] | None:
    """The item and its attempt, counted from 1; None outside of a task, and in a thread that a task started itself."""
    runner: Runner | None = getattr(_here, "runner", None)
    return None if runner is None else runner.at
