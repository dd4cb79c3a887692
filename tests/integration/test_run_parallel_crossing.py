"""What crosses between processes: whatever cannot is one failed item, and what may not is refused by name."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from batchrun import iter_parallel, run_parallel
from batchrun.errors import JobError
from tests.support.awkward import Exits, RaisesWhenShown, TwoArguments, recursive
from tests.support.effects import effect, effects, make, once

# ------------------------------------------------------------------------------------- results that cannot cross


class ExitsPolitely:
    def __reduce__(self) -> tuple[Any, ...]:
        raise SystemExit(3)


class RaisesWhenRead:
    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def raised(error: BaseException) -> Any:
    raise error


RETURNED: dict[str, Callable[[], Any]] = {
    "a lock": threading.Lock,
    "a lock inside": lambda: {"deep": [threading.Lock()]},
    "a structure too deep": recursive,
    "one that raises when read": RaisesWhenRead,
    "one that exits politely": ExitsPolitely,
    "200 MB": lambda: b"x" * 200_000_000,
    "a generator": lambda: (n for n in range(3)),
    "an open file": lambda: Path(os.devnull).open("rb"),  # noqa: SIM115 # it is what the task returns
}
RAISED: dict[str, Callable[[], BaseException]] = {
    "two arguments": lambda: TwoArguments("a", "b"),
    "a lock inside": lambda: ValueError(threading.Lock()),
    "shown by an error": RaisesWhenShown,
    "bytes that are no text": lambda: ValueError(b"\xff\xfe\x00"),
    "a surrogate and a NUL": lambda: ValueError("\ud800 \x00"),
    "a recursion": lambda: RecursionError("too deep"),
    "a group": lambda: ExceptionGroup("two", [ValueError(1), TwoArguments("a", "b")]),
    "an exit": lambda: SystemExit(3),
    "a Ctrl-C": KeyboardInterrupt,
    "no exception of Python's": lambda: type("Own", (BaseException,), {})("own"),
    "10 MB of text": lambda: ValueError("x" * 10_000_000),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("where", ["without a database", "sqlite", "postgresql"])
def test_a_value_that_cannot_cross_is_one_failed_item_rolled_back(where: str, request: pytest.FixtureRequest) -> None:
    kinds = list(RETURNED)
    url = database_for(where, request)

    def alone(item: int) -> Any:
        return RETURNED[kinds[item // 3]]() if item % 3 == 1 else item

    def with_session(session: Session, item: int) -> Any:
        effect(session, item)
        return alone(item)

    items = range(3 * len(kinds))
    outcomes = list(iter_parallel(with_session if url else alone, items, url, workers=2))
    failed = {one.item: one.error for one in outcomes if one.status == "failed"}
    assert set(failed) == set(range(1, items.stop, 3))
    assert all(error and error.message for error in failed.values())
    assert {one.item: one.value for one in outcomes if one.status == "done"} == {n: n for n in items if n % 3 != 1}
    too_large = failed[3 * kinds.index("200 MB") + 1]
    assert too_large is not None
    assert "200 MB" in too_large.message
    assert "return where it is" in too_large.message
    if url:
        assert effects(url) == once(n for n in items if n % 3 != 1)


@pytest.mark.parametrize("where", ["without a database", "sqlite", "postgresql"])
def test_an_exception_that_cannot_cross_is_one_failed_item_rolled_back(where: str, request: pytest.FixtureRequest) -> None:
    kinds = list(RAISED)
    url = database_for(where, request)

    def alone(item: int) -> None:
        if item % 3 == 1:
            raised(RAISED[kinds[item // 3]]())

    def with_session(session: Session, item: int) -> None:
        effect(session, item)
        alone(item)

    items = range(3 * len(kinds))
    report = run_parallel(with_session if url else alone, items, url, workers=2, name="raised" if url else None)
    failed = {one.item: one.error for one in report.failures}
    assert set(failed) == set(range(1, items.stop, 3))
    assert (report.failed, report.done, report.quarantined) == (len(kinds), 2 * len(kinds), 0)
    shown = {kind: failed[3 * n + 1] for n, kind in enumerate(kinds)}
    assert shown["two arguments"] is not None
    assert shown["two arguments"].message == "a and b"
    assert shown["shown by an error"] is not None
    assert "__str__ raised RuntimeError" in shown["shown by an error"].message
    assert shown["10 MB of text"] is not None
    assert len(shown["10 MB of text"].message) <= 10_000
    if url:
        assert effects(url) == once(n for n in items if n % 3 != 1)


def database_for(where: str, request: pytest.FixtureRequest) -> str | None:
    if where == "without a database":
        return None
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "pg_url"}[where])
    make(url)
    return url


def test_a_value_that_ends_its_reader_costs_its_item_alone() -> None:
    """It is read back in the worker first, which dies of it three times; the parent lives. With a database: the chaos suite."""
    outcomes = list(iter_parallel(lambda item: Exits() if item == 5 else item, range(12), workers=2))
    assert {one.item for one in outcomes if one.status == "quarantined"} == {5}
    assert sum(one.status == "done" for one in outcomes) == 11


# --------------------------------------------------------------------------------------------------------- items

ODD_ITEMS: list[Any] = [
    None, True, 10**5000, -(2**70), 0.1, math.inf, 1e-320, "", "x" * 1_000_000, "a\x00b", "\ud800", "\ud83d\ude00",
    b"", b"\xff\x00", (), (1, (2,)), [], [None, [1.5]], {}, {"a": {"$b": 1}}, {1: "one", (2,): b"two"}, date(2026, 2, 28),
    datetime(2026, 2, 28, 12, 30, 1, 5, UTC), datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    Decimal("1.50"), Decimal("NaN"), UUID(int=7), timedelta(days=-1, microseconds=3),
]  # fmt: skip


@pytest.mark.parametrize("name", [None, "odd"])
def test_every_kind_of_plain_item_reaches_the_task_without_loss(database_url: str, name: str | None) -> None:
    def task(session: Session, item: Any) -> tuple[str, str]:
        return type(item).__name__, repr(item)[:100] if not isinstance(item, int) else hex(item)[:100]

    outcomes = list(iter_parallel(task, ODD_ITEMS, database_url, workers=2, name=name))
    assert len(outcomes) == len(ODD_ITEMS)
    for one in outcomes:
        wanted = repr(one.item)[:100] if not isinstance(one.item, int) else hex(one.item)[:100]
        assert one.status == "done", one.error
        assert one.value == (type(one.item).__name__, wanted)
    assert math.isnan(run_parallel(lambda item: item, [math.nan], workers=1, results=True).results[0])  # type: ignore[index]


@pytest.mark.parametrize("transaction", ["item", "chunk"])
def test_tagged_items_come_back_without_loss_on_resume_and_retry(database_url: str, tmp_path: Path, transaction: str) -> None:
    """The first run cuts them into the ledger and is interrupted; the second takes them from there."""
    log = tmp_path / "seen"
    go = tmp_path / "go"

    def task(session: Session, item: Any) -> None:
        if not go.exists():
            raise ConnectionError("not yet")
        with log.open("a") as opened:
            opened.write(f"{type(item).__name__} {item!r:.200}\n" if not isinstance(item, int) else f"int {hex(item)[:200]}\n")

    options: dict[str, Any] = {"workers": 1, "name": "odd", "transaction": transaction, "retries": 1000}
    stream = iter_parallel(task, [*ODD_ITEMS, math.nan], database_url, **options)
    threading.Timer(0.7, go.touch).start()  # the items wait in the ledger until then
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    report = run_parallel(task, [*ODD_ITEMS, math.nan], database_url, **options)
    assert (report.done, report.failed) == (len(ODD_ITEMS) + 1, 0)
    wanted = {
        f"{type(item).__name__} {item!r:.200}" if not isinstance(item, int) else f"int {hex(item)[:200]}"
        for item in [*ODD_ITEMS, math.nan]
    }
    assert set(log.read_text().splitlines()) == wanted


class Base(DeclarativeBase):
    """Tables of this module."""


class Customer(Base):
    """Something mapped."""

    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What people pass as items and should not."""
    engine = create_engine(f"sqlite:///{tmp_path / 'objects.db'}")
    Base.metadata.create_all(engine)
    with Session(engine) as session, Path(os.devnull).open("rb") as file:
        customer = Customer(id=7)
        session.add(customer)
        session.flush()
        yield {"mapped": customer, "session": session, "file": file, "lock": threading.Lock(), "class": Customer}
        session.rollback()
    engine.dispose()


@pytest.mark.parametrize("kind", ["mapped", "session", "file", "lock"])
def test_an_object_as_an_item_of_a_named_run_fails_alone_with_advice(
    database_url: str, objects: dict[str, Any], kind: str
) -> None:
    make(database_url)
    items = [1, 2, objects[kind], 3, 4]
    report = run_parallel(effect, items, database_url, workers=2, name="objects")
    assert (report.done, report.failed) == (4, 1)
    assert effects(database_url) == once([1, 2, 3, 4])
    (failure,) = report.failures
    assert failure.error is not None
    advice = {"file": "pass its path", "lock": "pass a primary key or plain data"}.get(
        kind, "pass the primary key, not the object"
    )
    assert advice in failure.error.message


@pytest.mark.parametrize("kind", ["session", "file", "lock"])
def test_an_object_as_an_item_of_an_anonymous_run_fails_alone_with_advice(
    database_url: str, objects: dict[str, Any], kind: str
) -> None:
    make(database_url)
    report = run_parallel(effect, [1, 2, objects[kind], 3, 4], database_url, workers=2)
    assert (report.done, report.failed) == (4, 1)
    assert effects(database_url) == once([1, 2, 3, 4])
    (failure,) = report.failures
    assert failure.error is not None
    assert "Pass the primary key, not the object." in failure.error.message


def test_a_mapped_object_as_an_item_of_an_anonymous_run_runs_or_fails_alone(database_url: str, objects: dict[str, Any]) -> None:
    make(database_url)

    def task(session: Session, item: Any) -> None:
        effect(session, getattr(item, "id", item))

    report = run_parallel(task, [1, 2, objects["mapped"], 3], database_url, workers=1)
    assert report.done + report.failed == 4
    assert effects(database_url) >= once([1, 2, 3])


class ReadsBadly:
    """An item that cannot be read in a worker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def test_an_item_that_cannot_be_read_in_a_worker_fails_alone() -> None:
    items: list[Any] = [1, 2, 3, ReadsBadly(), 4, 5]
    report = run_parallel(lambda item: None, items, workers=1)
    assert (report.done, report.failed) == (5, 1)
    (failure,) = report.failures
    assert failure.error is not None
    assert "cannot be read in a worker" in failure.error.message


# ---------------------------------------------------------------------------------- what a task may not carry along


def test_a_task_that_closes_over_a_connection_of_ours_is_refused_by_name(sqlite_url: str) -> None:
    my_engine = create_engine(sqlite_url)
    my_factory = sessionmaker(my_engine)

    def over_engine(item: int) -> None:
        my_engine.connect()

    def over_factory(item: int) -> None:
        my_factory()

    with Session(my_engine) as my_session:

        def over_session(item: int) -> None:
            my_session.execute(text("SELECT 1"))

        for task, told in ((over_engine, "'my_engine'"), (over_factory, "'my_factory'"), (over_session, "'my_session'")):
            for workers in (0, 1):
                with pytest.raises(JobError, match=told):
                    run_parallel(task, range(3), workers=workers)
    my_engine.dispose()
    assert not Path(sqlite_url.removeprefix("sqlite:///")).exists()


def test_a_task_that_closes_over_something_else_that_cannot_travel_is_a_job_error() -> None:
    lock = threading.Lock()

    def task(item: int) -> None:
        with lock:
            pass

    with pytest.raises(JobError, match=r"cannot be sent to a worker: .*lock"):
        run_parallel(task, range(3), workers=1)


def test_closures_lambdas_methods_and_partials_travel() -> None:
    import functools

    base = 100

    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def add(self, item: int) -> int:
            return item + self.n

        def __call__(self, item: int) -> int:
            return item - self.n

    def closure(item: int) -> int:
        return item + base

    def two(extra: int, item: int) -> int:
        return item * extra

    wanted: list[tuple[Callable[..., Any], list[Any]]] = [
        (closure, [100, 101]), (lambda item: item + 1, [1, 2]), (Adder(5).add, [5, 6]), (Adder(5), [-5, -4]),
        (functools.partial(two, 3), [0, 3]), (str, ["0", "1"]),
    ]  # fmt: skip
    for task, values in wanted:
        assert run_parallel(task, range(2), workers=1, results=True).results == values
