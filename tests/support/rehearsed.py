"""Tasks and items of dry runs. Workers import this module by name, so it imports little: each start pays for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from batchrun import Skip, keyset
from tests.support.oracle import Account, Label, work


def accounts(session: Session) -> object:
    return keyset(select(Account.id))


def numbers(session: Session) -> list[int]:
    return [1, 2, 3]


def making(session: Session) -> list[int]:
    """An items function that writes."""
    session.execute(text("CREATE TABLE made_by_items (id INTEGER)"))
    session.execute(insert(Label).values(name="by the items function"))
    session.commit()
    return [1, 2, 3]


def single(session: Session, item: int) -> None:
    work(session, item)


def by_row(session: Session, row: dict[str, str]) -> None:
    work(session, int(row["id"]))


def batch(session: Session, items: Sequence[int]) -> None:
    for item in items:
        work(session, item)


def committing(session: Session, item: int) -> None:
    """A task may call commit(), and goes on."""
    work(session, item)
    session.commit()
    session.execute(insert(Label).values(name=f"label {item}"))


def reading(session: Session, item: int) -> None:
    session.execute(select(Account.n).where(Account.id == item))


def awkward(session: Session, item: int) -> None:
    work(session, item)
    if item % 10 == 3:
        raise ValueError(f"item {item} is bad")
    if item % 10 == 5:
        raise Skip("not this one")


def dangling(session: Session, item: int) -> None:
    """A foreign key that is only checked at COMMIT."""
    session.execute(insert(Label).values(name=f"label {item}", account=-1 if item == 7 else item))


def past(session: Session, item: int) -> None:
    """COMMIT by the driver's own cursor, past the session."""
    work(session, item)
    if item == 7:
        raw: Any = session.connection().connection.driver_connection
        raw.cursor().execute("COMMIT")


def deadly(session: Session, item: int) -> None:
    work(session, item)
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)


def outside(item: int) -> None:
    """Without a session."""


MODES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "item": (single, {"workers": 2}),
    "chunk": (single, {"transaction": "chunk"}),
    "batched": (batch, {"batched": True}),
    "threads": (single, {"workers": 1, "threads": 2}),
    "commits": (committing, {}),
}
