"""The fixtures keep their promises: otherwise no other test proves anything."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import text

from tests.postgres import LOCKED_PASSWORD, LOCKED_USER, Server, remove_leftovers
from tests.support import leaks
from tests.support.databases import Clones, engine_for
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


def test_each_url_reaches_a_database_that_is_empty(any_url: str) -> None:
    for _ in range(2):
        with engine_for(any_url).begin() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS one (n INTEGER)"))
            connection.execute(text("INSERT INTO one VALUES (1)"))
    with engine_for(any_url).connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM one")) == 2


def test_a_session_of_batchrun_that_stays_is_reported(clones: Clones, pg_url: str, pg_database: str) -> None:
    leaky = psycopg2.connect(pg_url, application_name="batchrun:4f7k2m9x:1:0:leaky")
    with contextlib.closing(leaky), pytest.raises(AssertionError, match="leaky"):
        clones.check_sessions(pg_database, timeout_s=0.1)
    clones.check_sessions(pg_database)


def test_a_child_that_stays_is_reported(own_postgres: Server) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with pytest.raises(AssertionError, match=str(child.pid)):
        leaks.check_processes([own_postgres.pid], timeout_s=0.1)
    child.communicate()
    leaks.check_processes([own_postgres.pid])


@pytest.mark.skipif(not leaks.SEES_ALL, reason="orphans are found by /proc, which is not here")
def test_an_orphan_is_reported(own_postgres: Server) -> None:
    endless = "[sys.executable, '-c', 'import signal; signal.pause()']"
    make_orphan = f"import subprocess, sys; print(subprocess.Popen({endless}, stdout=subprocess.DEVNULL).pid)"
    orphan = int(subprocess.run([sys.executable, "-c", make_orphan], stdout=subprocess.PIPE, check=True).stdout)
    with pytest.raises(AssertionError, match=str(orphan)):
        leaks.check_processes([own_postgres.pid], timeout_s=0.1)
    os.kill(orphan, signal.SIGKILL)
    leaks.check_processes([own_postgres.pid])


def test_a_worker_of_the_fork_server_is_no_helper(own_postgres: Server) -> None:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    worker = context.Process(target=input_from, args=(theirs,))
    worker.start()
    with pytest.raises(AssertionError, match=str(worker.pid)):
        leaks.check_processes([own_postgres.pid], timeout_s=0.1)
    ours.send("go")
    worker.join()
    leaks.check_processes([own_postgres.pid])


def input_from(pipe: Connection) -> None:
    pipe.recv()


@pytest.mark.parametrize("how", ["smart", "fast", "immediate", "kill"])
def test_the_server_comes_back_on_its_port_with_what_was_committed(own_postgres: Server, pg_url: str, how: str) -> None:
    with engine_for(pg_url).begin() as connection:
        connection.execute(text("CREATE TABLE kept AS SELECT 1 AS n"))
    own_postgres.kill() if how == "kill" else own_postgres.stop(how)
    assert own_postgres.pid is None
    own_postgres.start()
    with engine_for(pg_url).connect() as connection:
        assert connection.scalar(text("SELECT n FROM kept")) == 1


def test_one_role_must_give_its_password(own_postgres: Server, wrong_password_url: str) -> None:
    psycopg2.connect(own_postgres.url(user=LOCKED_USER, password=LOCKED_PASSWORD)).close()
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(wrong_password_url)


@pytest.mark.skipif(not leaks.SEES_ALL, reason="PDEATHSIG is Linux's; elsewhere the next start stops the server")
def test_the_server_dies_with_the_process_that_started_it_and_the_next_removes_its_folder() -> None:
    served = subprocess.Popen([sys.executable, "-m", "tests.postgres"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert served.stdout is not None
    url = served.stdout.readline().strip()
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW data_directory")
        (folder,) = cursor.fetchone() or ("",)
    served.kill()
    served.communicate()
    wait_until(lambda: not takes_connections(url), what="the server is gone")
    remove_leftovers()
    assert not Path(folder).parent.exists()


def takes_connections(url: str) -> bool:
    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError:
        return False
    return True
