"""One peer over the items of one case, in a process of its own: ``python -m benchmarks.faults.program CASE``."""

from __future__ import annotations

import logging
import sys

from benchmarks.faults.cases import Case, Notes
from benchmarks.faults.peers import PEERS, carry_out


def main(text: str) -> None:
    """Carry the case out and note how it ended, whatever is raised."""
    case = Case.read(text)
    logging.getLogger("distributed").setLevel(logging.ERROR)
    notes = Notes(case.folder)
    try:
        carry_out(PEERS[case.peer], case, notes)
    except BaseException as error:
        notes.note("end", why=f"raised {type(error).__name__}: {error}")
        raise
    notes.note("end", why="ended")


if __name__ == "__main__":
    main(sys.argv[1])
