"""What the owner of a run writes and is told, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from batchrun.items import ItemError


@dataclass(slots=True)
class NewRun:
    """What a run's row starts with. ``cursor`` and ``bound`` as texts of the codec; params and options as JSON."""

    id: str
    job: str
    name: str | None
    fingerprint: str
    params: str
    options: str
    guarantee: str
    workers: int
    bound: str | None
    total: int | None


@dataclass(slots=True)
class OpenChunk:
    """A chunk that a resume found open."""

    no: int
    pos: int
    size: int
    deaths: int


@dataclass(slots=True)
class Billed:
    """What a death came to: the item at ``pos`` has died ``deaths`` times; quarantined when that was the last."""

    pos: int
    deaths: int
    quarantined: bool = False


class Fate(NamedTuple):
    """What an item came to that has a row of its own. after_s: until it is tried again, of those in "retry"."""

    state: str
    error: ItemError | None
    after_s: float
