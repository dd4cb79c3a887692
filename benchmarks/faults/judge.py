"""From what the database and the program say to one word: the judgement of a case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from benchmarks.faults.cases import FAULTS


@dataclass(frozen=True)
class Seen:
    """What was seen of a case.

    applied: item -> how often its effect is in the database. done, failed: what the program said at last of an item.
    ending: "ended", "raised X: why", "hung", "late" (still at work when the time was up) or "died: why".
    orphans: processes left two seconds after the program's end.
    """

    items: int
    applied: Mapping[int, int]
    done: Set[int]
    failed: Set[int]
    ending: str
    guilty: Set[int] = frozenset()
    orphans: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Judgement:
    """Numbers of items.

    lost: not applied although nothing was wrong with them, or nobody was told. told: the fault's own items, not applied
    and reported as failed: as it should be. doubled: applied more than once. misreported: reported as failed although
    applied once, so that whoever believes it doubles them.
    """

    word: str
    lost: int
    doubled: int
    told: int
    misreported: int
    applied: int
    is_fine: bool


def guilty_of(fault: str, items: int, guilty: int) -> frozenset[int]:
    """The items that may honestly fail."""
    kind = FAULTS[fault].guilty
    return frozenset(range(items) if kind == "all" else {guilty} if kind == "one" else ())


def judge(seen: Seen) -> Judgement:
    """Judge a case by the database."""
    times = Counter(seen.applied)
    everything = set(range(seen.items))
    raised = seen.ending.startswith("raised")
    nothing_done = raised and seen.guilty == everything and not +times
    missing = {item for item in everything if not times[item]}
    told = everything if nothing_done else missing & seen.guilty & seen.failed
    lost = missing - told
    doubled = {item for item, count in times.items() if count > 1}
    misreported = {item for item in seen.failed if times[item] == 1}
    word = _word(seen, lost, doubled, told, misreported)
    fine = not (lost or doubled or misreported) and (seen.ending == "ended" or nothing_done)
    return Judgement(word, len(lost), len(doubled), len(told), len(misreported), len(everything - missing), fine)


def _word(seen: Seen, lost: Set[int], doubled: Set[int], told: Set[int], misreported: Set[int]) -> str:
    if len(told) == seen.items:
        return "says so"
    parts = []
    if seen.ending == "hung":
        parts.append("hangs")
    elif seen.ending == "late":
        parts.append("unfinished")
    elif seen.ending != "ended":
        parts.append("aborts")
    if lost and seen.ending not in ("hung", "late"):  # what a hanging program has not done yet, it has not lost yet
        parts.append(f"loses {len(lost)}")
    if doubled:
        parts.append(f"doubles {len(doubled)}")
    if misreported:
        parts.append(f"misreports {len(misreported)}")
    if told and not parts:
        parts.append(f"fails {len(told)}")
    return ", ".join(parts) or "ok"


@dataclass(frozen=True)
class Result:
    """A cell of the table."""

    peer: str
    fault: str
    seen: Seen
    judgement: Judgement = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "judgement", judge(self.seen))
