"""What is done to whom: the faults, one case of them, and the notes that a program keeps of its items."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

WORKERS = 4
TIMEOUT_S = 3.0
"""What a peer's own time limit is set to where a task hangs; elsewhere none is set, for anybody."""
RETRY_AFTER_S = 2.0
"""How long the naive retry waits: longer than the server is down."""


@dataclass(frozen=True)
class Fault:
    """One row of the table. guilty: which items may honestly end as failed: "none", "one" or "all"."""

    title: str
    guilty: str = "none"


FAULTS = {
    "kill": Fault("a worker is killed (SIGKILL) in the middle of an item"),
    "kill-all": Fault("every worker is killed at once"),
    "poison": Fault("an item kills its worker every time", "one"),
    "exit": Fault("`os._exit(0)` in a task", "one"),
    "sys-exit": Fault("`sys.exit()` in a task", "one"),
    "segfault": Fault("a task crashes the interpreter (segfault)", "one"),
    "exception": Fault("an exception that cannot be unpickled", "one"),
    "result": Fault("a result that cannot be pickled", "one"),
    "initializer": Fault("the initializer raises", "all"),
    "hang": Fault("a task hangs for ever", "one"),
    "server": Fault("the server is restarted"),
    "commit": Fault("COMMIT's reply is lost"),
    "parent": Fault("the parent is killed and started again"),
    "fork": Fault("an engine made before the pool"),
}
"""In the order of the table. The keys are what ``--faults`` takes."""


@dataclass(frozen=True)
class Case:
    """One fault on one peer, as it crosses to the program and to its workers.

    url: of the database. folder: where the notes and the marks of the fault are. items: they are 0 .. items - 1.
    guilty: the item at which the fault happens.
    """

    peer: str
    fault: str
    url: str
    folder: str
    items: int
    guilty: int

    @classmethod
    def read(cls, text: str) -> Self:
        return cls(**json.loads(text))

    def text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def mark(self) -> Path:
        """The file that is there once the fault has happened."""
        return Path(self.folder) / "fault"

    @property
    def timeout_s(self) -> float | None:
        return TIMEOUT_S if self.fault == "hang" else None

    def happens_once(self) -> bool:
        """Leave the mark; False if it was there already."""
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Notes:
    """The file of what is done that a careful program keeps: a line an item, as soon as the parent knows.

    A program that is started again reads it and leaves out what is done. The last line says how the program ended.
    """

    def __init__(self, folder: str) -> None:
        self._path = Path(folder) / "notes"
        self.done: set[int] = set()
        self.failed: dict[int, str] = {}
        self.end = ""
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            self._take(*line.split(" ", 2))

    def _take(self, kind: str, item: str, why: str) -> None:
        if kind == "end":
            self.end = why
        elif kind == "done":
            self.done.add(int(item))
            self.failed.pop(int(item), None)
        else:
            self.failed[int(item)] = why

    def note(self, kind: str, item: int = 0, why: str = "") -> None:
        """kind: "done", "failed" or "end"."""
        why = " ".join(why.split())[:200]
        self._take(kind, str(item), why)
        with self._path.open("a") as file:
            file.write(f"{kind} {item} {why}\n")
