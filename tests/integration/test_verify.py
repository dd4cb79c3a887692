"""``batchrun verify``: what is right passes, and each kind of damage is found by the check that is there for it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from sqlalchemy import Column as C
from sqlalchemy import Date, Integer, MetaData, String, Table, Uuid, insert, select, text
from sqlalchemy.orm import Session

from batchrun import Context, Retry, Skip, iter_parallel, keyset, run_parallel
from batchrun.api import Place, verify_run
from batchrun.jobs import Job
from batchrun.ledger.verify import Verification
from tests.support.commands import CommandLine
from tests.support.databases import engine_for

METADATA = MetaData()
KEYS: dict[str, tuple[Table, tuple[str, ...], list[dict[str, Any]]]] = {
    "int": (Table("ints", METADATA, C("k", Integer, primary_key=True)), ("k",), [{"k": n * 3} for n in range(60)]),
    "text": (
        Table("texts", METADATA, C("k", String(80), primary_key=True)), ("k",), [{"k": f"ä{'x' * 45}{n:03}"} for n in range(60)],
    ),
    "composite": (
        Table("pairs", METADATA, C("d", Date, primary_key=True), C("n", Integer, primary_key=True)), ("d", "n"),
        [{"d": date(2026, 1, 1 + n % 7), "n": n} for n in range(60)],
    ),
    "uuid": (
        Table("uuids", METADATA, C("k", Uuid, primary_key=True)), ("k",),
        [{"k": uuid.uuid5(uuid.NAMESPACE_URL, str(n))} for n in range(60)],
    ),
}  # fmt: skip


def source(kind: str) -> Any:
    table, names, _ = KEYS[kind]
    return keyset(select(*(table.c[name] for name in names)), page=7)


def ints() -> Any:
    return source("int")


def nothing(session: Session, item: Any) -> None:
    session.execute(text("SELECT 1"))


def mixed(session: Session, item: int, ctx: Context) -> None:
    """Some items fail, are skipped or are tried again."""
    if item % 30 == 0:
        raise ValueError(item)
    if item % 30 == 3:
        raise Skip("not wanted")
    if item % 30 == 6 and ctx.attempt == 1:
        raise Retry(after=0)


def fill(url: str, kind: str) -> None:
    table, _, rows = KEYS[kind]
    engine = engine_for(url)
    METADATA.create_all(engine, [table])
    with engine.begin() as connection:
        connection.execute(insert(table), rows)


def execute(url: str, *statements: str) -> None:
    with engine_for(url).begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def verify(url: str, items: Any = None) -> Verification:
    job = Job("nothing", nothing, items=items)
    return verify_run(Place(url, Path.cwd()), "last", lambda name: (job, {}))


def statuses(found: Verification) -> dict[str, str]:
    return {check.name: check.status for check in found.checks}


ALL_OK = dict.fromkeys(("counts", "numbers", "positions", "payloads", "rows", "ending", "keys"), "ok")


@pytest.mark.parametrize("kind", KEYS)
def test_a_run_that_is_right_passes_every_check(database_url: str, kind: str) -> None:
    fill(database_url, kind)
    run_parallel(nothing, source(kind), database_url, workers=0, name="v")
    found = verify(database_url, lambda: source(kind))
    assert statuses(found) == ALL_OK, found
    assert found.ok
    assert "60 keys covered" in found.checks[-1].text


def carry_out(url: str) -> str:
    """A run of every outcome; 60 keys."""
    fill(url, "int")
    report = run_parallel(mixed, ints(), url, workers=0, name="v")
    assert (report.done, report.failed, report.skipped) == (48, 6, 6)
    return url


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a run, made once."""
    file = tmp_path_factory.mktemp("verify") / "original.db"
    url = carry_out(f"sqlite:///{file}")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Path(url.removeprefix("sqlite:///"))


@pytest.fixture
def done(original: Path, tmp_path: Path) -> str:
    """A copy of it to be damaged. What is found is found by the same statements on every database."""
    return f"sqlite:///{shutil.copy(original, tmp_path / 'copy.db')}"


def test_counts_are_shown_and_add_up(database_url: str) -> None:
    found = verify(carry_out(database_url), ints)
    assert statuses(found) == ALL_OK
    assert found.checks[0].text == "planned 60 = done 48 + failed 6 + skipped 6 + quarantined 0 + unknown 0 + pending 0"


def test_a_run_that_was_interrupted_and_resumed_is_right_at_every_stage(database_url: str) -> None:
    fill(database_url, "int")
    outcomes: Iterator[Any] = iter_parallel(nothing, ints(), database_url, workers=0, name="v")
    for _ in range(20):
        next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    found = verify(database_url, ints)
    assert statuses(found) == ALL_OK, found
    assert "pending 0" not in found.checks[0].text or "60 keys" not in found.checks[-1].text
    run_parallel(nothing, ints(), database_url, workers=0, name="v")
    found = verify(database_url, ints)
    assert statuses(found) == ALL_OK, found
    assert "60 keys covered" in found.checks[-1].text


DAMAGE = {
    "a chunk is gone": ("DELETE FROM batchrun_chunk WHERE no = 2", "numbers"),
    "the last chunk is gone": ("DELETE FROM batchrun_chunk WHERE no = (SELECT max(no) FROM batchrun_chunk)", "numbers"),
    "the next number is wrong": ("UPDATE batchrun_run SET next_no = next_no + 1", "numbers"),
    "a position beyond its chunk": ("UPDATE batchrun_chunk SET pos = size + 1 WHERE no = 1", "positions"),
    "a closed chunk that is not through": ("UPDATE batchrun_chunk SET pos = size - 1 WHERE no = 1", "positions"),
    "more skipped than settled": ("UPDATE batchrun_chunk SET skipped = size + 5 WHERE no = 1", "positions"),
    "a payload of a closed chunk": ("INSERT INTO batchrun_payload SELECT id, 1, '[]' FROM batchrun_run", "payloads"),
    "an open chunk without its items": ("UPDATE batchrun_chunk SET open = true WHERE no = 1", "payloads"),
    "a row outside of its chunk": ("UPDATE batchrun_item SET pos = 900 WHERE no = 0", "rows"),
    "a row of no chunk": ("UPDATE batchrun_item SET no = 900 WHERE no = 0", "rows"),
    "a state that does not exist": ("UPDATE batchrun_item SET state = 'lost' WHERE state = 'failed'", "counts"),
    "a failed item in a run that is done": ("UPDATE batchrun_run SET status = 'done'", "ending"),
    "an item that waits in a run that ended": ("UPDATE batchrun_item SET state = 'retry' WHERE state = 'failed'", "ending"),
    "a frontier that was moved": ("UPDATE batchrun_run SET cursor = '[1]'", "keys"),
    "chunks that were cut away together with the frontier": (
        """DELETE FROM batchrun_chunk WHERE no > 3; DELETE FROM batchrun_item WHERE no > 3;
        UPDATE batchrun_run SET next_no = 4, cursor = (SELECT frontier FROM batchrun_chunk WHERE no = 3)""",
        "keys",
    ),
}


def test_damage_is_found_on_postgresql_too(pg_url: str) -> None:
    carry_out(pg_url)
    execute(pg_url, "DELETE FROM batchrun_chunk WHERE no = 2", "UPDATE batchrun_chunk SET pos = size + 1 WHERE no = 1")
    found = statuses(verify(pg_url, ints))
    assert [found[name] for name in ("numbers", "positions", "rows", "keys")].count("WRONG") >= 2, found


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_by_the_check_that_is_there_for_it(done: str, damage: str) -> None:
    statements, check = DAMAGE[damage]
    execute(done, *statements.split(";"))
    found = verify(done, ints)
    assert statuses(found)[check] == "WRONG", found
    assert not found.ok


def test_keys_that_came_or_went_since_are_told_and_are_not_wrong(done: str) -> None:
    execute(done, "DELETE FROM ints WHERE k = 9", "INSERT INTO ints VALUES (100)")
    found = verify(done, ints)
    assert found.ok
    keys = found.checks[-1]
    assert keys.status == "changed"
    assert "1 are no longer in the query, 1 came since" in keys.text


def test_a_key_that_was_left_out_is_wrong(done: str) -> None:
    execute(done, "UPDATE batchrun_run SET total = 61", "INSERT INTO ints VALUES (100)")
    found = verify(done, ints)
    assert statuses(found)["keys"] == "WRONG"
    assert "61 were there when it opened, and 1 that are there belong to no item" in found.checks[-1].text


def test_sources_without_keys_and_unknown_jobs_are_told(done: str) -> None:
    assert "no keys" in verify(done, lambda: [1, 2]).checks[-1].text
    assert verify_run(Place(done, Path.cwd()), "last").checks[-1].status == "not checked"
    other = verify(done, lambda: keyset(select(KEYS["int"][0].c.k).where(KEYS["int"][0].c.k > 5)))
    assert "another one" in other.checks[-1].text


JOB = """
    from sqlalchemy import column, select, table, text
    from batchrun import job, keyset
    @job
    def copy(session, item):
        session.execute(text("SELECT 1"))
    @copy.items
    def orders(session):
        return keyset(select(column("k")).select_from(table("ints")), key=column("k"))
"""


def test_the_command_line(done: str, tmp_path: Path, batchrun: CommandLine) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "copy.py").write_text(dedent(JOB))
    (tmp_path / "config.toml").write_text(f'[database]\nurl = "{done}"\n')

    def called(*arguments: str) -> tuple[int, str]:
        result = batchrun(*arguments, cwd=tmp_path)
        return result.returncode, result.stdout

    assert called("run", "copy", "--workers", "0")[0] == 0
    code, out = called("verify", "copy")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["ok"] * 7, out
    shown = json.loads(called("verify", "--json")[1])
    assert (shown["schema"], shown["job"], shown["ok"], len(shown["checks"])) == (1, "copy", True, 7)
    execute(done, "UPDATE batchrun_run SET next_no = next_no + 1 WHERE job = 'copy'")
    code, out = called("verify", "copy")
    assert (code, "WRONG" in out) == (1, True)
    assert called("verify", "unheard-of")[0] == 2
