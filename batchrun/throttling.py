"""How gently a run treats its database, as plain data: the limits of ``[throttle]`` in config.toml."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from batchrun.errors import ConfigError

EVERY_S = 5.0
"""How often the database is asked: seldom enough to cost nothing, often enough that half the workers stop within seconds."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """When a run slows down; None = never for that reason. All of it is off unless asked for.

    max_replica_lag: seconds that the slowest replica may be behind. max_waiting_locks: sessions of the database that wait
    for a lock. max_active_sessions: sessions of the server at work, ours included. max_wal_backlog: bytes of WAL that wait
    to be archived. check: "package.module:function", which gets a Connection and returns True, False or a reason.
    every: seconds between two looks.
    """

    max_replica_lag: float | None = None
    max_waiting_locks: int | None = None
    max_active_sessions: int | None = None
    max_wal_backlog: int | None = None
    check: str | None = None
    every: float = EVERY_S

    @property
    def asks_server(self) -> bool:
        """Does it measure anything that only PostgreSQL can tell?"""
        measured = (self.max_replica_lag, self.max_waiting_locks, self.max_active_sessions, self.max_wal_backlog)
        return any(limit is not None for limit in measured)

    @property
    def is_on(self) -> bool:
        return self.asks_server or self.check is not None


OFF = Throttle()


def load_check(dotted: str) -> Callable[..., Any]:
    """Import the user's own check. Raises ConfigError."""
    module, _, name = dotted.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(f"[throttle] check: {dotted!r} cannot be imported: {type(error).__name__}: {error}") from None
    if not callable(found):
        raise ConfigError(f"[throttle] check: {dotted!r} is not a function; it takes a Connection and returns True, or a reason")
    return cast("Callable[..., Any]", found)
