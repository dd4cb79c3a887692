"""The mark is a statement that the server keeps prepared, and whatever becomes of it there, the item's mark is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from batchrun import Report, run_parallel
from batchrun.database import stored
from batchrun.database.stored import Keeper, Statement
from batchrun.ledger.marks import Marks, MarksSpec, Spot
from batchrun.ledger.schema import tables
from tests.support import oracle
from tests.support.databases import engine_for
from tests.support.oracle import assert_exactly_once, work

ITEMS = range(1, 9)
KEPT = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'batchrun_%'"


@pytest.fixture(params=["pg_url", "psycopg_url"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return oracle.create(found, ITEMS)


def run(task: Callable[..., Any], url: str, **options: Any) -> Report:
    """One durable run, inline: what is kept lives with the connection."""
    return run_parallel(task, ITEMS, url, name="stored", workers=0, progress=False, retries=0, **options)


def kept(session: Session) -> int:
    """How many of our statements this session of the server keeps."""
    return int(session.scalar(text(KEPT)) or 0)


def throw_away(session: Session) -> None:
    """Past everybody who looks at a task's statements. Not ALL: psycopg would miss its own."""
    cursor = session.connection().connection.cursor()
    cursor.execute("SELECT name FROM pg_prepared_statements WHERE name LIKE 'batchrun_%'")
    for (name,) in cursor.fetchall():
        cursor.execute(f"DEALLOCATE {name}")
    cursor.close()


def test_the_mark_of_every_item_is_one_statement_that_the_server_keeps(url: str) -> None:
    seen: list[int] = []

    def task(session: Session, item: int) -> None:
        seen.append(kept(session))
        work(session, item)

    assert run(task, url).done == len(ITEMS)
    assert seen == [1] * len(ITEMS)
    assert_exactly_once(url, "stored", ITEMS)


def test_a_task_may_throw_away_what_the_server_keeps(url: str) -> None:
    seen: list[int] = []

    def task(session: Session, item: int) -> None:
        seen.append(kept(session))
        work(session, item)
        if item % 4 == 0:
            throw_away(session)

    report = run(task, url)
    assert (report.done, report.failed) == (len(ITEMS), 0)
    assert seen == [1] * len(ITEMS)
    assert_exactly_once(url, "stored", ITEMS)


def test_a_mark_that_is_taken_again_after_a_rollback_finds_its_statement_gone_and_brings_it_back(url: str) -> None:
    seen: list[int] = []

    def task(session: Session, item: int) -> None:
        work(session, item)
        throw_away(session)
        session.rollback()
        seen.append(kept(session))
        work(session, item)

    assert run(task, url).done == len(ITEMS)
    assert 1 in seen
    assert_exactly_once(url, "stored", ITEMS)


def test_after_some_surprises_the_mark_goes_as_a_text(url: str) -> None:
    """As behind a pooler that was not noticed, whose sessions come and go."""
    seen: list[int] = []

    def task(session: Session, item: int) -> None:
        seen.append(kept(session))
        work(session, item)
        throw_away(session)

    assert run(task, url).done == len(ITEMS)
    assert seen == [1] * stored.MOST_SURPRISES + [0] * (len(ITEMS) - stored.MOST_SURPRISES)
    assert_exactly_once(url, "stored", ITEMS)


def test_it_is_prepared_anew_now_and_then(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the plan that was made for an empty table would be kept until it has millions of rows."""
    monkeypatch.setattr(stored, "RENEWED_AFTER", 2)
    times: list[object] = []

    def task(session: Session, item: int) -> None:
        work(session, item)
        times.append(session.scalar(text("SELECT prepare_time FROM pg_prepared_statements WHERE name LIKE 'batchrun_%'")))

    assert run(task, url).done == len(ITEMS)
    assert [times.count(one) for one in dict.fromkeys(times)] == [3, 3, 2]
    assert_exactly_once(url, "stored", ITEMS)


# ------------------------------------------------------------------------------------------------------- its text
def test_what_is_prepared_is_the_very_text_of_the_mark(pg_url: str) -> None:
    engine = engine_for(pg_url)
    marks = Marks(MarksSpec("abcd", 3, 'we"ird {schema}'), tables('we"ird {schema}'), engine.dialect)
    prepared = marks.of(Spot(7, 41)).replace("no = 7", "no = $1").replace("pos = 41", "pos = $2")
    assert marks.of_one.prepare.endswith(f"(int, int) AS {prepared}")
    assert marks.of_one.text(7, 41) == marks.of(Spot(7, 41))
    other_epoch = Marks(MarksSpec("abcd", 4, None), tables(), engine.dialect)
    assert other_epoch.of_one.head != marks.of_one.head, "another run's or owner's statement has another name"


class Failing(Exception):
    """As a driver's, with its state."""

    def __init__(self, state: str) -> None:
        self.sqlstate = state


def a_statement() -> Statement:
    return Statement(lambda first, second: f"UPDATE t SET a = {first} WHERE b = {second}")


@pytest.mark.parametrize(("state", "surprising"), [("26000", True), ("42P05", True), ("40001", False), ("55P03", False)])
def test_only_an_error_about_what_is_kept_is_mended_by_sending_again(state: str, surprising: bool) -> None:
    keeper, statement = Keeper(is_trusted=True), a_statement()
    execute = f"{statement.head}1, 2)"
    assert keeper.statements((statement, 1, 2)) == (statement.prepare, execute)
    assert keeper.statements((statement, 1, 2)) == (execute,)
    assert keeper.is_surprised(Failing(state)) is surprising
    expected = (statement.prepare, execute) if state == "26000" else (execute,)
    assert keeper.statements((statement, 1, 2)) == expected


def test_behind_a_pooler_it_is_a_text_from_the_beginning() -> None:
    assert Keeper(is_trusted=False).statements((a_statement(), 1, 2)) == ("UPDATE t SET a = 1 WHERE b = 2",)
