"""A scenario: one row of the table of faults, with its dose, its oracle and its control.

    @scenario("kill -9 a random worker", dose=60, soak=2000, bound="next item within 1 s")
    def random_worker(world: World) -> None: ...

    @random_worker.control
    def _(world: World) -> str: ...        "hangs", "loses 3", "doubles 2": what the same fault does to a naive pool

Three sizes by one factor: the test suite (CHAOS=0.2 by default), ``python -m tests.chaos --dose 1``, the soak. A dose is how
often the fault strikes, never how many runs there are: many strikes fall into one run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.world import World

Story = Callable[["World"], None]
Control = Callable[["World"], str]

SCENARIOS: dict[str, Scenario] = {}
"""Every scenario by its name, in the order of the modules that hold them."""


@dataclass
class Scenario:
    """dose, soak: strikes at dose 1 and in an hour's soak (0 = not part of it). bound: the row's bound on time, for people.

    databases: "postgresql" (psycopg2), "psycopg3", "sqlite": the whole dose strikes on each. needs: a program without which
    it cannot be played, such as "pgbouncer".
    """

    name: str
    story: Story
    dose: int
    soak: int
    bound: str
    databases: tuple[str, ...]
    needs: str = ""
    against: Control | None = None

    def control(self, against: Control) -> Control:
        """Declare the control; it returns what happened, and raises AssertionError where the naive pool survived."""
        self.against = against
        return against

    def strikes(self, factor: float) -> int:
        """How often the fault strikes at this size: at least once."""
        return max(1, round(self.dose * factor))


def scenario(
    name: str, *, dose: int, soak: int = 0, bound: str = "", databases: tuple[str, ...] = ("postgresql",), needs: str = ""
) -> Callable[[Story], Scenario]:
    """Register a story as a scenario."""

    def register(story: Story) -> Scenario:
        assert name not in SCENARIOS, f"there are two scenarios called {name!r}"
        made = SCENARIOS[name] = Scenario(name, story, dose, soak, bound, databases, needs)
        return made

    return register
