"""When an item is tried again, and how long it waits: exponential, with full jitter, so that rivals spread out."""

from __future__ import annotations

import random

FIRST_S = 0.2
LONGEST_S = 60.0


def backoff_s(attempt: int) -> float:
    """Seconds to wait after attempt number ``attempt`` failed: random in 0 .. 0.2 x 2^(attempt - 1), at most 60.

    Full jitter, as the AWS Architecture Blog derives it ("Exponential Backoff And Jitter", 2015): the least work in
    total among rivals for one row.
    """
    ceiling = min(LONGEST_S, FIRST_S * 2.0 ** min(attempt - 1, 30))
    return random.uniform(0.0, ceiling)


def may_retry(attempt: int, base: int, retries: int) -> bool:
    """True while another attempt is left. base: attempts made before a person asked for the retry; they do not count."""
    return attempt - base <= retries
