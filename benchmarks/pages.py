"""Tables for a terminal and for Markdown, and putting them into a page, between their marks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; each line has as many cells."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def grid(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first line is the head."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def put(page: Path, mark: str, content: str) -> None:
    """Replace all that is between ``<!-- mark -->`` and ``<!-- end of mark -->``."""
    between = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end of {mark} -->)", re.DOTALL)
    page.write_text(between.sub(lambda found: f"{found[1]}\n{content}\n{found[2]}", page.read_text()))
