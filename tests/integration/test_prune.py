"""``batchrun ledger prune`` and ``[ledger] keep_days``: old runs go, whole, beside runs that go on, and whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import Engine, func, insert, select, text
from sqlalchemy.orm import Session

from batchrun import iter_parallel, run_parallel
from batchrun.api import Place, open_reading, verify_run
from batchrun.database.engines import spec_of
from batchrun.database.runfolder import AliveLock, run_folder
from batchrun.database.turnstile import OwnerTurn, Turnstile
from batchrun.errors import AlreadyRunning, UnknownRun
from batchrun.ledger import pruning, visiting
from batchrun.ledger.pruning import Pruner
from batchrun.ledger.schema import Tables, ensure, tables
from batchrun.ledger.visiting import Visitor
from batchrun.upkeep import DAY_S, prune_ledger, tidy
from tests.support.commands import CommandLine
from tests.support.databases import engine_for
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
NINETY = 90 * DAY_S
KNOWN = tables()
OWN = (KNOWN.chunk, KNOWN.payload, KNOWN.item, KNOWN.request, KNOWN.insight)


@pytest.fixture
def pg_url(kept_url: str) -> str:
    """One database for all tests here; each empties the ledger."""
    ensure(engine_for(kept_url))
    with engine_for(kept_url).begin() as connection:
        for table in KNOWN.metadata.sorted_tables:
            if table is not KNOWN.meta:
                connection.execute(table.delete())
    return kept_url


@pytest.fixture
def engine(database_url: str) -> Engine:
    made = engine_for(database_url)
    ensure(made)
    return made


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Place:
    return Place(database_url, tmp_path)


def add_run(
    engine: Engine, run: str, days: float, status: str = "done", *, name: str | None = None, chunks: int = 3, silent: float = 0.0
) -> None:
    """A run that ended so many days ago; one that is running was last heard of then."""
    now = "strftime('%s', 'now') + 0.0" if engine.dialect.name == "sqlite" else "extract(epoch FROM clock_timestamp())"
    with engine.begin() as connection:
        moment = float(connection.scalar(text(f"SELECT {now}")) or 0) - days * DAY_S
        connection.execute(
            insert(KNOWN.run).values(
                id=run, job="tidied", name=name, status=status, token="t", epoch=1, heartbeat=moment, owner="elsewhere||1|1",
                next_no=chunks, fingerprint="{}", sealed=True, params="{}", options="{}", guarantee="exactly-once", workers=1,
                started=moment - 60, ended=None if status == "running" else moment, elapsed=60.0, note="",
            )
        )  # fmt: skip
        if chunks:
            add_chunks(connection, run, chunks)
        connection.execute(insert(KNOWN.request).values(run=run, wanted="pause", asked=moment))
        connection.execute(insert(KNOWN.insight).values(run=run, epoch=1, data="{}"))


def add_chunks(connection: object, run: str, chunks: int) -> None:
    execute = connection.execute  # type: ignore[attr-defined]
    execute(insert(KNOWN.chunk), [{"run": run, "no": no, "epoch": 1, "size": 2, "pos": 2, "open": False} for no in range(chunks)])
    execute(insert(KNOWN.payload).values(run=run, no=chunks - 1, items="[1,2]"))
    execute(
        insert(KNOWN.item),
        [{"run": run, "no": no, "pos": 1, "epoch": 1, "payload": "[1]", "state": "failed"} for no in range(0, chunks, 2)],
    )


def runs_in(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return set(connection.execute(select(KNOWN.run.c.id)).scalars())


def rows_of(engine: Engine, run: str) -> int:
    """All rows of a run but its own."""
    with engine.connect() as connection:
        return sum(connection.scalar(select(func.count()).where(table.c.run == run)) or 0 for table in OWN)


# -------------------------------------------------------------------------------------------------- what goes, what stays
def test_finished_runs_that_ended_long_ago_go_with_all_their_rows_and_nothing_else(engine: Engine, place: Place) -> None:
    for status in ("done", "failed", "cancelled"):
        add_run(engine, f"old{status}", 91, status)
        add_run(engine, f"new{status}", 89, status)
    for status in ("running", "paused", "interrupted", "halted"):
        add_run(engine, f"old{status}", 91, status)
    add_run(engine, "namedone", 91, name="backfill")
    found = prune_ledger(place, NINETY)
    gone = {"olddone", "oldfailed", "oldcancelled"}
    assert {run.id for run in found.runs} == gone
    assert (found.rows, found.is_all, found.named, found.leftovers) == (3 * (1 + 3 + 1 + 2 + 2), True, 1, 0)
    assert not runs_in(engine) & gone
    assert len(runs_in(engine)) == 8
    for run in gone:
        assert rows_of(engine, run) == 0
    for run in runs_in(engine):
        assert rows_of(engine, run) == 8


def test_unfinished_and_named_runs_go_when_that_is_said_but_no_living_one(engine: Engine, place: Place) -> None:
    for status in ("running", "paused", "interrupted", "halted"):
        add_run(engine, f"old{status}", 91, status)
    add_run(engine, "living", 0.0001, "running")  # heard of nine seconds ago
    add_run(engine, "named", 91, name="backfill")
    with ExitStack() as stack:
        if engine.dialect.name == "sqlite":  # where the lock alone says that it lives
            lock = AliveLock(run_folder(Path(str(engine.url.database)), "oldrunning"))
            assert lock.take()
            stack.callback(lock.release, remove=True)
        prune_ledger(place, 0, named=True, unfinished=True)
        assert runs_in(engine) == ({"living", "oldrunning"} if engine.dialect.name == "sqlite" else {"living"})


def test_a_dry_run_says_what_would_go_and_changes_nothing(engine: Engine, place: Place) -> None:
    add_run(engine, "old1", 91)
    found = prune_ledger(place, NINETY, dry_run=True)
    assert [run.id for run in found.runs] == ["old1"]
    assert runs_in(engine) == {"old1"}
    assert rows_of(engine, "old1") == 8


def test_where_there_is_no_ledger_nothing_is_made(tmp_path: Path) -> None:
    file = tmp_path / "new.db"
    assert prune_ledger(Place(f"sqlite:///{file}", tmp_path), NINETY).runs == []
    assert "batchrun_meta" not in file.read_text(errors="replace")


# -------------------------------------------------------------------------------------------------- killed, and beside others
def test_a_prune_that_is_killed_leaves_no_half_run_and_the_next_one_ends_it(
    engine: Engine, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after each of its transactions in turn."""
    monkeypatch.setattr(pruning, "BATCH", 2)
    kills = 0
    while True:
        add_run(engine, "big", 91, chunks=5)
        with Visitor(spec_of(place.database), application_name="batchrun-upkeep") as visitor:
            pruner = _KilledPruner(visitor, KNOWN, NINETY, after=kills)
            try:
                pruner.prune()
                break
            except KeyboardInterrupt:
                kills += 1
        if kills == 1:
            assert rows_of(engine, "big") == 11
            assert runs_in(engine) == {"big"}
            engine_clear(engine)
            continue
        assert runs_in(engine) == set()  # nobody finds it any more
        with open_reading(place) as reading, pytest.raises(UnknownRun):
            reading.find("big")
        with pytest.raises(UnknownRun):
            verify_run(place, "big")
        found = prune_ledger(place, NINETY)
        assert rows_of(engine, "big") == 0
        assert found.leftovers == found.rows
    assert kills > 6
    assert rows_of(engine, "big") == 0


class _KilledPruner(Pruner):
    """Dies before its transaction number ``after``."""

    def __init__(self, visitor: Visitor, known: Tables, older_than_s: float, *, after: int) -> None:
        super().__init__(visitor, known, older_than_s)
        plain, done = visitor.writing, iter(range(after))

        def writing() -> object:
            if next(done, None) is None:
                raise KeyboardInterrupt
            return plain()

        visitor.writing = writing  # type: ignore[method-assign,assignment]


def engine_clear(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in (KNOWN.run, *OWN):
            connection.execute(table.delete())


def test_a_retry_that_is_quicker_keeps_its_run_and_one_that_is_slower_is_told(engine: Engine, place: Place) -> None:
    add_run(engine, "chosen", 91, "failed")
    with Visitor(spec_of(place.database), application_name="batchrun-upkeep") as visitor:
        pruner = Pruner(visitor, KNOWN, NINETY)
        (old,) = pruner.chosen()
        with engine.begin() as connection:
            connection.execute(KNOWN.run.update().values(status="running", epoch=2, ended=None))
        pruner.chosen = lambda: [old]  # type: ignore[method-assign]
        assert pruner.prune().runs == []
    assert runs_in(engine) == {"chosen"}
    assert rows_of(engine, "chosen") == 8

    from batchrun.ledger.owner import Owner

    engine_clear(engine)
    with pytest.raises(AlreadyRunning):
        Owner(engine, KNOWN, "chosen").take_over(1)


def touch(session: Session, item: int) -> None:
    session.execute(text("INSERT INTO touched VALUES (:item)"), {"item": item})


def test_a_prune_beside_a_run_disturbs_neither(engine: Engine, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "BATCH", 20)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS touched"))
        connection.execute(text("CREATE TABLE touched (item INTEGER PRIMARY KEY)"))
    for number in range(3):
        add_run(engine, f"old{number}", 91, chunks=60)
    settled = 0
    outcomes = iter_parallel(touch, range(300), place.database, name="beside", workers=2, progress=False)
    for outcome in outcomes:
        settled += outcome.status == "done"
        if settled == 5:
            assert len(prune_ledger(place, NINETY).runs) == 3
    assert settled == 300
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM touched")) == 300
    assert len(runs_in(engine)) == 1
    for number in range(3):
        assert rows_of(engine, f"old{number}") == 0


def test_an_owner_that_stands_still_in_its_place_does_not_hold_a_prune(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the owner does whose consumer calls the prune: it waits for its turn to write, and for the prune to return."""
    monkeypatch.setattr(visiting, "TURN_WAIT_S", 0.1)
    monkeypatch.setattr(pruning, "BATCH", 1)  # many transactions: only the first waits
    engine = engine_for(sqlite_url)
    ensure(engine)
    add_run(engine, "old", 91, chunks=40)
    folder = run_folder(tmp_path / "test.db", "goeson")
    with ExitStack() as stack:
        lock = AliveLock(folder)
        assert lock.take()
        stack.callback(lock.release, remove=True)
        worker, owner = Turnstile(folder), OwnerTurn(folder)
        stack.callback(worker.close)
        stack.callback(owner.close)
        worker.enter()
        assert not owner.try_enter()  # it keeps its place from now on
        worker.leave()
        began = time.monotonic()
        assert len(prune_ledger(Place(sqlite_url, tmp_path), NINETY).runs) == 1
        assert time.monotonic() - began < 40 * 0.1
    assert rows_of(engine, "old") == 0


def test_a_million_chunks_are_found_by_steps_and_deleted_in_short_transactions(pg_url: str, tmp_path: Path) -> None:
    """A fiftieth of it, which shows the same: what the longest transaction deleted, and that leftovers need no scan."""
    engine = engine_for(pg_url)
    add_run(engine, "huge", 91, chunks=0)
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO batchrun_chunk (run, no, epoch, size, pos, open) SELECT 'huge', n, 1, 1, 1, false "
                 "FROM generate_series(0, 19999) AS n")
        )  # fmt: skip
    changed: list[int] = []
    with Visitor(spec_of(pg_url), application_name="batchrun-upkeep") as visitor:
        from sqlalchemy import event

        @event.listens_for(visitor.engine, "after_cursor_execute")
        def after(connection: object, cursor: psycopg2.extensions.cursor, statement: str, *others: object) -> None:
            if statement.startswith("DELETE"):
                changed.append(cursor.rowcount)

        assert Pruner(visitor, KNOWN, NINETY).prune().rows == 20_003
    assert max(changed) == pruning.BATCH


# -------------------------------------------------------------------------------------------------- the command, keep_days
@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Path:
    (tmp_path / "config.toml").write_text(
        f'[database]\nurl = "{database_url}"\n\n[run]\nworkers = 0\n\n[ledger]\nkeep_days = 30\n'
    )
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "some.py").write_text(
        "from batchrun import job\n@job\ndef tidied(session, item): ...\n@tidied.items\ndef items(): return range(3)\n"
    )
    return tmp_path


def test_the_command_says_what_it_deleted(project: Path, engine: Engine, batchrun: CommandLine) -> None:
    add_run(engine, "old1", 40)
    add_run(engine, "older", 91)
    add_run(engine, "named", 91, name="backfill")
    dry = batchrun("ledger", "prune", "--dry-run", cwd=project)
    assert dry.returncode == 0
    assert [line.split()[:3] for line in dry.stdout.splitlines()[1:]] == [["older", "tidied", "done"], ["old1", "tidied", "done"]]
    assert "2 runs would be deleted, older than 30 days; nothing was changed." in dry.stderr
    done = batchrun("ledger", "prune", "--older-than", "90d", cwd=project)
    assert done.stdout.splitlines()[1].split()[0] == "older"
    assert done.stderr.splitlines() == [
        "Deleted 1 run older than 90d, 9 rows in all.",
        "1 run as old was kept for its name: once it is gone, the next call of that name begins anew. --named deletes those too.",
    ]
    printed = batchrun("ledger", "prune", "--json", "--named", cwd=project)
    assert {run["run"] for run in json.loads(printed.stdout)["runs"]} == {"old1", "named"}
    quiet = batchrun("ledger", "prune", "-q", cwd=project)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--older-than", "90"], "--older-than: '90' has no unit; write 90d for days, 90h for hours"),
        (["--older-than", "soon"], "--older-than: 'soon' is no duration"),
        ([], "How old must a run be? Say --older-than 90d, or set keep_days in [ledger]."),
    ],
)
def test_without_an_age_nothing_is_deleted(arguments: list[str], said: str, tmp_path: Path, batchrun: CommandLine) -> None:
    (tmp_path / "config.toml").write_text("")
    result = batchrun("ledger", "prune", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert said in result.stderr


def test_keep_days_deletes_old_runs_behind_each_run_and_says_so(project: Path, engine: Engine, batchrun: CommandLine) -> None:
    add_run(engine, "old1", 31)
    add_run(engine, "new1", 29)
    result = batchrun("run", "tidied", cwd=project)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "1 run was older than 30 days and deleted from the ledger ([ledger] keep_days)."
    assert len(runs_in(engine)) == 2
    add_run(engine, "old2", 31)
    quiet = batchrun("run", "tidied", "-q", cwd=project)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert "old2" not in runs_in(engine)


def test_keep_days_stops_when_its_time_is_over_and_the_next_run_goes_on(
    engine: Engine, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.upkeep.TIDY_LIMIT_S", -1.0)
    add_run(engine, "old1", 91)
    found, warning = tidy(place, 90)
    assert (found.runs, found.is_all, warning) == ([], False, "")
    assert runs_in(engine) == {"old1"}
    monkeypatch.undo()
    assert [run.id for run in tidy(place, 90)[0].runs] == ["old1"]


def test_keep_days_that_cannot_delete_warns(project: Path, database_url: str, batchrun: CommandLine) -> None:
    assert batchrun("run", "tidied", "-q", cwd=project).returncode == 0
    with engine_for(database_url).begin() as connection:
        connection.execute(text("ALTER TABLE batchrun_insight RENAME TO hidden"))
    try:
        found, warning = tidy(Place(database_url, project), 30)
    finally:
        with engine_for(database_url).begin() as connection:
            connection.execute(text("ALTER TABLE hidden RENAME TO batchrun_insight"))
    assert found.runs == []
    assert warning.startswith("[ledger] keep_days: The ledger was not pruned to the end: ")


def test_keep_days_never_waits_for_another_writer_of_sqlite(sqlite_url: str, tmp_path: Path) -> None:
    engine = engine_for(sqlite_url)
    run_parallel(touch, [], sqlite_url, name="first", workers=0, progress=False)
    add_run(engine, "old1", 91)
    with engine.connect() as writer:
        writer.exec_driver_sql("BEGIN IMMEDIATE")
        assert tidy(Place(sqlite_url, tmp_path), 90)[1] == ""
        writer.rollback()
    assert "old1" in runs_in(engine)


def test_a_prune_killed_in_its_sleep_lets_everything_go(sqlite_url: str, tmp_path: Path) -> None:
    """A process that waits for another writer of SQLite is killed: nothing of it is left."""
    engine = engine_for(sqlite_url)
    run_parallel(touch, [], sqlite_url, name="first", workers=0, progress=False)
    add_run(engine, "old1", 91)
    command = [sys.executable, "-m", "batchrun", "ledger", "prune", "--older-than", "1d", "--database-url", sqlite_url]
    with engine.connect() as writer:
        writer.exec_driver_sql("BEGIN IMMEDIATE")
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as prune:
            wait_until(lambda: _has_open(prune.pid, tmp_path / "test.db"), 30, what="it has opened the database")
            os.kill(prune.pid, signal.SIGKILL)
        writer.rollback()
    assert runs_in(engine) >= {"old1"}
    assert len(prune_ledger(Place(sqlite_url, tmp_path), DAY_S).runs) == 1


def _has_open(pid: int, file: Path) -> bool:
    try:
        return any(one.readlink() == file for one in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
