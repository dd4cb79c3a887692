"""From the measurements of all rounds to medians, spreads, ratios and verdicts. No clock and no process in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from benchmarks.speed.trial import Measured
from benchmarks.speed.workloads import BEST, Goal, Limit, Workload

Rounds = Mapping[str, Sequence[Measured]]
"""Lane -> its measurement in each round."""

TRIPS_SLACK = 0.1
"""Round trips an item that the parent may add: it cuts chunks and ends them, some statements for a hundred items or more."""


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
    """Whether something wanted is reached. wanted: for people. against: the lane that was compared with; "" = none.

    found: of the rounds. at_least, at_most, stretch: the bounds; None = none.
    """

    lane: str
    wanted: str
    against: str
    found: Spread
    at_least: float | None = None
    at_most: float | None = None
    stretch: float | None = None

    @property
    def is_reached(self) -> bool:
        return self._holds(self.found.middle)

    @property
    def word(self) -> str:
        """Such as "reached", "reached, stretch too" or "not reached: 8 % short (within the spread)"."""
        if self.is_reached:
            return "reached, stretch too" if self.stretch is not None and self.found.middle >= self.stretch else "reached"
        if self.at_least is not None:
            short = f"not reached: {1 - self.found.middle / self.at_least:.0%} short"
        else:
            short = f"not reached: {self.found.middle / (self.at_most or 1) - 1:.0%} over"
        is_near = self._holds(self.found.greatest) or self._holds(self.found.least)
        return short.replace("%", " %") + (" (within the spread)" if is_near else "")

    def _holds(self, figure: float) -> bool:
        return figure >= self.at_least if self.at_least is not None else figure <= (self.at_most or 0)


def rates(measured: Sequence[Measured]) -> Spread:
    """Items a second over the rounds."""
    return Spread.of([one.rate for one in measured])


def figure(measured: Sequence[Measured], key: str) -> Spread | None:
    """A figure over the rounds: "rate", or one that only some trials have; None where none has it."""
    found = [one.rate if key == "rate" else one.more[key] for one in measured if key == "rate" or key in one.more]
    return Spread.of(found) if found else None


def with_next_ms(measured: Sequence[Measured], alone: Sequence[Measured], further: int) -> list[Measured]:
    """Add ``next_ms``: what each of the ``further`` workers took beyond the one that was started ``alone``, in each round."""
    found = []
    for many, one in zip(measured, alone, strict=False):
        next_ms = (many.more["ready_ms"] - one.more["ready_ms"]) / further
        found.append(replace(many, more={**many.more, "next_ms": next_ms}))
    return found


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


def cpu_ratio(rounds: Rounds, lane: str, against: str) -> float | None:
    """How many times as little CPU a lane needs an item as another, client and server together; noise hardly touches it."""
    mine, other = (_cpu_us(rounds.get(key, ())) for key in (lane, against))
    return other / mine if mine and other else None


def _cpu_us(measured: Sequence[Measured]) -> float | None:
    client = per_item_us(measured, "client_s")
    return None if client is None else client + (per_item_us(measured, "server_s") or 0.0)


def verdicts(workload: Workload, rounds: Rounds, trips: Mapping[str, float]) -> list[Verdict]:
    """One for everything wanted whose lanes were measured. trips: lane -> round trips an item."""
    best = best_peer(workload, rounds)
    found = [_of_goal(goal, rounds, best if goal.against == BEST else goal.against) for goal in workload.goals]
    found += [_of_limit(limit, rounds) for limit in workload.limits]
    found += [_of_trips(lane, trips, best) for lane in workload.lean]
    return [one for one in found if one is not None]


def _of_goal(goal: Goal, rounds: Rounds, against: str | None) -> Verdict | None:
    compared = ratio(rounds, goal.lane, against) if against else None
    if against is None or compared is None:
        return None
    return Verdict(goal.lane, goal.text(), against, compared, at_least=goal.at_least, stretch=goal.stretch)


def _of_limit(limit: Limit, rounds: Rounds) -> Verdict | None:
    found = figure(rounds.get(limit.lane, ()), limit.figure)
    return None if found is None else Verdict(limit.lane, limit.text, "", found, at_least=limit.at_least, at_most=limit.at_most)


def _of_trips(lane: str, trips: Mapping[str, float], best: str | None) -> Verdict | None:
    if best is None or lane not in trips or best not in trips:
        return None
    more = trips[lane] - trips[best]
    wanted = f"no round trip more than the {BEST} (≤ {TRIPS_SLACK:g}, for chunks)"
    return Verdict(lane, wanted, best, Spread(more, more, more), at_most=TRIPS_SLACK)
