"""Workers are replaced after so many items, or when they have grown too much: nobody is billed, nothing runs twice."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from batchrun import Outcome, iter_parallel, run_parallel
from batchrun.events import Notice
from tests.support.effects import effect, effects, make, once

ITEMS = 30


def pids(outcomes: list[Outcome]) -> Counter[int]:
    """How many items each process had."""
    assert all(outcome.status == "done" for outcome in outcomes)
    return Counter(outcome.value for outcome in outcomes)


def work(session: Session, item: int) -> int:
    effect(session, item)
    return os.getpid()


# --------------------------------------------------------------------------------------------- by number of items


@pytest.mark.parametrize("mode", [{}, {"threads": 2}, {"transaction": "chunk"}], ids=["item", "threads", "chunk"])
def test_a_worker_has_at_most_so_many_items_and_each_takes_effect_once(
    database_url: str, notices: list[Notice], mode: dict[str, Any]
) -> None:
    make(database_url)
    outcomes = list(
        iter_parallel(
            work, range(ITEMS), database_url, name="short lives", workers=2, max_items_per_worker=5, start_method="fork", **mode
        )
    )  # fmt: skip
    found = pids(outcomes)
    assert max(found.values()) <= 5
    assert len(found) >= ITEMS / 5
    assert effects(database_url) == once(range(ITEMS))
    assert notices == []


def test_control_without_the_option_the_same_workers_do_it_all(sqlite_url: str) -> None:
    make(sqlite_url)
    assert len(pids(list(iter_parallel(work, range(ITEMS), sqlite_url, workers=2, start_method="fork")))) <= 2


def test_one_item_for_each_worker(tmp_path: Path) -> None:
    """The smallest limit; and each worker's initializer runs its rest."""
    log = tmp_path / "log"

    def initializer() -> Any:
        yield
        with log.open("a") as opened:
            opened.write(f"{os.getpid()}\n")

    outcomes = list(
        iter_parallel(
            lambda item: os.getpid(), range(6), workers=2, max_items_per_worker=1, initializer=initializer, start_method="fork"
        )
    )  # fmt: skip
    found = pids(outcomes)
    assert set(found.values()) == {1}
    assert set(found) <= {int(line) for line in log.read_text().split()}


def test_one_whose_clean_up_hangs_is_killed_and_replaced(notices: list[Notice]) -> None:
    """It would be missed for the rest of the run; here it is the only one."""

    def initializer() -> Any:
        yield
        threading.Event().wait()

    report = run_parallel(
        lambda item: None, range(3), workers=1, max_items_per_worker=1, grace=0.2, initializer=initializer, start_method="fork"
    )  # fmt: skip
    assert (report.done, report.failed) == (3, 0)
    assert len(notices) >= 2
    said = "was not through with its clean-up after 0.2 s: it was killed."
    assert all(notice.text.endswith(said) for notice in notices)


def test_a_death_among_short_lives_is_billed_to_its_item_alone(sqlite_url: str) -> None:
    make(sqlite_url)

    def task(session: Session, item: int) -> None:
        effect(session, item)
        if item == 7:
            os._exit(0)

    report = run_parallel(task, range(20), sqlite_url, name="deaths", workers=2, max_items_per_worker=3, start_method="fork")
    assert (report.done, report.quarantined) == (19, 1)
    assert effects(sqlite_url) == once(n for n in range(20) if n != 7)


# ------------------------------------------------------------------------------------------------------ by memory

kept: list[bytearray] = []
LEAK = 4_000_000


def leaking(item: int) -> int:
    kept.append(bytearray(os.urandom(1) * LEAK))
    return os.getpid()


def test_a_worker_that_grows_over_its_baseline_is_replaced_and_told_once(notices: list[Notice]) -> None:
    outcomes = list(iter_parallel(leaking, range(60), workers=1, max_worker_growth="30MB", start_method="fork"))
    found = pids(outcomes)
    assert len(found) >= 2
    (notice,) = notices
    assert notice.level == "INFO"
    assert "more than max_worker_growth (30 MB) allows; it is replaced" in notice.text


@pytest.mark.parametrize("limit", [None, "10GB"])
def test_control_without_the_limit_the_worker_goes_on_growing(limit: str | None, notices: list[Notice]) -> None:
    outcomes = list(iter_parallel(leaking, range(60), workers=1, max_worker_growth=limit, start_method="fork"))
    assert len(pids(outcomes)) == 1
    assert notices == []


def steady(item: int) -> int:
    bytearray(os.urandom(1) * 5 * LEAK)
    return os.getpid()


def test_what_a_worker_needs_to_work_at_all_is_no_growth() -> None:
    """It is freed again, or is part of the baseline."""
    outcomes = list(iter_parallel(steady, range(10), workers=1, max_worker_growth="15MB", start_method="fork"))
    assert len(pids(outcomes)) == 1


def test_inline_nobody_is_replaced() -> None:
    outcomes = list(iter_parallel(lambda item: os.getpid(), range(4), workers=0, max_items_per_worker=1, max_worker_growth=1))
    assert set(pids(outcomes)) == {os.getpid()}
