"""The connection budget against a real server: refused with the sum, shrunk with a notice, waited for; never a half-started run.

A role of the test's own with a CONNECTION LIMIT stands for a full server: the arithmetic is the same, and it fills faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import make_url

from batchrun import seating
from batchrun.api import Place, start_job
from batchrun.database import connecting
from batchrun.database.budget import limits_of
from batchrun.errors import ConfigError, DatabaseError
from batchrun.events import Event, Notice, RunOpened
from batchrun.jobs import Job
from batchrun.options import RunOptions, with_options
from batchrun.runs import Report
from tests.support import crashes, oracle
from tests.support.commands import CommandLine
from tests.support.databases import Clones, engine_for
from tests.support.waiting import wait_until

ITEMS = range(1, 31)


@dataclass
class Role:
    """A role that owns the test's database. server: who may say how many connections it has."""

    server: Clones
    name: str
    database: str
    others: list[Any] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.server.url(self.database, user=self.name)

    def limit(self, connections: int) -> None:
        """Let it have so many, once the sessions of what came before are gone."""
        wait_until(lambda: not self.server.execute("SELECT FROM pg_stat_activity WHERE usename = %s", self.name))
        self.raise_limit(connections)

    def raise_limit(self, connections: int) -> None:
        self.server.execute(f"ALTER ROLE {self.name} CONNECTION LIMIT {connections}")

    def take(self, connections: int) -> None:
        self.others += [psycopg2.connect(self.url, application_name="another program") for _ in range(connections)]

    def let_go(self) -> None:
        while self.others:
            self.others.pop().close()


@pytest.fixture
def role(clones: Clones, pg_database: str) -> Iterator[Role]:
    made = Role(clones, f"app_{pg_database}", pg_database)
    clones.execute(f"CREATE ROLE {made.name} LOGIN")
    clones.execute(f"ALTER DATABASE {pg_database} OWNER TO {made.name}")
    oracle.create(made.url, ITEMS)
    yield made
    made.let_go()
    clones.check_sessions(pg_database)
    clones.drop(pg_database)
    clones.execute(f"DROP ROLE {made.name}")


@dataclass
class Told:
    """What a run said. then: called at the first notice."""

    events: list[Event] = field(default_factory=list)
    then: Callable[[], None] | None = None

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Notice) and self.then:
            then, self.then = self.then, None
            then()

    @property
    def notices(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Notice)]


def start(
    url: str, told: Told, folder: Path, ledger: str | None = None, items: Any = ITEMS, task: Any = oracle.task, **options: Any
) -> Report:
    """A run as ``batchrun run`` opens it."""
    return start_job(
        Job("plain", task, items=lambda: items),
        {},
        with_options(RunOptions(), {"start_method": "fork", **options}),
        Place(url, folder, ledger=ledger),
        observers=(told,),
        captures_output=False,
    )


def runs(url: str) -> int:
    """Rows of runs in the ledger."""
    with engine_for(url).connect() as connection:
        there = oracle.scalar(connection, "SELECT to_regclass('batchrun_run') IS NOT NULL")
        found = oracle.scalar(connection, "SELECT count(*) FROM batchrun_run") if there else 0
    assert isinstance(found, int)
    return found


# ------------------------------------------------------------------------------------------ a number that does not fit
def test_a_number_that_does_not_fit_is_refused_with_the_sum_and_leaves_no_run(role: Role, tmp_path: Path) -> None:
    role.limit(9)
    role.take(2)
    told = Told()
    with pytest.raises(ConfigError) as caught:
        start(role.url, told, tmp_path, workers=6)
    assert str(caught.value) == (
        "PostgreSQL has too few free connections for this run, so no worker was started:\n"
        "  needed     6 workers x 1 thread + 2 of the parent = 8\n"
        f"  available  connection limit of role {role.name} 9 - 2 in use by others = 7\n"
        'Take -j 5 (workers=5), or workers="auto", which takes what fits; or raise the role\'s limit '
        f"(ALTER ROLE {role.name} CONNECTION LIMIT n), or put a pooler such as pgbouncer in between."
    )
    assert not told.events
    assert runs(role.server.server.url(role.database)) == 0


def test_what_fits_exactly_runs_in_silence(role: Role, tmp_path: Path) -> None:
    role.limit(5)
    role.take(1)
    told = Told()
    report = start(role.url, told, tmp_path, workers=2)
    assert (report.workers, told.notices) == (2, [])
    role.let_go()
    oracle.assert_exactly_once(role.server.server.url(role.database), report.run, ITEMS)


def test_control_without_the_budget_workers_start_and_wait_in_vain(
    role: Role, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.opening.seat", lambda *_: 2)
    role.limit(3)
    told = Told(then=lambda: role.raise_limit(-1))  # or the worker that gets no connection would hold its items for ever
    start(role.url, told, tmp_path, task=crashes.slow, workers=2)
    assert any("too many connections for role" in notice for notice in told.notices), told.notices


def test_not_even_one_worker_fits(role: Role, tmp_path: Path) -> None:
    role.limit(2)
    with pytest.raises(ConfigError, match=r"1 worker x 1 thread.*\n.*\nNot even one worker fits: wait until others have closed"):
        start(role.url, Told(), tmp_path, workers="auto", items=[1])


def test_inline_work_needs_a_connection_as_well(role: Role, tmp_path: Path) -> None:
    role.limit(2)
    with pytest.raises(ConfigError, match="no worker was started"):
        start(role.url, Told(), tmp_path, workers=0)
    role.limit(3)
    assert start(role.url, Told(), tmp_path, workers=0).done == len(ITEMS)


# ------------------------------------------------------------------------------------------ as many as fit
@pytest.mark.parametrize("workers", ["auto", None])
def test_auto_and_no_number_take_what_fits_and_say_so(
    role: Role, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str | None
) -> None:
    monkeypatch.setattr(seating, "cores", lambda: 8)
    role.limit(4)
    told = Told()
    report = start(role.url, told, tmp_path, workers=workers)
    assert report.workers == 2
    assert [event.workers for event in told.events if isinstance(event, RunOpened)] == [2]
    (notice,) = told.notices
    assert notice == (
        "2 instead of 8 workers, because PostgreSQL has no more free connections:\n"
        "  needed     8 workers x 1 thread + 2 of the parent = 10\n"
        f"  available  connection limit of role {role.name} 4 - 0 in use by others = 4"
    )
    oracle.assert_exactly_once(role.server.server.url(role.database), report.run, ITEMS)


# ------------------------------------------------------------------------------------------ which limits there are
def test_a_ledger_in_another_database_counts_on_each_limit_that_it_shares(role: Role, tmp_path: Path) -> None:
    with role.server.clone() as elsewhere:
        role.server.execute(f"ALTER DATABASE {elsewhere} OWNER TO {role.name}")
        ledger = role.server.server.url(elsewhere, user=role.name)
        role.limit(10)
        with pytest.raises(ConfigError, match=r"5 workers x 1 thread x 2 databases \+ 2 of the parent = 12"):
            start(role.url, Told(), tmp_path, ledger=ledger, workers=5)
        role.limit(-1)
        role.server.execute(f"ALTER DATABASE {elsewhere} CONNECTION LIMIT 3")
        with pytest.raises(ConfigError) as caught:
            start(role.url, Told(), tmp_path, ledger=ledger, workers=5)
        assert "  needed     5 workers x 1 thread + 1 of the parent = 6\n" in str(caught.value)
        assert f"connection limit of database {elsewhere} 3 - 0 in use by others = 3\nTake -j 2" in str(caught.value)
        role.server.execute(f"ALTER ROLE {role.name} CONNECTION LIMIT -1")
        wait_until(lambda: not role.server.execute("SELECT FROM pg_stat_activity WHERE datname = %s", elsewhere))


def test_reserved_connections_count_for_those_they_are_kept_from(role: Role, clones: Clones) -> None:
    ask = "SELECT current_setting(%s)::int"
    ((most,),), ((reserved,),) = clones.execute(ask, "max_connections"), clones.execute(ask, "superuser_reserved_connections")
    role.take(2)
    mine, supers = [(limits_of(engine_for(url), "run00000", threads=1) or [])[0] for url in (role.url, clones.server.url())]
    assert (mine.most, mine.reserved, supers.most, supers.reserved) == (most, reserved, most, 0)
    assert mine.key == supers.key
    assert 3 <= mine.in_use < most  # both of the test's and the one that asks, though the role may not see of which type


# ------------------------------------------------------------------------------------------ the parent finds none
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_parent_that_finds_no_connection_says_so_and_waits(role: Role, tmp_path: Path, driver: str) -> None:
    role.limit(4)
    role.take(4)
    told = Told(then=role.let_go)
    url = make_url(role.url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
    report = start(url, told, tmp_path, workers=1)
    (notice,) = told.notices
    assert f"has no free connection for role {role.name}; waiting for one, up to 60 s" in notice
    oracle.assert_exactly_once(role.server.server.url(role.database), report.run, ITEMS)


def test_a_parent_that_waits_in_vain_gives_up_with_the_numbers(
    role: Role, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "FULL_WAIT_S", 0.2)
    role.limit(2)
    role.take(1)
    told = Told()
    with pytest.raises(DatabaseError) as caught:
        start(role.url, told, tmp_path)  # the source's connection is the last
    assert f"connection limit of role {role.name} 2 - 2 in use = 0\n" in str(caught.value)
    assert len(told.notices) == 1


# ------------------------------------------------------------------------------------------ the command line
JOB = """
from batchrun import job
from tests.support import oracle
@job
def plain(session, item: int, ctx):
    oracle.task(session, item, ctx)
@plain.items
def items(session):
    return range(1, 31)
"""


def test_the_command_line_refuses_with_exit_2_and_an_empty_stdout(role: Role, tmp_path: Path, batchrun: CommandLine) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "plain.py").write_text(JOB)
    (tmp_path / "config.toml").write_text(f"[database]\nurl = '{role.url}'\n[run]\nworkers = 'auto'\n")
    role.limit(5)
    done = batchrun("run", "plain", "-j", "20", "--json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "20 workers x 1 thread + 2 of the parent = 22" in done.stderr
    assert "Take -j 3 (workers=3)" in done.stderr
    assert runs(role.server.server.url(role.database)) == 0
