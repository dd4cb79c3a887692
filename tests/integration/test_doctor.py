"""``batchrun doctor``: each thing that can be wrong is made so, and is found with what to do about it; nothing is changed."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from batchrun import run_parallel
from batchrun.checkup import files, ledgers, programs, projects, servers
from batchrun.checkup.examination import examine
from batchrun.checkup.findings import Finding, Verdict
from batchrun.checkup.projects import Crontab, read_crontab, starts
from batchrun.checkup.subject import Patient, Subject
from batchrun.ledger.schema import ensure
from tests.support.commands import CommandLine, own_modules
from tests.support.databases import Clones, engine_for
from tests.support.pgbouncer import PgBouncer

OK, WARNING, PROBLEM = Verdict.OK, Verdict.WARNING, Verdict.PROBLEM


@pytest.fixture
def pg_url(kept_url: str) -> str:
    """One database for all tests here."""
    with engine_for(kept_url).begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
        connection.execute(text("GRANT USAGE ON SCHEMA public TO PUBLIC"))
    return kept_url


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "jobs").mkdir()
    with own_modules(tmp_path):
        yield tmp_path


@pytest.fixture
def role(pg_url: str, clones: Clones) -> Iterator[str]:
    """A role that may connect and nothing else; its name."""
    name = f"guest_{clones.template.split('_')[2]}"
    clones.execute(f"CREATE ROLE {name} LOGIN")
    yield name
    with engine_for(pg_url).begin() as connection:
        connection.execute(text(f"DROP OWNED BY {name}"))
    clones.execute(f"DROP ROLE {name}")


def as_role(url: str, role: str) -> str:
    return url.replace("postgres@", f"{role}@", 1)


@contextmanager
def subject(folder: Path, url: str, settings: str = "") -> Iterator[Subject]:
    (folder / "config.toml").write_text(f'[database]\nurl = "{url}"\n{settings}\n')
    with Subject(config=str(folder / "config.toml")) as made:
        yield made


def only(found: Iterable[Finding]) -> Finding:
    (one,) = found
    return one


def looked_at(folder: Path, url: str, check: Callable[..., Iterator[Finding]], settings: str = "", **given: Any) -> list[Finding]:
    with subject(folder, url, settings) as made:
        return list(check(made, **given))


# ------------------------------------------------------------------------------------------------------ reaching it
def test_a_database_that_is_reached_is_named(folder: Path, pg_url: str) -> None:
    found = only(looked_at(folder, pg_url, servers.reached))
    assert found.verdict is OK
    assert found.text.startswith("PostgreSQL at 127.0.0.1:")


def test_a_wrong_password_a_missing_database_and_role_and_a_closed_port_are_told_apart(
    folder: Path, pg_url: str, wrong_password_url: str
) -> None:
    server, _, _ = pg_url.rpartition("/")
    for driver in ("postgresql", "postgresql+psycopg"):
        for url, said, advice in (
            (wrong_password_url, "The server refused user or password", "Check both"),
            (f"{server}/nowhere", "There is no such database", "CREATE DATABASE"),
            (as_role(pg_url, "nobody"), "There is no such role", "CREATE ROLE"),
            ("postgresql://127.0.0.1:1/x", "Nothing listens there: the connection was refused", "Check that the server runs"),
            (f"{pg_url}?sslmode=require", "TLS is demanded, but the server has none", "sslmode=prefer"),
            ("postgresql:///x?host=/nowhere", "There is no server on this machine's socket", "Name the server's host"),
        ):
            found = looked_at(folder, url.replace("postgresql", driver, 1), servers.reached)
            assert found[0].verdict is PROBLEM
            assert found[0].text.startswith(said), (url, found[0].text)
            assert advice in found[0].advice
            assert found[1].verdict is Verdict.SKIPPED


@pytest.mark.parametrize(
    ("libpq", "said"),
    [
        ('could not translate host name "db.internal" to address: Name or service not known', "The host's name is not known"),
        ("connection to server failed: timeout expired", "Nobody answered in time"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "app", no encryption', "The server lets nobody in from here"),
        ("FATAL:  sorry, too many clients already", "Every connection is taken"),
        ('root certificate file "/x/root.crt" does not exist', "TLS failed"),
        ("FATAL:  the database system is starting up", "The server is starting or stopping"),
        ('FATAL:  unsupported startup parameter: options', "A pooler refused an option of the URL"),
        ("something new", "RuntimeError"),
    ],
)  # fmt: skip
def test_what_libpq_says_is_put_into_plain_words(libpq: str, said: str) -> None:
    patient = Patient("database", works=True, records=True, engine=engine_for("postgresql://db/x"), error=RuntimeError(libpq))
    found = servers.refused("database", patient)
    assert found.verdict is PROBLEM
    assert found.text.startswith(said)
    assert libpq.split()[-1] in found.text
    assert found.advice


def test_a_driver_that_is_not_installed_and_a_url_that_is_none_are_problems(folder: Path) -> None:
    found = looked_at(folder, "postgresql+asyncpg://db/x", servers.reached)[0]
    assert (found.verdict, "is not supported" in found.text) == (PROBLEM, True)
    found = looked_at(folder, "mysql://db/x", servers.reached)[0]
    assert (found.verdict, "batchrun works with postgresql:// and sqlite://" in found.text) == (PROBLEM, True)


def test_a_factory_that_raises_is_a_problem_and_the_ledger_of_another_database_is_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    (folder / "engines_of_a_user.py").write_text("def make():\n    raise RuntimeError('no vault')\n")
    (folder / "config.toml").write_text('[database]\nfactory = "engines_of_a_user:make"\n[ledger]\nurl = "sqlite:///ledger.db"\n')
    with Subject(config=str(folder / "config.toml")) as made:
        found = [*servers.reached(made), *files.sqlite(made)]
    assert [(one.check, one.verdict) for one in found[:3]] == [
        ("database", PROBLEM), ("the rest", Verdict.SKIPPED), ("database (ledger)", OK),
    ]  # fmt: skip
    assert found[0].text == "No engine could be made: RuntimeError: no vault"


# ------------------------------------------------------------------------------------------------------ the server
def test_an_old_server_lacks_the_check_of_its_client(folder: Path, pg_url: str) -> None:
    assert only(looked_at(folder, pg_url, servers.version)).verdict is OK
    found = only(looked_at(folder, pg_url, servers.version, number=130005))
    assert found.verdict is WARNING
    assert found.text.startswith("PostgreSQL 13.5 has no client_connection_check_interval")


def test_a_server_that_takes_no_writes_is_a_problem(folder: Path, pg_url: str) -> None:
    assert only(looked_at(folder, pg_url, servers.writable)).text == "It takes writes"
    found = only(looked_at(folder, f"{pg_url}?options=-c%20default_transaction_read_only%3Don", servers.writable))
    assert found.verdict is PROBLEM
    assert found.text == "Transactions are read-only here by default"


def test_missing_privileges_are_named_before_and_after_there_is_a_ledger(folder: Path, pg_url: str, role: str) -> None:
    url = as_role(pg_url, role)
    assert only(looked_at(folder, pg_url, servers.privileges)).text.startswith("postgres may make the ledger's tables")
    found = only(looked_at(folder, url, servers.privileges))
    assert found.verdict is PROBLEM
    assert found.text == f"There is no ledger yet, and {role} may not make its tables in schema public"
    assert "batchrun ledger sql" in found.advice
    other = only(looked_at(folder, url, servers.privileges, "[ledger]\nschema = 'batchrun'"))
    assert other.text.endswith(f"{role} may not make its tables in schema batchrun")
    ensure(engine_for(pg_url))
    found = only(looked_at(folder, url, servers.privileges))
    assert found.verdict is PROBLEM
    assert "SELECT, INSERT, UPDATE, DELETE on batchrun_chunk" in found.text
    with engine_for(pg_url).begin() as connection:
        connection.exec_driver_sql(found.advice)
    assert only(looked_at(folder, url, servers.privileges)).text == f"{role} may read and write the ledger's tables"


def test_too_few_connections_are_a_problem_or_a_warning_as_the_run_would_take_them(
    folder: Path, pg_url: str, role: str, clones: Clones
) -> None:
    url = as_role(pg_url, role)
    found = only(looked_at(folder, url, servers.connections, "[run]\nworkers = 500"))
    assert found.verdict is PROBLEM
    assert found.text.startswith(
        "500 workers do not fit, so a run is refused: needed 500 workers x 1 thread + 2 of the parent = 502"
    )
    clones.execute(f"ALTER ROLE {role} CONNECTION LIMIT 3")
    assert only(looked_at(folder, url, servers.connections, "[run]\nworkers = 1")).text.startswith("1 worker fits: ")
    clones.execute(f"ALTER ROLE {role} CONNECTION LIMIT 2")
    found = only(looked_at(folder, url, servers.connections))
    assert found.verdict is PROBLEM
    assert found.text.startswith("Not even one worker fits just now")
    assert f"ALTER ROLE {role} CONNECTION LIMIT" in found.advice


def test_a_pooler_is_told_and_nothing_is_counted_behind_it(
    folder: Path, pg_database: str, bouncer: Callable[..., PgBouncer]
) -> None:
    url = bouncer("transaction").url(pg_database)
    assert only(looked_at(folder, url, servers.pooler)).text.startswith("The URL leads through a pooler")
    assert only(looked_at(folder, url, servers.connections)).text.startswith("Behind a pooler")


def test_a_clock_that_goes_wrong_is_a_warning(folder: Path, pg_url: str) -> None:
    assert only(looked_at(folder, pg_url, servers.clock)).verdict is OK
    found = only(looked_at(folder, pg_url, servers.clock, now=lambda: time.time() - 300))
    assert found.verdict is WARNING
    assert found.text == "This host's clock is 300 s behind the server's"


# ------------------------------------------------------------------------------------------------------ SQLite
def test_a_sqlite_file_is_neither_made_nor_changed(folder: Path) -> None:
    file = folder / "some file.db"
    found = looked_at(folder, f"sqlite:///{file}", files.sqlite)
    assert found[0].text == f"SQLite: {file} is not there yet; the first run makes it"
    assert not file.exists()
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE mine (id INTEGER)")
    connection.close()
    with subject(folder, f"sqlite:///{file}") as made:
        found = examine(made)
    (shown,) = [one.text for one in found if one.check == "database"]
    assert shown.endswith("journal delete; the first run turns write-ahead logging on")
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()
    assert {path.name for path in folder.glob("some*")} == {"some file.db"}


def test_what_is_no_database_and_a_folder_that_is_not_there_are_problems(folder: Path) -> None:
    (folder / "text.db").write_text("this is no database" * 100)
    found = looked_at(folder, "sqlite:///text.db", files.sqlite)[0]
    assert (found.verdict, "file is not a database" in found.text) == (PROBLEM, True)
    found = looked_at(folder, "sqlite:///nowhere/x.db", files.sqlite)[0]
    assert (found.verdict, found.text.startswith("There is no folder")) == (PROBLEM, True)


def test_sqlite_on_a_file_system_across_a_network_is_a_problem(folder: Path) -> None:
    mounts = folder / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/export {folder} nfs4 rw 0 0\n")
    found = looked_at(folder, "sqlite:///x.db", files.sqlite, mounts=mounts)[1]
    assert found.verdict is PROBLEM
    assert f"{folder} is on nfs4" in found.text
    mounts.write_text(f"server:/export / nfs rw 0 0\n/dev/sda1 {folder} ext4 rw 0 0\n")
    assert looked_at(folder, "sqlite:///x.db", files.sqlite, mounts=mounts)[1].verdict is OK
    assert looked_at(folder, "sqlite:///x.db", files.sqlite, mounts=folder / "none")[1].verdict is OK


# ------------------------------------------------------------------------------------------------------ the ledger
def test_a_ledger_of_another_layout_is_a_problem(folder: Path, database_url: str) -> None:
    assert [one.text for one in looked_at(folder, database_url, ledgers.ledger)] == ["There is none yet; the first run makes it"]
    ensure(engine_for(database_url))
    assert only(looked_at(folder, database_url, ledgers.ledger)).verdict is OK
    for layout, advice in ((1, "batchrun ledger upgrade"), (9, "Install the batchrun that made it")):
        with engine_for(database_url).begin() as connection:
            connection.execute(text(f"UPDATE batchrun_meta SET layout = {layout}"))
        found = only(looked_at(folder, database_url, ledgers.ledger))
        assert (found.verdict, found.advice.startswith(advice)) == (PROBLEM, True)
        assert looked_at(folder, database_url, ledgers.unfinished) == []


def nothing(session: Any, item: int) -> None: ...


def test_runs_that_nobody_goes_on_with_and_a_ledger_that_only_grows_are_warnings(folder: Path, database_url: str) -> None:
    run = run_parallel(nothing, range(3), database_url, name="one", workers=0, progress=False).run
    assert only(looked_at(folder, database_url, ledgers.unfinished)).text.startswith("0 going on, none left unfinished")
    change(database_url, "status = 'running', owner = 'elsewhere||1|1', heartbeat = heartbeat - 600, ended = NULL")
    found = only(looked_at(folder, database_url, ledgers.unfinished))
    assert found.verdict is WARNING
    assert found.text.startswith(f"Left unfinished: {run} of nothing: its owner is gone, silent for 10 min")
    change(database_url, "status = 'paused', heartbeat = heartbeat - 500000, started = started - 9000000, next_no = 2000000")
    assert "paused for 6 days" in only(looked_at(folder, database_url, ledgers.unfinished)).text
    found = only(looked_at(folder, database_url, ledgers.size))
    assert found.verdict is WARNING
    assert found.text.startswith("1 run with 2,000,000 chunks, the oldest 104 days old; nothing ever deletes them")
    assert only(looked_at(folder, database_url, ledgers.size, "[ledger]\nkeep_days = 90")).verdict is OK


def change(url: str, values: str) -> None:
    with engine_for(url).begin() as connection:
        connection.execute(text(f"UPDATE batchrun_run SET {values}"))


# ------------------------------------------------------------------------------------------------------ the project
JOB = "from batchrun import job\n@job{options}\ndef {name}(session, item): ...\n@{name}.items\ndef items(): return []\n"


def write_job(folder: Path, name: str, options: str = "") -> None:
    (folder / "jobs" / f"{name}.py").write_text(JOB.format(name=name, options=options))


def test_each_job_that_cannot_be_imported_is_a_problem_of_its_own(folder: Path) -> None:
    write_job(folder, "good")
    write_job(folder, "bad")
    (folder / "jobs" / "bad.py").write_text("import nowhere\n" + (folder / "jobs" / "bad.py").read_text())
    (folder / "jobs" / "worse.py").write_text("def (")
    found = looked_at(folder, "sqlite:///x.db", projects.jobs, "[jobs.godo]\nretries = 1")
    assert [(one.verdict, one.text.partition(":")[0]) for one in found] == [
        (PROBLEM, "jobs/worse.py"), (WARNING, str(folder / "config.toml")), (PROBLEM, "jobs/bad.py"), (OK, "1 can be imported"),
    ]  # fmt: skip
    assert "No module named 'nowhere'" in found[2].text


def test_schedules_that_are_not_in_the_crontab_are_a_warning(folder: Path) -> None:
    write_job(folder, "nightly", '(schedule="0 3 * * *")')
    write_job(folder, "off", '(schedule="0 3 * * *", enabled=False)')
    config = folder / "config.toml"
    line = f"0 3 * * * /usr/bin/batchrun --config {config} run nightly -q"
    for lines, verdict in (
        ((), WARNING),
        ((f"# {line}",), WARNING),
        ((line.replace("nightly", "other"),), WARNING),
        ((line,), OK),
    ):
        found = only(looked_at(folder, "sqlite:///x.db", projects.schedules, crontab=Crontab(lines)))
        assert found.verdict is verdict
        assert "nightly" in found.text
        assert "off" not in found.text
    assert not starts(line, "nightly", "/another/config.toml")


def test_crontab_is_asked_and_every_way_to_have_none_is_borne(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    assert read_crontab() == Crontab(error="there is no program crontab here")
    program = folder / "crontab"
    for script, wanted in (
        ("echo 'no crontab for you' >&2; exit 1", Crontab()),
        ("echo 'you may not' >&2; exit 1", Crontab(error="crontab -l failed: you may not")),
        ("echo '0 3 * * * true'", Crontab(("0 3 * * * true",))),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert read_crontab() == wanted


def test_old_and_untried_versions_are_told() -> None:
    assert only(programs.python(Subject(), running=(3, 10, 1))).verdict is PROBLEM
    assert only(programs.sqlalchemy(Subject(), installed="2.0.10")).verdict is PROBLEM
    assert only(programs.sqlalchemy(Subject(), installed="2.3.0b1")).verdict is WARNING
    assert only(programs.sqlalchemy(Subject())).verdict is OK


# ------------------------------------------------------------------------------------------------------ the command
def test_doctor_without_a_project_says_what_is_missing_and_ends_well(tmp_path: Path, batchrun: CommandLine) -> None:
    result = batchrun("doctor", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert "WARNING  config" in result.stdout
    assert "A worker was started by" in result.stdout
    assert result.stderr == "no problems, 1 warning.\n"
    assert list(tmp_path.iterdir()) == []


def test_doctor_lists_problems_and_ends_with_1_and_shows_no_password(folder: Path, pg_url: str, batchrun: CommandLine) -> None:
    (folder / "config.toml").write_text("[run]\nworkers = many\n")
    url = pg_url.replace("postgres@", "postgres:hunter2secret@", 1)
    for arguments in (("doctor", "--json"), ("--database-url", "postgresql://a:hunter2secret@127.0.0.1:1/x", "doctor")):
        result = batchrun(*arguments, *(("--database-url", url) if "--json" in arguments else ()), cwd=folder)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert "hunter2secret" not in result.stdout + result.stderr
        if "--json" in arguments:
            found = json.loads(result.stdout)
            assert (found["schema"], found["ok"]) == (1, False)
            status = {one["check"]: one["status"] for one in found["checks"]}
            assert (status["config"], status["database"], status["server"]) == ("problem", "ok", "ok")
            assert all(one["advice"] for one in found["checks"] if one["status"] in ("problem", "warning"))


def test_a_check_that_fails_by_itself_stops_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Subject) -> Iterator[Finding]:
        raise RuntimeError("oh no")

    monkeypatch.setattr("batchrun.checkup.examination.CHECKS", (broken, programs.sqlalchemy))
    with subject(folder, "sqlite:///x.db") as made:
        found = examine(made)
    assert [one.verdict for one in found] == [PROBLEM, OK]
    assert found[0].text == "This could not be looked at: RuntimeError: oh no"
