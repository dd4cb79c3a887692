"""What a source is: a description of where items come from, and a reader that takes them lazily and once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from batchrun.items import Item

Cursor = Any
"""Where a reader stands: plain data that ``batchrun.codec`` writes and reads without loss; None = at the start."""


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What a source may use in the parent.

    engine: the parent's own engine for short reads; None where the run has no database.
    folder: what relative paths are relative to.
    durable: the cursor will be stored, so it must be exact (an iterable keeps a rolling hash only then).
    """

    engine: Engine | None
    folder: Path
    durable: bool


class Reader(Protocol):
    """Takes items in order, each once."""

    @property
    def cursor(self) -> Cursor:
        """The position behind the last item taken."""

    @property
    def exhausted(self) -> bool:
        """True once nothing more will come."""

    def take(self, limit: int, budget_s: float = 0.1) -> list[Item]:
        """Return up to ``limit`` items, fewer when ``budget_s`` seconds are over, none when exhausted.

        What the source raises is raised only after all items before it were handed out.
        """

    def close(self) -> None:
        """Let go of files and connections; may be called twice."""


class Source(Protocol):
    """Where items come from. Making one reads nothing."""

    def describe(self) -> str:
        """One line for people, such as ``keyset of orders.id`` or ``flights.csv.gz``."""

    def fingerprint(self, context: SourceContext) -> Mapping[str, str]:
        """What must be the same on resume: a name people understand -> its value as text."""

    def bound(self, context: SourceContext) -> Any:
        """The upper bound, fixed when the run opens; plain data; None where the source ends by itself."""

    def total(self, context: SourceContext, bound: Any) -> int | None:
        """How many items there will be, or about; None where counting would cost more than a moment."""

    def read(self, context: SourceContext, after: Cursor, upto: Any) -> Reader:
        """Open a reader that goes on strictly behind ``after`` and ends at ``upto``."""
