"""No secret leaves: by no error, report, output or ledger column, however it is spelled there.

Secrets are drawn at random, any characters; whatever could show one is searched for each spelling of it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import Engine, MetaData, create_engine, select, text
from sqlalchemy.orm import Session

from batchrun import BatchrunError, Skip, job, run_parallel
from tests.support import scripts
from tests.support.commands import CommandLine
from tests.support.databases import engine_for

SECRETS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=6, max_size=30).map(
    lambda drawn: f"Zq{drawn}9x"
) | st.sampled_from(
    ["p@ss/w%rd'\" x", "a.*+?[b](c){1}", "100%%25%2F..", "tab\there\nline", "Pässwörd→🔑x", "\\n\\\\'\"end", "://u:p@h/x?y=z"]
)
FUZZED = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=set(Phase) - {Phase.shrink, Phase.explain},
)  # fmt: skip
"""An example takes a fifth of a second; to look for the shortest one that fails would outlast the limit of a test."""


def check_hidden(secret: str, *shown: str) -> None:
    """As it is, as URLs, JSON and repr() write it."""
    ways = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), repr(secret)[1:-1], ascii(secret)[1:-1]}
    ways |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    for told in shown:
        assert [way for way in ways if way in told] == []


def ledger_texts(engine: Engine) -> str:
    """Everything that stands in any table."""
    metadata = MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        rows = [tuple(row) for table in metadata.sorted_tables for row in connection.execute(select(table))]
    assert rows
    return "\n".join(str(value) for row in rows for value in row)


def failing(say: Callable[[str], None]) -> Any:
    """A job with a secret parameter whose task comes to grief with it, in every way."""

    @job(retries=0)
    def careless(session: Session, item: int, *, token: SecretStr) -> None:
        secret = token.get_secret_value()
        say(secret)
        if item == 0:
            raise ValueError(f"no access with {secret}")
        if item == 1:
            session.execute(text("SELECT * FROM missing WHERE token = :t"), {"t": secret})
        if item == 2:
            raise Skip(f"no use with {secret!r}")
        if item == 3:
            raise KeyError(json.dumps({"url": f"https://api/?key={quote(secret, safe='')}"}))
        raise RuntimeError("x" * 9_990 + secret)

    return careless


@FUZZED
@given(SECRETS)
def test_a_secret_parameter_is_in_no_report_and_no_ledger(sqlite_url: str, secret: str) -> None:
    name = uuid.uuid4().hex
    report = run_parallel(
        failing(lambda _: None), range(5), sqlite_url, params={"token": secret}, workers=0, name=name, progress=False
    )
    assert (report.failed, report.skipped) == (4, 1)
    told = [part for one in report.failures if one.error for part in (one.error.message, one.error.traceback)]
    check_hidden(secret, repr(report), *told, ledger_texts(engine_for(sqlite_url)))


def test_a_secret_where_the_note_of_a_failing_source_is_cut_is_not_left_by_half(sqlite_url: str) -> None:
    secret = "Zq-" + "secret" * 5

    @job
    def reads(session: Session, item: int, *, token: SecretStr) -> None:
        """Never gets that far."""

    for before in (440, 460, 470):  # the note is cut at 500 characters
        source_text = "x" * before + secret

        def items(said: str = source_text) -> Any:
            yield 1
            raise OSError(said)

        with pytest.raises(BatchrunError):
            run_parallel(reads, items(), sqlite_url, params={"token": secret}, workers=0, name=f"n{before}", progress=False)
    told = ledger_texts(engine_for(sqlite_url))
    assert "the source raised OSError" in told
    check_hidden("Zq-secret", told)


def test_control_a_parameter_that_is_no_secret_is_in_the_ledger(sqlite_url: str) -> None:
    def careless(session: Session, item: int, *, token: str) -> None:
        raise ValueError(f"no access with {token}")

    run_parallel(careless, [0], sqlite_url, params={"token": "Zq-plain-9x"}, workers=0, name="one", progress=False)
    with pytest.raises(AssertionError):
        check_hidden("Zq-plain-9x", ledger_texts(engine_for(sqlite_url)))


def refusals(secret: str) -> list[Any]:
    """Databases that cannot be reached, with a secret in every place that can hold one."""
    there = "127.0.0.1:1/db"
    return [
        f"postgresql://app:{quote(secret, safe='')}@{there}",
        f"postgresql+psycopg://app:{quote(secret, safe='')}@{there}",
        f"postgresql://{there}?user=app&password={quote(secret, safe='')}",
        f"postgresql://app:{secret}@{there}",  # as people write it who do not know that it must be encoded
        create_engine(f"postgresql+psycopg2://app@{there}", connect_args={"password": secret}),
        lambda: create_engine(f"postgresql+psycopg2://app:{quote(secret, safe='')}@{there}"),
    ]


@FUZZED
@given(SECRETS)
@example("Zq000,0?9x")  # might be a list of hosts
def test_a_password_is_in_no_error_of_a_database_that_cannot_be_reached(secret: str) -> None:
    for database in refusals(secret):
        with pytest.raises(BatchrunError) as caught:
            run_parallel(lambda session, item: None, range(2), database, workers=0, name="x", progress=False)
        error = caught.value
        check_hidden(secret, str(error), repr(error), "".join(getattr(error, "__notes__", [])))
        chain = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""
        check_hidden(secret, chain)


def test_half_a_password_is_not_shown_as_a_host_or_database() -> None:
    for password in ("first@second", "first@sec/ond", "fi/rst@second"):
        with pytest.raises(BatchrunError, match="%40") as caught:
            run_parallel(
                lambda session, item: None, [1], f"postgresql://app:{password}@127.0.0.1:1/db", workers=0, progress=False
            )
        assert "sec" not in str(caught.value)


@FUZZED
@given(SECRETS)
def test_what_a_source_or_an_items_function_says_is_hidden(sqlite_url: str, secret: str) -> None:
    def items() -> Any:
        yield 1
        raise ValueError(f"no answer for {secret!r}")

    def task(session: Session, item: int, *, token: SecretStr) -> None: ...

    name = uuid.uuid4().hex
    with pytest.raises(BatchrunError) as caught:
        run_parallel(task, items(), sqlite_url, params={"token": secret}, workers=0, name=name, progress=False)
    error = caught.value
    check_hidden(secret, str(error), "".join(traceback.format_exception(error)), ledger_texts(engine_for(sqlite_url)))


# ------------------------------------------------------------------------------------------ the command line
PROJECT = """
from pydantic import SecretStr
from sqlalchemy import text
from batchrun import job

@job(retries=0, workers=1)
def careless(session, item: int, *, token: SecretStr):
    secret = token.get_secret_value()
    print("printed", secret)
    if item:
        raise ValueError(f"no access with {secret!r}")
    session.execute(text("SELECT * FROM missing WHERE t = :t"), {"t": secret})

@careless.items
def numbers():
    return range(2)
"""


def as_process(folder: Path, *arguments: str, environ: dict[str, str]) -> tuple[int, str]:
    """Everything that it writes, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "batchrun", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(scripts.ROOT), **environ}, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_nothing_that_the_command_line_writes_has_a_secret(tmp_path: Path, batchrun: CommandLine) -> None:
    secret = "p@ss/w%rd'\"é \\x.*+?"
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "careless.py").write_text(PROJECT)
    (tmp_path / "config.toml").write_text('[database]\nurl = "sqlite:///x.db"\n[jobs.careless]\ntoken = "${TOKEN}"\n')
    (tmp_path / "config.toml").chmod(0o644)
    environ = {"TOKEN": secret}
    code, told = as_process(tmp_path, "run", "careless", "--json", environ=environ)
    assert code == 1, told
    assert "Warning" not in told  # what stands in the file is only the variable's name
    assert "no access with" in told
    assert "printed ***" in told
    check_hidden(secret, told)
    for command in (["show", "--json"], ["failures", "--format", "jsonl"], ["config"], ["show", "--debug"]):
        shown = batchrun(*command, cwd=tmp_path, **environ)
        check_hidden(secret, shown.stdout, shown.stderr)
    check_hidden(secret, ledger_texts(create_engine(f"sqlite:///{tmp_path / 'x.db'}")))
    (tmp_path / "the_url").write_text(f"postgresql://app:{quote(secret, safe='')}@127.0.0.1:1/db")
    (tmp_path / "the_url").chmod(0o644)
    (tmp_path / "config.toml").write_text('[database]\nurl_file = "the_url"\n[jobs.careless]\ntoken = "${TOKEN}"\n')
    refused = batchrun("run", "careless", "-q", "--debug", cwd=tmp_path, **environ)
    told = refused.stdout + refused.stderr
    assert refused.returncode == 6, told
    assert told.count("chmod 600") == 1  # also with -q
    check_hidden(secret, told)


# ------------------------------------------------------------------------------------------ child processes
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_nothing_secret_is_in_argv_or_environment_of_child_processes(pg_url: str, method: str) -> None:
    def seen(session: Session, item: int, *, token: SecretStr) -> str:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                for name in ("cmdline", "environ"):
                    try:
                        found.append((entry / name).read_bytes().decode(errors="replace"))
                    except OSError:
                        continue
        assert any("multiprocessing" in one for one in found)
        return "\n".join(found)

    url = engine_for(pg_url).url.set(password="Zq-password-9x").render_as_string(hide_password=False)
    report = run_parallel(
        seen, [1], url, params={"token": "Zq-token-9x"}, workers=1, progress=False, results=True, start_method=method
    )
    assert report.results, report.failures
    assert re.findall("Zq-(?:password|token)-9x", report.results[0]) == []
