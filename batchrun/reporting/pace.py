"""How fast a run goes: items a second over the last half minute, and when it will be through."""

from __future__ import annotations

from collections import deque

WINDOW_S = 30.0
STEP_S = 0.5


class Pace:
    """Fed with the time of the monotonic clock and the number of settled items.

    It measures from the first item settled on: until then the workers were starting.
    """

    def __init__(self, settled: int) -> None:
        self._before = settled
        self._marks: deque[tuple[float, int]] = deque()
        self._last = (0.0, settled)

    def note(self, now: float, settled: int) -> None:
        """So many items are settled by now."""
        self._last = (now, settled)
        if settled > self._before and (not self._marks or now - self._marks[-1][0] >= STEP_S):
            self._marks.append(self._last)
        while len(self._marks) > 1 and now - self._marks[1][0] >= WINDOW_S:
            self._marks.popleft()

    @property
    def rate(self) -> float | None:
        """Items a second; None until half a second and an item after the first."""
        if not self._marks:
            return None
        (began, first), (now, settled) = self._marks[0], self._last
        return (settled - first) / (now - began) if now - began >= STEP_S and settled > first else None

    def left_s(self, total: int | None) -> float | None:
        """Seconds until ``total`` items are settled; None where nobody can tell."""
        rate = self.rate
        return None if total is None or rate is None else max(0, total - self._last[1]) / rate
