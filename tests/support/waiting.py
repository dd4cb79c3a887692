"""The one way tests wait: for something to become true, up to a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    predicate: Callable[[], T], timeout_s: float = 10.0, *, what: str | Callable[[], str] = "", every_s: float = 0.02
) -> T:
    """Return the first true value of ``predicate()``.

    timeout_s: seconds until AssertionError is raised, which names ``what`` (called then, if it can be), or else the predicate.
    every_s: seconds between two looks.
    """
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()  # never set: it only measures out the time between two looks
    while not (found := predicate()):
        if time.monotonic() >= deadline:
            named = what() if callable(what) else what
            raise AssertionError(f"Not within {timeout_s:g} s: {named or getattr(predicate, '__name__', predicate)}")
        pause.wait(every_s)
    return found
