"""For any items, any chunk sizes and any crash point: each item's effect is there exactly once."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from sqlalchemy import column, create_engine, select, table, text
from sqlalchemy.orm import Session

from batchrun import Retry, Skip, csv_rows, iter_parallel, job, jsonl, keyset, run_parallel
from batchrun.chunks import ChunkSizer
from tests.support.effects import MAKE, effect, effects, once

FEW = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)  # an example takes a tenth of a second, so none is shrunk: the counter-example found is printed as it is
VERY_FEW = settings(FEW, max_examples=4)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20) | st.dates()
    | st.datetimes(timezones=st.just(None) | st.timezones()) | st.decimals(allow_nan=False) | st.uuids(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=6)
"""How large the chunks are, over and over."""
MODES = st.sampled_from([{}, {"transaction": "chunk"}, {"batched": True}])
CRASHES = st.lists(st.integers(0, 12), max_size=4)
"""After so many items each attempt to carry the run out is cut off; then one may end."""


@contextmanager
def database() -> Iterator[str]:
    """A fresh SQLite file, without the disk's own slowness."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/test.db"
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("PRAGMA synchronous = OFF"))
            connection.execute(text(MAKE))
            connection.execute(text("CREATE TABLE numbers (n INTEGER PRIMARY KEY)"))
        engine.dispose()
        yield url


@contextmanager
def chunks_of(sizes: list[int]) -> Iterator[None]:
    """Cut chunks of these sizes, whatever the clock says."""
    left: list[int] = []

    def size(self: ChunkSizer, remaining: int | None) -> int:
        if not left:
            left.extend(sizes)
        return left.pop(0)

    with mock.patch.object(ChunkSizer, "size", size):
        yield


def cut_off(task: Any, items: Any, url: str, after: int, **options: Any) -> None:
    """Carry a run out until ``after`` outcomes were seen, then close it."""
    stream = iter_parallel(task, items, url, accept_changes=True, **options)
    for _, _ in zip(range(after), stream, strict=False):
        pass
    stream.close()  # type: ignore[attr-defined]


def killed(task: Any, items: Any, url: str, after: int, **options: Any) -> None:
    """The same in a child that is gone at once, after so many items and in the middle of the next one's transaction."""
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, 7)
        return
    try:
        left = [after]

        def mortal(session: Session, given: Any) -> Any:
            value = task(session, given)
            left[0] -= len(given) if options.get("batched") else 1
            if left[0] < 0:
                os._exit(7)
            return value

        run_parallel(mortal, items, url, accept_changes=True, **options)
    finally:
        os._exit(0)


def finish(task: Any, items: Any, url: str, **options: Any) -> Any:
    return run_parallel(task, items, url, accept_changes=True, **options)


def plain(session: Session, item: Any) -> None:
    effect(session, item if isinstance(item, int) else repr(item))


def listed(session: Session, items: list[Any]) -> None:
    for item in items:
        plain(session, item)


def task_for(mode: dict[str, Any]) -> Callable[..., None]:
    return listed if mode.get("batched") else plain


@FEW
@given(st.lists(PLAIN, max_size=30), SIZES, CRASHES, MODES)
def test_any_items_any_chunks_any_interruption_once_each(
    items: list[Any], sizes: list[int], crashes: list[int], mode: dict[str, Any]
) -> None:
    with database() as url, chunks_of(sizes):
        for after in crashes:
            cut_off(task_for(mode), items, url, after, workers=0, name="any", **mode)
        report = finish(task_for(mode), items, url, workers=0, name="any", **mode)
        assert (report.planned, report.done, report.pending) == (len(items), len(items), 0)
        assert effects(url) == once(item if isinstance(item, int) else repr(item) for item in items)


@FEW
@given(st.integers(0, 40), SIZES, CRASHES, MODES)
def test_any_sudden_end_of_the_whole_process_once_each(
    count: int, sizes: list[int], crashes: list[int], mode: dict[str, Any]
) -> None:
    """Inline: parent and worker are one process, and it is gone at once, in the middle of a transaction."""
    with database() as url, chunks_of(sizes):
        for after in crashes:
            killed(task_for(mode), range(count), url, after, workers=0, name="any", **mode)
        event(f"{len(effects(url)) * 4 // max(1, count)} quarters were done")
        assert set(effects(url).values()) <= {1}
        report = finish(task_for(mode), range(count), url, workers=0, name="any", **mode)
        assert (report.planned, report.done, report.pending) == (count, count, 0)
        assert effects(url) == once(range(count))


@FEW
@given(
    st.lists(st.sampled_from(["done", "failed", "skipped", "retried", "given up"]), max_size=30),
    SIZES, CRASHES, st.sampled_from([{}, {"transaction": "chunk"}]),
)  # fmt: skip
def test_counts_and_effects_agree_whatever_becomes_of_the_items(
    fates: list[str], sizes: list[int], crashes: list[int], mode: dict[str, Any]
) -> None:
    def task(session: Session, item: list[Any], ctx: Any) -> None:
        number, fate = item
        effect(session, number)
        if fate == "failed":
            raise ValueError(number)
        if fate == "skipped":
            raise Skip
        if (fate == "retried" and ctx.attempt == 1) or fate == "given up":
            raise Retry(after=0)

    items = [[number, fate] for number, fate in enumerate(fates)]
    with database() as url, chunks_of(sizes):
        for after in crashes:
            cut_off(task, items, url, after, workers=0, name="fates", retries=1, **mode)
        report = finish(task, items, url, workers=0, name="fates", retries=1, **mode)
        bad = fates.count("failed") + fates.count("given up")
        assert (report.failed, report.skipped) == (bad, fates.count("skipped"))
        assert report.done == fates.count("done") + fates.count("retried")
        assert (report.planned, report.pending) == (len(fates), 0)
        assert effects(url) == once(number for number, fate in items if fate in ("done", "retried"))
        assert {tuple(one.item) for one in report.failures} == {(n, fate) for n, fate in items if fate in ("failed", "given up")}


@FEW
@given(st.integers(0, 30), st.integers(0, 40), SIZES, CRASHES)
def test_a_limit_plans_so_many_and_no_more_over_all_resumes(count: int, limit: int, sizes: list[int], crashes: list[int]) -> None:
    @job(limit=limit)
    def limited(session: Session, item: int) -> None:
        effect(session, item)

    with database() as url, chunks_of(sizes):
        for after in crashes:
            cut_off(limited, range(count), url, after, workers=0, name="limited")
        assert finish(limited, range(count), url, workers=0, name="limited").done == min(limit, count)
        assert effects(url) == once(range(min(limit, count)))


# ------------------------------------------------------------------------------------------------------- sources


def write_csv(folder: Path, values: list[int]) -> Any:
    path = folder / "items.csv"
    path.write_text("n,text\n" + "".join(f'{n},"a ""quoted""\nline {n}"\n' for n in values))
    return csv_rows(path)


def write_jsonl(folder: Path, values: list[int]) -> Any:
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps({"n": n}) + "\n" * (1 + n % 2) for n in values))
    return jsonl(path)


SOURCES: dict[str, Callable[[Path, list[int]], Any]] = {
    "list": lambda folder, values: [{"n": n} for n in values],
    "generator": lambda folder, values: ({"n": n} for n in values),
    "csv": write_csv,
    "jsonl": write_jsonl,
}


def of_rows(session: Session, item: dict[str, Any]) -> None:
    effect(session, item["n"])


@pytest.mark.parametrize("kind", SOURCES)
@settings(FEW, max_examples=6)
@given(st.lists(st.integers(0, 10**6), max_size=30), SIZES, CRASHES)
def test_any_source_any_interruption_once_each(kind: str, values: list[int], sizes: list[int], crashes: list[int]) -> None:
    with database() as url, chunks_of(sizes):
        folder = Path(url.removeprefix("sqlite:///")).parent
        for number, after in enumerate(crashes):
            crash = killed if number % 2 else cut_off
            crash(of_rows, SOURCES[kind](folder, values), url, after, workers=0, name="source")
        assert finish(of_rows, SOURCES[kind](folder, values), url, workers=0, name="source").done == len(values)
        assert effects(url) == once(values)


NUMBERS = table("numbers", column("n"))


def change(url: str, statement: str, values: list[int]) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        if values:
            connection.execute(text(statement), [{"n": n} for n in values])
    engine.dispose()


@FEW
@given(st.data(), st.sets(st.integers(0, 60), min_size=1), SIZES, CRASHES, st.integers(1, 7))
def test_each_key_that_existed_throughout_once_though_rows_come_and_go(
    data: st.DataObject, keys: set[int], sizes: list[int], crashes: list[int], page: int
) -> None:
    with database() as url, chunks_of(sizes):
        change(url, "INSERT INTO numbers VALUES (:n)", sorted(keys))
        throughout, ever = set(keys), set(keys)
        for after in crashes:
            cut_off(plain, keyset(select(NUMBERS.c.n), page=page), url, after, workers=0, name="moving")
            added = data.draw(st.sets(st.integers(0, 90), max_size=5), "added") - ever
            removed = data.draw(st.sets(st.sampled_from(sorted(throughout)), max_size=3), "removed") if throughout else set()
            change(url, "INSERT INTO numbers VALUES (:n)", sorted(added))
            change(url, "DELETE FROM numbers WHERE n = :n", sorted(removed))
            throughout -= removed
            ever |= added
        report = finish(plain, keyset(select(NUMBERS.c.n), page=page), url, workers=0, name="moving")
        seen = effects(url)
        assert set(seen.values()) <= {1}
        assert throughout <= {int(n) for n in seen} <= ever
        assert report.pending == 0


@FEW
@given(st.sets(st.integers(0, 60)), SIZES, CRASHES, st.integers(1, 7))
def test_a_task_that_moves_its_key_and_adds_rows_ends(keys: set[int], sizes: list[int], crashes: list[int], page: int) -> None:
    def task(session: Session, item: int) -> None:
        effect(session, item)
        session.execute(text("UPDATE numbers SET n = :m WHERE n = :n"), {"n": item, "m": item + 1000})
        session.execute(text("INSERT INTO numbers VALUES (:m)"), {"m": item + 2000})

    with database() as url, chunks_of(sizes):
        change(url, "INSERT INTO numbers VALUES (:n)", sorted(keys))
        for after in crashes:
            cut_off(task, keyset(select(NUMBERS.c.n), page=page), url, after, workers=0, name="moves")
        assert finish(task, keyset(select(NUMBERS.c.n), page=page), url, workers=0, name="moves").done == len(keys)
        assert effects(url) == once(keys)


# -------------------------------------------------------------------------------------------------- real workers


@VERY_FEW
@given(st.integers(0, 60), SIZES, st.lists(st.integers(0, 12), max_size=2), MODES, st.integers(1, 2), st.integers(1, 2))
def test_the_same_with_real_workers_and_threads(
    count: int, sizes: list[int], crashes: list[int], mode: dict[str, Any], workers: int, threads: int
) -> None:
    options = {"workers": workers, "threads": threads, "name": "any", **mode}
    with database() as url, chunks_of(sizes):
        for after in crashes:
            cut_off(task_for(mode), range(count), url, after, **options)
        report = finish(task_for(mode), range(count), url, **options)
        assert (report.planned, report.done, report.pending) == (count, count, 0)
        assert effects(url) == once(range(count))


@VERY_FEW
@given(st.integers(1, 40), SIZES, st.sets(st.integers(0, 39), max_size=2), st.sampled_from([{}, {"transaction": "chunk"}]))
def test_a_worker_that_dies_anywhere_costs_nothing(count: int, sizes: list[int], deaths: set[int], mode: dict[str, Any]) -> None:
    """Each of these items kills its worker when it is first tried, with its work done and not committed."""
    with database() as url, chunks_of(sizes):
        folder = url.removeprefix("sqlite:///").removesuffix("test.db")

        def task(session: Session, item: int) -> None:
            effect(session, item)
            died = Path(f"{folder}{item}.died")
            if item in deaths and not died.exists():
                died.touch()
                os._exit(1)

        report = finish(task, range(count), url, workers=2, name="deaths", **mode)
        assert (report.done, report.quarantined) == (count, 0)
        assert effects(url) == once(range(count))


def test_control_a_hand_written_loop_that_starts_over_doubles() -> None:
    """The oracle sees what these tests are about: the same crash without a ledger."""
    with database() as url:
        for after in (5, 40):
            engine = create_engine(url)
            for item in range(min(after, 20)):
                with Session(engine) as session, session.begin():
                    plain(session, item)
            engine.dispose()
        assert effects(url) != once(range(20))
