"""run_parallel as people run it: in scripts, from standard input, under Ctrl-C, and twice at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batchrun import run_parallel
from batchrun.errors import AlreadyRunning
from tests.support import leaks, scripts
from tests.support.effects import effect, effects, make, once, scalar
from tests.support.waiting import wait_until

SIX_LINES = """
    import sys
    from batchrun import run_parallel
    def square(item):
        return item * item + offset
    offset = 1
    print(run_parallel(square, range(5), workers=2, start_method=sys.argv[1], results=True).results)
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_a_six_line_script_without_a_main_guard_runs(tmp_path: Path, method: str) -> None:
    assert scripts.run(tmp_path, SIX_LINES, method) == (0, "[1, 2, 5, 10, 17]\n", "")


def test_control_a_plain_pool_in_a_script_without_a_main_guard_does_not(tmp_path: Path) -> None:
    naive = """
        import multiprocessing
        def square(item):
            return item * item
        multiprocessing.set_start_method("spawn")
        print(multiprocessing.Pool(1).map(square, range(5)))
    """
    process = scripts.start(tmp_path, naive)
    assert process.stderr is not None
    told = ""
    while "freeze_support" not in told and "context has already been set" not in told:
        told += process.stderr.readline() or pytest.fail(told)
    process.kill()
    assert process.communicate()[0] == ""


def test_classes_closures_and_constants_of_main_travel(tmp_path: Path) -> None:
    source = """
        from dataclasses import dataclass
        from batchrun import run_parallel, Retry
        @dataclass
        class Point:
            x: int
        class Own(Exception):
            pass
        LIMIT = 3
        def helper(item):
            return Point(item * LIMIT)
        def task(item, ctx):
            if item == 2 and ctx.attempt == 1:
                raise Own
            return helper(item)
        report = run_parallel(task, range(4), workers=1, results=True, retry_on=(Own,))
        print(report.results == [Point(0), Point(3), Point(6), Point(9)], report.retries)
    """
    assert scripts.run(tmp_path, source) == (0, "True 1\n", "")


def test_a_script_from_standard_input_runs(tmp_path: Path) -> None:
    source = (
        "from batchrun import run_parallel\nprint(run_parallel(lambda item: item + 1, [1, 2], workers=1, results=True).results)"
    )
    environment = {**os.environ, "PYTHONPATH": str(scripts.ROOT)}
    found = subprocess.run(
        [sys.executable, "-"], input=source, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (found.returncode, found.stdout) == (0, "[2, 3]\n"), found.stderr


def test_a_mapped_class_of_main_is_refused_by_name_before_anything_starts(tmp_path: Path) -> None:
    source = """
        from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
        from batchrun import run_parallel, BatchrunError
        class Base(DeclarativeBase):
            pass
        class Customer(Base):
            __tablename__ = "customers"
            id: Mapped[int] = mapped_column(primary_key=True)
        def task(session, item):
            session.get(Customer, item)
        try:
            run_parallel(task, [1], "sqlite:///x.db", workers=1)
        except BatchrunError as error:
            print(error.exit_code, error)
    """
    code, out, err = scripts.run(tmp_path, source)
    assert (code, err) == (0, "")
    assert out.startswith("4 The task task uses the mapped class 'Customer', which is defined in __main__.")
    assert "Move the class to a module" in out
    assert not (tmp_path / "x.db").exists()


SLOW = """
    import os, sys, time
    from pathlib import Path
    from batchrun import run_parallel
    from tests.support.effects import effect
    def task(session, item):
        effect(session, item)
        Path("pids").open("a").write(f"{os.getpid()}\\n")
        time.sleep(pause)  # work
    pause = float(sys.argv[2])
    try:
        run_parallel(task, range(200), sys.argv[1], workers=2, name="slow")
    except KeyboardInterrupt:
        print("interrupted")
        raise
"""


@pytest.mark.parametrize(
    ("database_url", "to_group"), [("sqlite", True), ("postgresql", True), ("postgresql", False)], indirect=["database_url"]
)
def test_ctrl_c_is_raised_again_after_a_clean_stop_and_no_worker_is_left(
    database_url: str, tmp_path: Path, to_group: bool
) -> None:
    make(database_url)
    process = scripts.start(tmp_path, SLOW, database_url, "0.03")
    wait_until(lambda: len(effects(database_url)) >= 10, 30)
    if to_group:  # as a terminal does: the workers get it as well
        for pid in set((tmp_path / "pids").read_text().split()):
            os.kill(int(pid), signal.SIGINT)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=15)
    assert process.returncode == -signal.SIGINT
    assert out == "interrupted\n"
    assert "KeyboardInterrupt" in err
    leaks.check_processes(server_pids(database_url), timeout_s=2)
    begun = (tmp_path / "pids").read_text().split()
    assert len(begun) == len(effects(database_url)) < 200  # what was running was finished
    assert scalar(database_url, "SELECT status FROM batchrun_run") == "interrupted"
    assert scripts.run(tmp_path, SLOW, database_url, "0")[0] == 0
    assert effects(database_url) == once(range(200))


def server_pids(url: str) -> list[int]:
    """The test server is a child of ours, and no leftover."""
    from tests.conftest import _servers

    return [pid for server in _servers if (pid := getattr(server, "pid", None))]


def test_control_a_plain_pool_that_is_interrupted_does_not_know_what_it_did(tmp_path: Path) -> None:
    naive = """
        import multiprocessing, time
        from pathlib import Path
        def task(item):
            with Path("log").open("a") as log:
                log.write(f"{item}\\n")
            time.sleep(0.02)  # work
        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(pool.map(task, range(300), chunksize=1))
    """
    process = scripts.start(tmp_path, naive)
    log = tmp_path / "log"
    wait_until(lambda: log.exists() and len(log.read_text().split()) > 10, 30)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert out == ""
    first = len(log.read_text().split())
    assert first < 300
    assert scripts.run(tmp_path, naive)[0] == 0
    assert len(log.read_text().split()) == 300 + first  # it began again, and did twice what was done


BLOCKED = """
    import sys, time
    from pathlib import Path
    from batchrun import run_parallel
    from tests.support.effects import effect
    def task(session, item):
        effect(session, item)
        Path("begun").touch()
        while not Path("go").exists():
            time.sleep(0.01)  # work
    print(run_parallel(task, range(3), sys.argv[1], workers=1, name="one").done)
"""


@pytest.mark.parametrize("any_url", ["sqlite", "psycopg3"], indirect=True)  # psycopg2: tests/chaos, the scenario cron_overlap
def test_a_name_that_runs_in_another_process_is_already_running(any_url: str, tmp_path: Path) -> None:
    make(any_url)
    process = scripts.start(tmp_path, BLOCKED, any_url)
    wait_until((tmp_path / "begun").exists, 30)
    with pytest.raises(AlreadyRunning, match=rf"already running: run \w+ belongs to process {process.pid} on ") as caught:
        run_parallel(effect, range(3), any_url, workers=1, name="one")
    assert caught.value.exit_code == 75
    (tmp_path / "go").touch()
    assert process.communicate(timeout=30) == ("3\n", "")
    assert effects(any_url) == once(range(3))


def test_a_run_whose_owner_was_killed_goes_on_at_once(psycopg_url: str, tmp_path: Path) -> None:
    """By another program, and by psycopg 3. The rest: test_crash_points.py; tests/chaos, the scenario ``parent``."""
    make(psycopg_url)
    process = scripts.start(tmp_path, SLOW, psycopg_url, "0.03")
    wait_until(lambda: len(effects(psycopg_url)) >= 5, 30)
    process.kill()
    process.communicate()

    report = run_parallel(scripts_task, range(200), psycopg_url, workers=2, name="slow", accept_changes=True)
    assert (report.done, report.pending) == (200, 0)
    assert effects(psycopg_url) == once(range(200))


def scripts_task(session: object, item: int) -> None:
    effect(session, item)  # type: ignore[arg-type]
