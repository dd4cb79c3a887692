"""What a user gives as items -> a source."""

from __future__ import annotations

from typing import Any, cast

from batchrun.sources.iterables import IterableSource
from batchrun.sources.source import Source

_METHODS = ("describe", "fingerprint", "bound", "total", "read")


def as_source(found: Any) -> Source:
    """Return a source as it is and any iterable as an ``IterableSource``.

    Raises ConfigError, which says what to pass instead, for what is neither, and for text, mappings and queries.
    """
    if not isinstance(found, type) and all(callable(getattr(found, name, None)) for name in _METHODS):
        return cast(Source, found)
    return IterableSource(found)
