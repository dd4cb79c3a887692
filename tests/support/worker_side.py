"""A worker's side of a run, in this process and without a parent: what an item costs, and nothing else.

orders that nobody planned  ->  the OrderRunner of a worker  ->  the database
plain(...)                  the same task with ``Session(engine)``: what people write without batchrun
"""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Engine, create_engine, insert, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from batchrun.database.drivers import Status
from batchrun.database.engines import spec_of
from batchrun.execution.orders import Message, Sent, Settled
from batchrun.execution.processes import tally_file
from batchrun.execution.work import Work
from batchrun.execution.worker import Parts
from batchrun.ledger import schema
from batchrun.ledger.marks import MarksSpec
from batchrun.options import RunOptions
from batchrun.tasks import task_shape
from tests.support.databases import engine_for

Task = Callable[..., Any]

_numbers = itertools.count()


class Base(DeclarativeBase):
    """The table of the figures."""


class Stock(Base):
    """One row an item; a task adds one to ``n``."""

    __tablename__ = "stock"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(default=0)
    name: Mapped[str] = mapped_column(default="a name as long as names are")


def reading(session: Session, item: int) -> None:
    """Read by key."""
    assert session.get(Stock, item) is not None


def writing(session: Session, item: int) -> None:
    """Read by key, and update."""
    row = session.get(Stock, item)
    assert row is not None
    row.n += 1


def in_bulk(session: Session, items: Sequence[int]) -> None:
    """The same for a list, as one statement."""
    session.execute(
        update(Stock).where(Stock.id.in_(items)).values(n=Stock.n + 1), execution_options={"synchronize_session": False}
    )


def by_driver(session: Session, item: int) -> None:
    """The same by the driver's own cursor."""
    cursor = session.connection().connection.cursor()
    cursor.execute("SELECT n FROM stock WHERE id = %s", (item,))
    cursor.fetchone()
    cursor.execute("UPDATE stock SET n = n + 1 WHERE id = %s", (item,))
    cursor.close()


def create(url: str, items: Iterable[int]) -> None:
    """The tables, a row for each item, and a ledger."""
    engine = engine_for(url)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(Stock), [{"id": item} for item in items])
    schema.ensure(engine)


class WorkerSide:
    """One worker, its orders made up. named: with a ledger, exactly once. told: hears each message as it is sent.

    stopping: asked between items. options: of RunOptions.
    """

    def __init__(
        self, url: str, task: Task, *, named: bool = True, told: Callable[[Message], None] = lambda message: None,
        stopping: Callable[[], bool] = lambda: False, **options: Any,
    ) -> None:  # fmt: skip
        self._run = f"cost{os.getpid()}x{next(_numbers)}"
        self._admin = engine_for(url)
        self._tables = schema.tables()
        self._named = named
        work = Work(
            run=self._run, job="cost", task=task, shape=task_shape(task, has_session=True),
            options=RunOptions(workers=1, **options), engine=spec_of(url), marks=MarksSpec(self._run, 1, None) if named else None,
        )  # fmt: skip
        self._ends = tally_file() if work.keeps_tally else None  # as a worker of the pool has it
        self._parts = Parts(work, 1, self._ends[1] if self._ends else None)
        self._heard: list[Any] = []
        self._told = told
        self._runner = self._parts.runner(None, lambda wait_s: stopping(), self._parts.voice(self._hear))
        self._orders = self._parts.orders(self._runner, self._hear)
        self._next = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._parts.close()
        for end in self._ends or ():
            end.close()

    def _hear(self, message: Message) -> None:
        self._told(message)
        self._heard.append(message)

    @property
    def status(self) -> Status:
        """Of the transaction on its connection, as the driver knows it."""
        assert self._runner.link is not None
        return self._runner.link.driver.status(self._runner.link.gate.raw)

    def order(self, items: Sequence[int]) -> Sent:
        """A chunk, in the ledger and ready to run."""
        number = self._next
        self._next += 1
        if self._named:
            row = {"run": self._run, "no": number, "epoch": 1, "size": len(items), "open": True}
            with self._admin.begin() as connection:
                connection.execute(insert(self._tables.chunk), row)
        return Sent(number + 1, number, 0, 1, 0, False, False, 0, pickle.dumps(list(items)))

    def run(self, order: Sent) -> None:
        """Run it, and see that each item was done."""
        assert self.done(order) == len(pickle.loads(order.items))  # type: ignore[arg-type]

    def done(self, order: Sent) -> int:
        """Run it, see that nothing went wrong, and return how many items were done before it stopped."""
        self._orders.run(order)
        settled = [message for message in self._heard if isinstance(message, Settled)]
        assert not any(message.troubles for message in settled), settled
        self._heard.clear()
        return sum(message.amount for message in settled)


class Plain:
    """What people write: a Session for each item, on a pooled engine."""

    def __init__(self, url: str, task: Task, *, commits: bool) -> None:
        made = engine_for(url)
        self.engine: Engine = create_engine(made.url)
        self._task, self._commits = task, commits

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.engine.dispose()

    def order(self, items: Sequence[int]) -> Sequence[int]:
        return items

    def run(self, items: Sequence[int]) -> None:
        for item in items:
            with Session(self.engine) as session:
                self._task(session, item)
                if self._commits:
                    session.commit()
