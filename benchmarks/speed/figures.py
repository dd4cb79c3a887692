"""From the measurements of all rounds to medians, spreads, ratios and verdicts. No clock and no process in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.speed.trial import Measured
from benchmarks.speed.workloads import BEST, Goal, Workload

Rounds = Mapping[str, Sequence[Measured]]
"""Lane -> its measurement in each round."""


@dataclass(frozen=True)
class Spread:
    """The middle of some figures, and the least and the greatest of them."""

    middle: float
    least: float
    greatest: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Raises ValueError for no figures."""
        return cls(median(figures), min(figures), max(figures))


@dataclass(frozen=True)
class Verdict:
    """Whether a goal is reached. against: the lane that was compared with. ratio: of each round, then the middle."""

    goal: Goal
    against: str
    ratio: Spread

    @property
    def is_reached(self) -> bool:
        return self.ratio.middle >= self.goal.at_least

    @property
    def word(self) -> str:
        """Such as "reached", "reached, stretch too" or "not reached: 8 % short (within the spread)"."""
        if self.is_reached:
            is_stretched = self.goal.stretch is not None and self.ratio.middle >= self.goal.stretch
            return "reached, stretch too" if is_stretched else "reached"
        short = f"not reached: {1 - self.ratio.middle / self.goal.at_least:.0%} short".replace("%", " %")
        return f"{short} (within the spread)" if self.ratio.greatest >= self.goal.at_least else short


def rates(measured: Sequence[Measured]) -> Spread:
    """Items a second over the rounds."""
    return Spread.of([one.rate for one in measured])


def per_item_us(measured: Sequence[Measured], what: str) -> float | None:
    """Microseconds of CPU an item, the median of the rounds. what: "client_s" or "server_s"; None = not known."""
    found = [getattr(one, what) / one.items * 1e6 for one in measured if getattr(one, what) is not None]
    return median(found) if found else None


def best_peer(workload: Workload, rounds: Rounds) -> str | None:
    """The lane of the peer with the highest median; None = no peer was measured."""
    peers = [lane.key for lane in workload.lanes if lane.is_peer and rounds.get(lane.key)]
    return max(peers, key=lambda key: rates(rounds[key]).middle, default=None)


def ratio(rounds: Rounds, lane: str, against: str) -> Spread | None:
    """How many times as quick a lane is as another: the ratio within each round, so that a slow minute hits both."""
    pairs = zip(rounds.get(lane, ()), rounds.get(against, ()), strict=False)
    found = [mine.rate / other.rate for mine, other in pairs]
    return Spread.of(found) if found else None


def verdicts(workload: Workload, rounds: Rounds) -> list[Verdict]:
    """One for each goal both of whose lanes were measured."""
    found = []
    for goal in workload.goals:
        against = best_peer(workload, rounds) if goal.against == BEST else goal.against
        compared = ratio(rounds, goal.lane, against) if against else None
        if against and compared:
            found.append(Verdict(goal, against, compared))
    return found
