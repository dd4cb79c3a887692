"""``batchrun ledger upgrade``: a ledger of the layout before, with what its batchrun left in it, goes on in this one."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import inspect, text

from batchrun.api import Place
from batchrun.ledger.schema import LAYOUT, tables
from batchrun.upkeep import upgrade_ledger
from tests.support.commands import CommandLine
from tests.support.databases import Clones, engine_for
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
OLD = (ROOT / "tests" / "support" / "layout_1.sql").read_text()
ENDED, CUT_OFF = "vh2pr0yv86", "twv79b804p"
"""The two runs in it."""

JOB = '''
"""The job whose runs stand in a ledger of layout 1."""

import os

from sqlalchemy import column, select, table, text

from batchrun import job, keyset


@job(retries=0)
def double(session, n: int) -> None:
    """Keep the double of every number."""
    is_broken, dies_at = session.execute(text("SELECT is_broken, dies_at FROM weather")).one()
    if n == dies_at:
        os._exit(9)
    if is_broken and n % 10 == 3:
        raise ValueError(f"{n} is broken")
    session.execute(text("INSERT INTO doubled VALUES (:n, :double)"), {"n": n, "double": 2 * n})


@double.items
def numbers(session, above: int = 0):
    return keyset(select(column("n")).select_from(table("numbers")).where(column("n") > above))
'''
ADDED = {"batchrun_request", "batchrun_insight", "batchrun_schedule"}


@pytest.fixture
def old_url(database_url: str) -> str:
    """A database with a ledger of layout 1."""
    execute(database_url, OLD)
    return database_url


def execute(url: str, script: str) -> None:
    lines = "\n".join(line for line in script.splitlines() if not line.startswith("--"))
    with engine_for(url).begin() as connection:
        for statement in lines.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)


def answer(url: str, question: str) -> object:
    with engine_for(url).connect() as connection:
        return connection.execute(text(question)).scalar()


def layout(url: str) -> object:
    return answer(url, "SELECT layout FROM batchrun_meta")


def tables_of(url: str) -> set[str]:
    return {name for name in inspect(engine_for(url)).get_table_names() if name.startswith("batchrun_")}


@pytest.fixture
def project(tmp_path: Path, old_url: str) -> Path:
    (tmp_path / "config.toml").write_text(f'[database]\nurl = "{old_url}"\n\n[run]\nworkers = 0\n')
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "doubling.py").write_text(JOB)
    return tmp_path


def test_runs_of_the_old_layout_are_resumed_retried_and_verified_after_the_upgrade(
    project: Path, old_url: str, batchrun: CommandLine
) -> None:
    refused = batchrun("resume", cwd=project)
    assert refused.returncode == 2
    assert (
        "has layout 1, this batchrun knows layout 2; nothing was changed. To go on, run: batchrun ledger upgrade"
        in refused.stderr
    )
    assert layout(old_url) == 1

    upgraded = batchrun("ledger", "upgrade", cwd=project)
    assert (upgraded.returncode, upgraded.stdout) == (0, "")
    assert upgraded.stderr == "The ledger was upgraded from layout 1 to layout 2.\n"
    assert layout(old_url) == LAYOUT
    shown = json.loads(batchrun("show", CUT_OFF, "--json", cwd=project).stdout)
    assert (shown["status"], shown["done"], shown["failed"], shown["pending"]) == ("interrupted", 23, 3, 2)

    execute(old_url, "UPDATE weather SET dies_at = NULL")
    assert batchrun("resume", cwd=project).returncode == 1  # nothing was changed: 33, 43 and 53 fail here, too
    execute(old_url, "UPDATE weather SET is_broken = false")
    for run in (ENDED, CUT_OFF):
        assert batchrun("retry", run, cwd=project).returncode == 0
        verified = batchrun("verify", run, cwd=project)
        assert verified.returncode == 0, verified.stdout
    assert doubled(old_url) == {n: 1 if n <= 28 else 2 for n in range(1, 61)}  # both runs have the numbers above 28


def doubled(url: str) -> dict[int, int]:
    """How often each number was doubled."""
    with engine_for(url).connect() as connection:
        return {row[0]: row[1] for row in connection.execute(text("SELECT n, count(*) FROM doubled GROUP BY n"))}


def test_an_upgrade_is_done_once_and_says_so(project: Path, old_url: str, batchrun: CommandLine) -> None:
    before = tables_of(old_url)
    batchrun("ledger", "upgrade", cwd=project)
    assert tables_of(old_url) == before | ADDED
    again = batchrun("ledger", "upgrade", cwd=project)
    assert again.returncode == 0
    assert again.stderr == "The ledger has layout 2 already; nothing was changed.\n"
    assert answer(old_url, "SELECT count(*) FROM batchrun_meta") == 1


def test_an_owner_of_the_old_layout_that_goes_on_writing_is_not_disturbed(old_url: str, tmp_path: Path) -> None:
    """Its statements know the old tables alone; here one of its transactions is open while the upgrade runs."""
    if old_url.startswith("sqlite"):
        upgrade_ledger(Place(old_url, tmp_path))
        execute(old_url, f"UPDATE batchrun_run SET heartbeat = heartbeat + 5 WHERE id = '{CUT_OFF}'")
        return
    with psycopg2.connect(old_url) as owner, owner.cursor() as cursor:
        cursor.execute("UPDATE batchrun_chunk SET pos = pos + 1 WHERE run = %s AND no = 6", (CUT_OFF,))
        cursor.execute("UPDATE batchrun_run SET heartbeat = heartbeat + 5 WHERE id = %s", (CUT_OFF,))
        upgrade_ledger(Place(old_url, tmp_path))
        cursor.execute("INSERT INTO batchrun_chunk VALUES (%s, 7, 1, 1, 0, 0, 0, '29', '29', '[29]', true)", (CUT_OFF,))
    owner.close()
    assert answer(old_url, "SELECT pos FROM batchrun_chunk WHERE no = 6 AND open") == 6
    assert layout(old_url) == LAYOUT


def test_two_upgrades_at_once_both_end_well(old_url: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: upgrade_ledger(Place(old_url, tmp_path)), range(2)))
    assert set(found) <= {1, LAYOUT}
    assert layout(old_url) == LAYOUT
    assert answer(old_url, "SELECT count(*) FROM batchrun_meta") == 1


def test_a_newer_layout_is_refused(project: Path, old_url: str, batchrun: CommandLine) -> None:
    execute(old_url, "UPDATE batchrun_meta SET layout = 7")
    for arguments in (("upgrade",), ("upgrade", "--sql")):
        result = batchrun("ledger", *arguments, cwd=project)
        assert result.returncode == 2
        assert (
            "has layout 7, this batchrun knows layout 2; nothing was changed. Install a batchrun that knows it." in result.stderr
        )
    assert not tables_of(old_url) & ADDED


def test_the_printed_statements_upgrade_it_too(project: Path, old_url: str, batchrun: CommandLine) -> None:
    printed = batchrun("ledger", "upgrade", "--sql", cwd=project)
    assert printed.returncode == 0
    assert layout(old_url) == 1
    script = printed.stdout.removeprefix("BEGIN;\n").removesuffix("COMMIT;\n")
    execute(old_url, script)
    assert layout(old_url) == LAYOUT
    for table in tables().added:
        assert answer(old_url, f"SELECT count(*) FROM {table.name}") == 0


def test_without_a_ledger_there_is_nothing_to_upgrade(tmp_path: Path, batchrun: CommandLine) -> None:
    result = batchrun("ledger", "upgrade", "--database-url", f"sqlite:///{tmp_path / 'new.db'}", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stderr == "There is no ledger yet; the first run makes one, of the newest layout.\n"


def test_a_role_that_may_not_create_is_told_the_statements(
    pg_url: str, clones: Clones, tmp_path: Path, batchrun: CommandLine
) -> None:
    execute(pg_url, OLD)
    execute(pg_url, "DROP ROLE IF EXISTS reader;\nCREATE ROLE reader LOGIN;\nGRANT SELECT, UPDATE ON batchrun_meta TO reader")
    url = pg_url.replace("postgres@", "reader@", 1)
    result = batchrun("ledger", "upgrade", "--database-url", url, cwd=tmp_path)
    assert result.returncode == 6
    assert "The ledger was not upgraded, and nothing was changed: permission denied for schema public" in result.stderr
    assert "CREATE TABLE IF NOT EXISTS batchrun_request (" in result.stderr
    assert "TO reader;\n\nUPDATE batchrun_meta SET layout=2 WHERE batchrun_meta.layout = 1;\n\nCOMMIT;" in result.stderr
    assert layout(pg_url) == 1
    execute(pg_url, result.stderr.partition("BEGIN;\n")[2].partition("COMMIT;")[0])
    assert batchrun("ledger", "upgrade", "--database-url", url, cwd=tmp_path).returncode == 0
    execute(pg_url, "DROP OWNED BY reader;\nDROP ROLE reader")


def test_an_upgrade_that_is_killed_on_its_way_leaves_the_old_layout(
    pg_url: str, pg_database: str, clones: Clones, tmp_path: Path
) -> None:
    execute(pg_url, OLD)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock' AND query LIKE 'UPDATE%%'"
    holder = psycopg2.connect(pg_url)
    try:
        with holder.cursor() as cursor:
            cursor.execute("SELECT * FROM batchrun_meta FOR UPDATE")  # the last statement waits, the tables are made by then
            command = [sys.executable, "-m", "batchrun", "ledger", "upgrade", "--database-url", pg_url]
            with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as upgrade:
                wait_until(lambda: clones.execute(waits, pg_database)[0][0] == 1, 30, what="the upgrade waits")
                upgrade.kill()
    finally:
        holder.close()
    wait_until(lambda: clones.execute(waits, pg_database)[0][0] == 0, 30, what="its session has ended")
    assert layout(pg_url) == 1
    assert not tables_of(pg_url) & ADDED
    upgrade_ledger(Place(pg_url, tmp_path))
    assert layout(pg_url) == LAYOUT
