"""Values and exceptions that do not cross between processes as others do."""

from __future__ import annotations

import os
from typing import Any


class TwoArguments(Exception):
    """Pickles, but cannot be read again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class Exits:
    """Ends whoever reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


class RaisesWhenShown(Exception):
    """Has neither text nor representation."""

    def __str__(self) -> str:
        raise RuntimeError("no text either")

    __repr__ = __str__


def recursive() -> list[Any]:
    """A structure as deep as no pickle goes."""
    found: list[Any] = []
    for _ in range(100_000):
        found = [found]
    return found
