"""A COMMIT that begins the next item's transaction: whatever comes between the two, nothing is lost, doubled or left open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from batchrun import run_parallel
from batchrun.database.drivers import Status
from batchrun.database.gate import Gate
from batchrun.execution import strategies
from batchrun.execution.attempt import ItemRunner
from batchrun.execution.orders import Message
from tests.support import oracle, worker_side
from tests.support.databases import engine_for
from tests.support.oracle import assert_exactly_once, work
from tests.support.worker_side import WorkerSide, writing

ITEMS = range(1, 11)
SLOW = 6


@pytest.fixture(params=["pg_url", "psycopg_url"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=[True, False], ids=["exactly once", "anonymous"])
def named(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Clock:
    """Time as the worker's reports know it: it stands still, but for what a task adds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(strategies, "monotonic", lambda: self.now)

    def task(self, session: Session, item: int) -> None:
        """All items but one are quick."""
        writing(session, item)
        self.now += 1.0 if item == SLOW else 0.0001


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each item whether its transaction was open already."""
    seen: list[bool] = []
    plain = Gate.open

    def opening(gate: Gate) -> None:
        seen.append(gate.ahead is not None)
        plain(gate)

    monkeypatch.setattr(Gate, "open", opening)
    return seen


def never(runner: ItemRunner) -> None:
    """Instead of ``fall_back``."""


# --------------------------------------------------------------------------------------- what the parent waits for
def told(url: str, named: bool, clock: Clock) -> list[Status]:
    """An order with a slow item; the state of the transaction whenever the parent is told something."""
    worker_side.create(url, ITEMS)
    seen: list[Status] = []

    def tell(message: Message) -> None:
        seen.append(side.status)

    with WorkerSide(url, clock.task, named=named, told=tell) as side:
        side.run(side.order(ITEMS))
    return seen


def test_no_transaction_is_open_while_the_parent_is_told(url: str, named: bool, clock: Clock, ahead: list[bool]) -> None:
    """It may be slow to listen."""
    assert set(told(url, named, clock)) == {Status.IDLE}
    assert ahead == [item not in (1, 2, SLOW + 1, SLOW + 2) for item in ITEMS]  # twice nobody knew how long items take


def test_control_without_falling_back_one_is(url: str, named: bool, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ItemRunner, "fall_back", never)
    assert Status.INTRANS in told(url, named, clock)


def stopped_at(url: str, named: bool) -> tuple[Status, int]:
    """Stop an order before its fifth item: the state afterwards, and how many items were done."""
    worker_side.create(url, ITEMS)
    asked = iter(range(len(ITEMS)))
    with WorkerSide(url, writing, named=named, stopping=lambda: next(asked) == 4) as side:
        done = side.done(side.order(ITEMS))
        return side.status, done


@pytest.mark.usefixtures("clock")
def test_none_is_open_after_a_run_was_stopped_between_two_items(url: str, named: bool) -> None:
    assert stopped_at(url, named) == (Status.IDLE, 4)
    with engine_for(url).connect() as connection:
        assert connection.scalar(text("SELECT sum(n) FROM stock")) == 4


@pytest.mark.usefixtures("clock")
def test_control_without_falling_back_one_stays_open(url: str, named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ItemRunner, "fall_back", never)
    assert stopped_at(url, named) == (Status.INTRANS, 4)


# ------------------------------------------------------------------------------------------- between the two items
@pytest.fixture
def after_commit() -> Iterator[list[Any]]:
    """Functions of a session: the first of them is called, once, as soon as SQLAlchemy has an item's COMMIT."""
    calls: list[Any] = []

    def committed(session: Session) -> None:
        if calls:
            calls.pop(0)(session)

    event.listen(Session, "after_commit", committed)
    yield calls
    event.remove(Session, "after_commit", committed)


def between(url: str, task: worker_side.Task) -> None:
    """Run an order, and see that each item was done once."""
    worker_side.create(url, ITEMS)
    with WorkerSide(url, task) as side:
        side.run(side.order(ITEMS))
    with engine_for(url).connect() as connection:
        assert connection.execute(text("SELECT n, count(*) FROM stock GROUP BY n")).all() == [(1, len(ITEMS))]


CUT = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name LIKE 'batchrun:%' "
    "AND datname = current_database() AND state = 'idle in transaction'"
)


@pytest.mark.usefixtures("clock")
def test_a_connection_that_is_lost_between_two_items_costs_nothing(url: str, ahead: list[bool], after_commit: list[Any]) -> None:
    def cut(session: Session) -> None:
        with engine_for(url).begin() as connection:
            assert connection.execute(text(CUT)).all() == [(True,)]

    def task(session: Session, item: int) -> None:
        writing(session, item)
        if item == SLOW and not after_commit:
            after_commit.append(cut)

    between(url, task)
    again = SLOW + 1
    assert ahead == [item > 2 for item in ITEMS[:again]] + [False] + [True] * len(ITEMS[again:])


@pytest.mark.usefixtures("clock")
def test_what_cannot_begin_with_a_commit_begins_by_itself(url: str, ahead: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """The item before is committed, and nobody says otherwise."""
    plain, messages = Gate._commit_and_go_on, iter(range(len(ITEMS)))

    def sending(gate: Gate, behind: Any) -> None:
        plain(gate, (("BEGIN", "SELECT 1 / 0"), None) if next(messages) == 3 else behind)

    monkeypatch.setattr(Gate, "_commit_and_go_on", sending)
    between(url, writing)
    assert ahead == [item not in (1, 2, 6) for item in ITEMS]


@pytest.mark.usefixtures("clock")
def test_how_long_items_take_is_known_from_the_order_before(url: str, ahead: list[bool]) -> None:
    worker_side.create(url, ITEMS)
    with WorkerSide(url, writing) as side:
        for _ in range(2):
            side.run(side.order(ITEMS))
    assert ahead == [item > 2 for item in ITEMS] + [item > 1 for item in ITEMS]


@pytest.mark.usefixtures("clock", "ahead")
def test_a_deferred_constraint_fails_the_item_whose_commit_it_is(url: str) -> None:
    """And not the one behind it."""
    oracle.create(url, ITEMS)

    def task(session: Session, item: int) -> None:
        work(session, item)
        if item == SLOW:
            session.add(oracle.Label(id=item, name="of nobody", account=12345))

    report = run_parallel(task, ITEMS, url, name="between", workers=0, progress=False, retries=0)
    assert [failure.item for failure in report.failures] == [SLOW]
    assert report.done == len(ITEMS) - 1
    assert_exactly_once(url, "between", ITEMS)
