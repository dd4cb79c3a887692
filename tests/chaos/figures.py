"""What the plays of a scenario came to, and how that is shown: as a line, as a row of Markdown, as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.scenario import Scenario

EXACT = "0 lost, 0 doubled, nothing left"
HEAD = ["fault", "on", "bound", "struck", "verdict", "slowest", "a pool by hand"]


@dataclass
class Line:
    """One line of the table: a scenario on a database, over all its plays."""

    scenario: Scenario
    database: str
    plays: int = 0
    seconds: float = 0.0
    figures: Counter[str] = field(default_factory=Counter)
    control: str = ""
    failures: list[str] = field(default_factory=list)

    def add(self, figures: Counter[str], seconds: float) -> None:
        """One more play."""
        self.plays += 1
        self.seconds += seconds
        add_up(self.figures, figures)

    @property
    def verdict(self) -> str:
        return f"FAILED {len(self.failures)} of {self.plays}" if self.failures else EXACT

    def text(self) -> str:
        control = f" | a naive pool {self.control}" if self.control else ""
        return f"{self.scenario.name} | {self.database} | {self.verdict} | {shown(self.figures)} | {self.seconds:.0f} s{control}"

    def cells(self) -> list[str]:
        """As HEAD names them."""
        worst = {name.removeprefix("worst "): value for name, value in self.figures.items() if name.startswith("worst")}
        slowest = ", ".join(f"{name} {value:g}{'' if name.endswith('MB') else ' s'}" for name, value in worst.items())
        struck = ", ".join(figure(name, value) for name, value in self.figures.items() if not name.startswith("worst"))
        return [self.scenario.name, self.database, self.scenario.bound, struck, self.verdict, slowest, self.control]

    def json(self) -> dict[str, Any]:
        return {
            "scenario": self.scenario.name,
            "database": self.database,
            "plays": self.plays,
            "seconds": round(self.seconds, 1),
            "figures": dict(self.figures),
            "control": self.control,
            "failures": self.failures,
        }


def add_up(into: Counter[str], figures: Counter[str]) -> None:
    """Sums; of what is called worst or most, the maximum."""
    for name, value in figures.items():
        into[name] = max(into[name], value) if name.startswith(("worst", "most")) else into[name] + value


def shown(figures: Counter[str]) -> str:
    return ", ".join(figure(name, value) for name, value in figures.items())


def figure(name: str, value: float) -> str:
    if not name.startswith("worst"):
        return f"{value:,} {name}"
    return f"{name} {value:g}" if name.endswith("MB") else f"{name} {value:g} s"


def totals(lines: list[Line]) -> str:
    """Over all lines."""
    every: Counter[str] = Counter()
    for line in lines:
        add_up(every, line.figures)
    return f"{shown(every)}; {sum(len(line.failures) for line in lines)} of {sum(line.plays for line in lines)} plays failed"


def markdown(lines: list[Line]) -> str:
    """A table of the lines that were played."""
    rows = [HEAD, ["---"] * len(HEAD), *(line.cells() for line in lines if line.plays)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
