"""What the owner does costs the same however many chunks a run has: statements look at a handful of rows, by an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text

from batchrun.items import ItemError
from batchrun.ledger import schema
from batchrun.ledger.owner import Owner
from batchrun.ledger.records import NewRun

RUN = "manychunks"
CHUNKS = 20_000
MOST_ROWS = 50

FILL = """
INSERT INTO batchrun_chunk (run, no, epoch, size, pos, first, last, frontier, open)
SELECT :run, no, 1, 1000, 1000, '1', '2', '[1]', false FROM generate_series(0, :last) AS no
"""


@pytest.fixture
def owner(pg_url: str) -> Iterator[Owner]:
    """A run of many chunks that are through, and six that are open."""
    engine = create_engine(pg_url)
    made = Owner(engine, schema.ensure(engine), RUN)
    made.create(NewRun(RUN, "job", None, "{}", "{}", "{}", "exactly-once", 2, None, None))
    with engine.begin() as connection:
        connection.execute(text(FILL), {"run": RUN, "last": CHUNKS - 1})
        connection.execute(text("UPDATE batchrun_run SET next_no = :next"), {"next": CHUNKS})
    for no in range(CHUNKS, CHUNKS + 6):
        made.cut(no, ["[1,2]"], [2], [("1", "2")], [[no]])
    yield made
    engine.dispose()


@contextmanager
def seen(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """The statements on the ledger's tables that are sent meanwhile."""
    found: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if "batchrun_" in statement and not statement.startswith(("INSERT", "LOCK")):
            found.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    yield found
    event.remove(engine, "before_cursor_execute", note)


def rows_looked_at(plan: dict[str, Any]) -> float:
    """Rows that the plan's scans gave out or threw away."""
    own = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0) if "Scan" in plan["Node Type"] else 0
    return float(own * plan["Actual Loops"]) + sum(rows_looked_at(child) for child in plan.get("Plans", ()))


ACTIONS: dict[str, Callable[[Owner], object]] = {
    "cut": lambda owner: owner.cut(CHUNKS + 6, ["[1]"], [1], [("1", "1")], [[0]]),
    "end_chunks": lambda owner: owner.end_chunks([CHUNKS, CHUNKS + 1]),
    "bill": lambda owner: owner.bill(CHUNKS + 2, lambda pos: "[1]", ItemError("a", "b"), 3),
    "known": lambda owner: owner.known(CHUNKS + 3, 0),
    "beat": Owner.beat,
    "adopt": lambda owner: owner.adopt(cut_off="unknown"),
}


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("action", ACTIONS)
def test_no_statement_of_the_owners_walks_through_all_chunks(owner: Owner, action: str, analyzed: bool) -> None:
    if analyzed:
        with owner.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    with seen(owner.engine) as statements:
        ACTIONS[action](owner)
    assert statements
    for statement, parameters in statements:
        with owner.engine.connect() as connection:
            explain = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}"
            plan = connection.exec_driver_sql(explain, parameters).scalar_one()[0]["Plan"]
            connection.rollback()
        assert rows_looked_at(plan) <= MOST_ROWS, statement


def test_taking_over_finds_every_open_chunk_and_no_other(owner: Owner) -> None:
    owner.epoch += 1
    assert [chunk.no for chunk in owner.adopt(cut_off="unknown")] == list(range(CHUNKS, CHUNKS + 6))
    with owner.engine.connect() as connection:
        count = text("SELECT count(*) FROM batchrun_chunk WHERE run = :run AND epoch = 2")
        assert connection.execute(count, {"run": RUN}).scalar_one() == 6
