"""The results as a table in text, in Markdown, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import pages
from benchmarks.faults.cases import FAULTS
from benchmarks.faults.judge import Result

CORNER = "what happens"


class Cell(NamedTuple):
    """What stands in the table for one fault on one peer."""

    peer: str
    fault: str
    word: str
    is_fine: bool


def cell_of(result: Result) -> Cell:
    return Cell(result.peer, result.fault, result.judgement.word, result.judgement.is_fine)


def read_cells(files: Sequence[Path]) -> tuple[list[Cell], str]:
    """The cells of earlier runs' ``--json``, of which a later file replaces those of an earlier, and their facts."""
    found, facts = {}, ""
    for file in files:
        data = json.loads(file.read_text())
        facts = data["facts"]
        for one in data["results"]:
            found[one["peer"], one["fault"]] = Cell(one["peer"], one["fault"], one["word"], one["is_fine"])
    return list(found.values()), facts


def put(page: Path, content: str) -> None:
    """Put the table into a page, between its two marks."""
    pages.put(page, "faults", content)


def grid(results: Sequence[Cell], titles: dict[str, str]) -> list[list[str]]:
    """Rows of words: the first is the head. titles: peer -> what stands over its column."""
    words = {(result.peer, result.fault): result.word for result in results}
    peers = [peer for peer in titles if any(result.peer == peer for result in results)]
    faults = [fault for fault in FAULTS if any(result.fault == fault for result in results)]
    body = [[FAULTS[fault].title, *(words.get((peer, fault), "-") for peer in peers)] for fault in faults]
    return [[CORNER, *(titles[peer] for peer in peers)], *body]


def as_markdown(results: Sequence[Cell], titles: dict[str, str], *, is_brief: bool = False) -> str:
    """A Markdown table; what is as it should be stands in bold. is_brief: of each cell only the gravest, which comes first."""
    fine = {(FAULTS[result.fault].title, titles[result.peer]) for result in results if result.is_fine}
    head, *body = grid(results, titles)
    lines = [head]
    for fault, *words in body:
        words = [word.partition(",")[0] if is_brief else word for word in words]
        cells = [f"**{word}**" if (fault, peer) in fine else word for peer, word in zip(head[1:], words, strict=True)]
        lines.append([fault, *cells])
    return pages.grid(lines)


def as_text(results: Sequence[Cell], titles: dict[str, str]) -> str:
    """Columns of equal width for a terminal."""
    return pages.columns(grid(results, titles))


def as_data(result: Result) -> dict[str, Any]:
    """A result for ``--json``: the judgement, how it ended, and how long it took."""
    seen = result.seen
    return {
        "peer": result.peer,
        "fault": result.fault,
        **asdict(result.judgement),
        "ending": seen.ending,
        "orphans": seen.orphans,
        "seconds": seen.seconds,
    }
