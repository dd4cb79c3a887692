"""batchrun: one function over many items against a database, in parallel, each effect committed exactly once."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchrun.api import iter_parallel, run_parallel
    from batchrun.errors import BatchrunError, ItemTimeout, Retry, Skip
    from batchrun.items import Outcome
    from batchrun.jobs import job
    from batchrun.runs import Report
    from batchrun.sources.files import csv_rows, jsonl, lines
    from batchrun.sources.keysets import keyset
    from batchrun.tasks import Context

_HOMES = {
    "BatchrunError": "errors",
    "Context": "tasks",
    "ItemTimeout": "errors",
    "Outcome": "items",
    "Report": "runs",
    "Retry": "errors",
    "Skip": "errors",
    "csv_rows": "sources.files",
    "iter_parallel": "api",
    "job": "jobs",
    "jsonl": "sources.files",
    "keyset": "sources.keysets",
    "lines": "sources.files",
    "run_parallel": "api",
}

__all__ = [
    "BatchrunError",
    "Context",
    "ItemTimeout",
    "Outcome",
    "Report",
    "Retry",
    "Skip",
    "csv_rows",
    "iter_parallel",
    "job",
    "jsonl",
    "keyset",
    "lines",
    "run_parallel",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``batchrun --help`` never pays for SQLAlchemy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'batchrun' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"batchrun.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
