"""What a statement's text does to the transaction or the session it runs in, judged once per text."""

from __future__ import annotations

import enum
import re
from functools import lru_cache


class Effect(enum.Enum):
    """PLAIN: nothing special. CONTROL: begins or ends a transaction. LEAVES: outlives the transaction."""

    PLAIN = 0
    CONTROL = 1
    LEAVES = 2


_QUOTED = re.compile(
    r"\bE'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|(\$\w*\$).*?\1|--[^\n]*|/\*.*?\*/",
    re.DOTALL | re.IGNORECASE,
)
_CONTROL = re.compile(
    r"(?:BEGIN|COMMIT|END|ABORT|START\s+TRANSACTION|PREPARE\s+TRANSACTION|ROLLBACK(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO))\b",
    re.IGNORECASE,
)
_LEAVES = re.compile(
    r"(?:SET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b)|RESET\b|LISTEN\b|LOAD\b|DISCARD\b|PREPARE\b|ATTACH\b|PRAGMA\b[^=]*="
    r"|CREATE\s+(?:LOCAL\s+|GLOBAL\s+)?TEMP(?:ORARY)?\b|DECLARE\b.*\bWITH\s+HOLD\b)",
    re.IGNORECASE | re.DOTALL,
)
_LEAVES_ANYWHERE = re.compile(r"\bpg_(?:try_)?advisory_lock(?:_shared)?\s*\(|\bset_config\s*\(|\bINTO\s+TEMP", re.IGNORECASE)
_BODY = re.compile(r"CREATE\s+(?:TEMP\w*\s+)?TRIGGER\b", re.IGNORECASE)
_ROUTINE = re.compile(r"CREATE\s+(?:OR\s+REPLACE\s+)?(?:FUNCTION|PROCEDURE)\b", re.IGNORECASE)
_ATOMIC = re.compile(r"\bBEGIN\s+ATOMIC\b.*?;\s*END\b(?=\s*(?:;|$))", re.IGNORECASE | re.DOTALL)


@lru_cache(maxsize=4096)
def effect_of(statement: str) -> Effect:
    """Judge a statement's text, or several separated by semicolons. Quoted parts and comments do not count."""
    bare = _QUOTED.sub(" ", statement)
    if _BODY.match(bare.lstrip()):  # its body is BEGIN ... END, which ends nothing
        return Effect.LEAVES if "TEMP" in bare.upper() else Effect.PLAIN
    if _ROUTINE.match(bare.lstrip()):
        bare = _ATOMIC.sub(" ", bare)
    pieces = [piece.strip() for piece in bare.split(";")]
    if any(_CONTROL.match(piece) for piece in pieces):
        return Effect.CONTROL
    if _LEAVES_ANYWHERE.search(bare) or any(_LEAVES.match(piece) for piece in pieces):
        return Effect.LEAVES
    return Effect.PLAIN
