"""What each crash leaves: every row of the table, on SQLite and PostgreSQL, judged by one oracle.

A process is killed at a named point; the run goes on by itself, or is called again, and each item's effect is there
exactly once. The controls do the same by hand and lose or double.
"""

from __future__ import annotations

import multiprocessing
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from batchrun import Report, run_parallel
from batchrun.ledger.owner import Owner
from tests.support import crashes, oracle
from tests.support.crashes import EXITS, PARENT_POINTS, POINTS, Crashing, KillsTheForkServer, Poisonous
from tests.support.databases import engine_for
from tests.support.oracle import assert_exactly_once, verdict
from tests.support.proxy import CuttingProxy
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
MODES: dict[str, dict[str, Any]] = {"item": {}, "chunk": {"transaction": "chunk"}, "batched": {"batched": True}}
SEED = 20261101


@pytest.fixture
def pg_url(kept_url: str) -> str:
    return kept_url


def run(task: Any, items: range, url: str, **options: Any) -> Report:
    return run_parallel(task, items, url, **{"name": "crash", "workers": 2, "progress": False, **options})


# ------------------------------------------------------------------------------------------ a worker is killed
@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_at_any_point_of_an_item_loses_and_doubles_nothing(database_url: str, tmp_path: Path, point: str) -> None:
    items = range(12)
    oracle.create(database_url, items)
    report = run(Crashing(point, 5, tmp_path), items, database_url, start_method="fork")
    assert report.done == len(items), report.failures
    assert_exactly_once(database_url, "crash", items)
    assert crashes.noted(tmp_path, "tries") == (1 if point.startswith("after COMMIT") else 2)


@pytest.mark.parametrize("mode", ["chunk", "batched"])
@pytest.mark.parametrize("point", ["after a flush", "after the task's own commit()", "after COMMIT, before the report"])
def test_a_worker_killed_inside_a_shared_transaction_loses_and_doubles_nothing(
    database_url: str, tmp_path: Path, point: str, mode: str
) -> None:
    items = range(120)
    oracle.create(database_url, items)
    report = run(Crashing(point, 60, tmp_path), items, database_url, start_method="fork", **MODES[mode])
    assert report.done == len(items), report.failures
    assert_exactly_once(database_url, "crash", items)


def naive_child(url: str, todo: Connection) -> None:
    """The child of a pool by hand: an item from the pipe, a Session, a commit, an answer. Killed after one's COMMIT."""
    while (item := todo.recv()) is not None:
        item, crashing = item
        with Session(engine_for(url)) as session:
            if crashing:
                event.listen(session, "after_commit", lambda _: crashes.die())
            oracle.work(session, item)
            session.commit()
        todo.send(item)


def naive_pool(url: str, items: range) -> None:
    """What people write: an item whose child does not answer is tried again."""
    context = multiprocessing.get_context("fork")
    for item in items:
        for attempt in range(2):
            ours, theirs = context.Pipe()
            child = context.Process(target=naive_child, args=(url, theirs))
            child.start()
            theirs.close()
            ours.send((item, attempt == 0 and item == 1))
            try:
                ours.recv()
                ours.send(None)
                break
            except (EOFError, BrokenPipeError):
                continue
            finally:
                child.join()
                ours.close()


def test_control_a_pool_by_hand_that_retries_after_a_death_doubles(database_url: str) -> None:
    items = range(2)
    oracle.create(database_url, items)
    naive_pool(database_url, items)
    assert verdict(database_url, items).doubled == {1}


# ------------------------------------------------------------------------------------------ poison
@pytest.mark.parametrize("mode", ["chunk", "batched"])
def test_poison_in_a_shared_transaction_is_tried_alone_before_it_is_billed(database_url: str, tmp_path: Path, mode: str) -> None:
    items, poison = range(60), (5, 23)
    oracle.create(database_url, items)
    run(Poisonous(tmp_path, poison), items, database_url, retries=0, start_method="fork", **MODES[mode])
    ledger = assert_exactly_once(database_url, "crash", items)
    assert ledger.of("quarantined") == set(poison)
    assert {item: ledger.deaths[item] for item in poison} == dict.fromkeys(poison, 3)
    assert ledger.of("failed") == {EXITS}


def bills_written(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the owner bills from now on."""
    billed: list[object] = []
    plain = Owner.bill

    def bill(self: Owner, *given: Any) -> Any:
        made = plain(self, *given)  # raises Busy while a worker holds SQLite's turn to write, and is then called again
        billed.append(given)
        return made

    monkeypatch.setattr(Owner, "bill", bill)
    return billed


def test_the_death_of_the_fork_server_is_billed_to_nobody(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    billed = bills_written(monkeypatch)
    items = range(20)
    oracle.create(database_url, items)
    report = run(KillsTheForkServer(tmp_path), items, database_url, start_method="forkserver")
    assert report.done == len(items)
    assert_exactly_once(database_url, "crash", items)
    assert not billed


def test_control_a_worker_that_dies_alone_is_billed(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    billed = bills_written(monkeypatch)
    oracle.create(database_url, range(8))
    run(Crashing("after a flush", 5, tmp_path), range(8), database_url, start_method="fork")
    assert len(billed) == 1


# ------------------------------------------------------------------------------------------ the parent is killed
@contextmanager
def parent(task: Any, items: range, url: str, point: str = "", **options: Any) -> Iterator[Any]:
    """A process that carries the run out, forked, since that is quick; it is killed at the end if it still lives."""
    started = multiprocessing.get_context("fork").Process(
        target=crashes.carry_out, args=(task, len(items), url, point), kwargs={"start_method": "fork", **options}
    )
    started.start()
    try:
        yield started
    finally:
        started.kill()
        started.join()


ALSO_ON_SQLITE = ("before CUT", "at CUT's COMMIT", "between CUT and dispatch", "at DEATH's COMMIT", "after DEATH")


@pytest.mark.parametrize(
    ("database_url", "point"),
    [*(("postgresql", point) for point in PARENT_POINTS), *(("sqlite", point) for point in ALSO_ON_SQLITE)],
    indirect=["database_url"],
)
def test_a_parent_killed_at_any_point_of_its_bookkeeping_leaves_a_run_that_goes_on(
    database_url: str, tmp_path: Path, point: str
) -> None:
    items, task = range(30), Poisonous(tmp_path, (5,), times=2)
    oracle.create(database_url, items)
    with parent(task, items, database_url, point) as killed:
        killed.join(30)
        assert killed.exitcode == -signal.SIGKILL
    report = run(task, items, database_url, start_method="fork")
    assert (report.done, report.failed) == (len(items) - 1, 1), report.failures
    assert_exactly_once(database_url, "crash", items)
    assert crashes.noted(tmp_path, 5) == 2


@pytest.mark.parametrize("mode", ["chunk", "batched"])
def test_a_parent_killed_again_and_again_loses_and_doubles_nothing(database_url: str, mode: str) -> None:
    """Item by item, from outside and many more times: tests/chaos, the scenario ``parent``."""
    chance = random.Random(f"{SEED} {mode}")
    items = range(150)
    oracle.create(database_url, items)
    for _ in range(2):
        enough = oracle.applied(database_url) + chance.randrange(5, 40)
        with parent(crashes.slow, items, database_url, **MODES[mode]) as killed:
            wait_until(lambda: not killed.is_alive() or oracle.applied(database_url) >= enough, 30)  # noqa: B023
            assert killed.is_alive(), "it ended before it could be killed"
    report = run(crashes.slow, items, database_url, start_method="fork", **MODES[mode])
    assert report.done == len(items), report.failures
    assert_exactly_once(database_url, "crash", items)


# ---------------------------------------------------------------- COMMIT in doubt (the workers': tests/chaos/commits.py)
CUTS = 20


@pytest.mark.parametrize("where", ["before", "after"])
def test_the_owners_commits_may_be_in_doubt_as_well(pg_url: str, where: str) -> None:
    items = range(60)
    oracle.create(pg_url, items)
    run(oracle.task, range(1), pg_url, name="first")  # the ledger's tables are there
    with CuttingProxy(pg_url, where, most=CUTS, share=0.3, seed=SEED, only=b"batchrun") as proxy:
        report = run(oracle.task, items[1:], proxy.url)
    assert proxy.cuts > 5
    assert report.done == len(items) - 1, report.failures
    assert verdict(pg_url, items).is_exact
