"""The fork server of a command is a copy of it, made when the job is imported and nothing is open: workers import nothing."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import create_engine

from batchrun.cli.output import LineStream
from batchrun.execution import preloading, worker
from batchrun.execution.preloading import TITLES
from tests.support import scripts
from tests.support.databases import engine_for
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a new interpreter is the fork server")
ROOT = Path(__file__).parents[2]
JOB = """
import os, threading, time
from pathlib import Path
from batchrun import job

HERE = Path(__file__).parents[1]
with open(HERE / "imports", "a") as file:
    file.write(f"{os.getpid()}\\n")


def note(name, text=""):
    with open(HERE / name, "a") as file:
        file.write(f"{text or os.getpid()}\\n")


def pause_until_there_are(count):
    while len(set((HERE / "workers").read_text().split())) < count:
        time.sleep(0.01)  # the work of this task
"""
PLAIN = """
@job(transaction="none")
def work(item):
    note("workers")
    pause_until_there_are(2)
"""
END = """
@work.items
def items():
    return range(4)
"""


@dataclass
class Project:
    """A folder with one job."""

    folder: Path
    database: str = ""

    def start(self, task: str, *, top: str = "", **options: Any) -> subprocess.Popen[str]:
        (self.folder / "jobs").mkdir()
        (self.folder / "config.toml").write_text(f"[database]\nurl = {json.dumps(self.database)}\n" if self.database else "")
        (self.folder / "jobs" / "one.py").write_text(JOB + top + task + END)
        command = [sys.executable, "-m", "batchrun", "run", "work", "-j", "2", "--json", "--progress", "none"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, **options,
        )  # fmt: skip

    def run(self, task: str, *, top: str = "") -> dict[str, Any]:
        """Carry the job out; returns its report."""
        process = self.start(task, top=top)
        out, err = process.communicate(timeout=60)
        assert out, err
        report: dict[str, Any] = json.loads(out)
        return report

    def noted(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_workers_import_neither_the_job_nor_what_they_need(project: Project) -> None:
    task = """
    @job(transaction="none")
    def work(item):
        import sys
        note("workers")
        note("servers", Path(f"/proc/{os.getppid()}/cmdline").read_text().rstrip("\\0"))
        pause_until_there_are(2)
    """.replace("\n    ", "\n")
    assert project.run(task)["done"] == 4
    assert len(project.noted("imports")) == 1
    assert len(set(project.noted("workers"))) == 2
    assert set(project.noted("servers")) == {TITLES[0].decode()}


@pytest.mark.parametrize("url", ["sqlite", "postgresql+psycopg2", "postgresql+psycopg"])
def test_a_worker_imports_nothing_at_all_until_its_first_item_is_through(project: Project, pg_url: str, url: str) -> None:
    """What it did import, each worker would import again: name it in preloading.MODULES or work._DRIVERS."""
    top = """
import sys
PARENT = os.getpid()
def tell(event, details):
    if event == "import" and os.getpid() != PARENT:
        note("late", details[0])
sys.addaudithook(tell)
"""
    task = """
@job(timeout="30s")
def work(session, item):
    session.connection()
    note("workers")
"""
    if url != "sqlite":
        project.database = engine_for(pg_url).url.set(drivername=url).render_as_string(hide_password=False)
    assert project.run(task, top=top)["done"] == 4
    assert project.noted("late") == []
    assert project.noted("workers")


def test_an_engine_that_is_made_but_not_used_is_no_hindrance(project: Project, pg_url: str) -> None:
    top = f"from sqlalchemy import create_engine\nENGINE = create_engine({engine_url(pg_url)!r})\n"
    assert project.run(PLAIN, top=top)["done"] == 4
    assert len(project.noted("imports")) == 1


def engine_url(url: str) -> str:
    return engine_for(url).url.render_as_string(hide_password=False)


LEFT_OPEN: dict[str, str] = {
    "a thread": "threading.Thread(target=threading.Event().wait, daemon=True).start()\n",
    "a file": 'FILE = open(HERE / "held", "w")\n',
    "a connection": "import socket\nENDS = socket.socketpair()\n",
    "a pool's connection": "from sqlalchemy import create_engine\nENGINE = create_engine(URL)\nENGINE.connect().close()\n",
}


@pytest.mark.parametrize("what", LEFT_OPEN)
def test_a_job_whose_import_leaves_something_open_is_imported_by_its_workers(project: Project, pg_url: str, what: str) -> None:
    """A fork would copy it: two processes that talk over one socket, or a lock that a thread held."""
    top = f"URL = {engine_url(pg_url)!r}\n{LEFT_OPEN[what]}"
    assert project.run(PLAIN, top=top)["done"] == 4
    imports, workers = project.noted("imports"), set(project.noted("workers"))
    assert len(workers) == 2
    assert workers < set(imports)


def test_a_worker_that_takes_a_dead_ones_place_imports_nothing_either(project: Project) -> None:
    task = PLAIN.replace("(2)", "(2 if item == 0 else 3)\n    if item == 0:\n        os._exit(1)")
    report = project.run(task)
    assert (report["done"], report["unknown"]) == (3, 1)
    assert len(set(project.noted("workers"))) == 3
    assert len(project.noted("imports")) == 1


def test_a_killed_fork_server_is_replaced_by_one_whose_workers_import_the_job(project: Project) -> None:
    task = PLAIN.replace('transaction="none"', 'transaction="none", idempotent=True').replace("(2)", "(4)")
    process = project.start(task)
    wait_until(lambda: len(set(project.noted("workers"))) == 2, 30)
    (server,) = (pid for pid in children(process.pid) if command_of(pid) == TITLES[0].decode())
    os.kill(server, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert json.loads(out)["done"] == 4, err
    assert len(project.noted("imports")) == 3


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")


def test_a_signal_to_the_whole_group_ends_the_run_after_the_running_items(project: Project) -> None:
    """As a service manager stops a unit. The fork server's end would be that of its workers."""
    task = (
        PLAIN
        + """
    while not (HERE / "go").exists():
        time.sleep(0.01)  # the work of this task
    note("ended", item)
"""
    )
    process = project.start(task, start_new_session=True)
    wait_until(lambda: len(set(project.noted("workers"))) == 2, 30)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.stderr is not None
    assert "SIGTERM" in (process.stderr.readline() + process.stderr.readline())
    (project.folder / "go").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    report = json.loads(out)
    assert report["unknown"] == 0
    assert len(project.noted("ended")) == report["done"] >= 2


def test_a_worker_holds_nothing_that_the_command_has_open(project: Project) -> None:
    """Least of all its standard output: whoever reads that waits for its end."""
    task = (
        PLAIN
        + """
    for number in os.listdir("/proc/self/fd"):
        try:
            note("open", os.fstat(int(number)).st_ino)
        except OSError:
            pass
"""
    )
    process = project.start(task)
    assert process.stdout is not None
    pipe = os.fstat(process.stdout.fileno()).st_ino
    process.communicate(timeout=60)
    assert len(project.noted("open")) > 8
    assert str(pipe) not in project.noted("open")


def test_a_task_may_start_workers_of_its_own(project: Project) -> None:
    """The copy has the lock of the standard library's fork server as it was: held."""
    task = PLAIN.replace(
        "    note", "    from batchrun import run_parallel\n    run_parallel(abs, [1], workers=1, progress=False)\n    note", 1
    )
    assert project.run(task)["done"] == 4


def test_a_log_handler_that_the_job_made_writes_to_what_the_worker_has() -> None:
    context = multiprocessing.get_context("fork")
    said: list[str] = []
    stream = LineStream(said.append)
    ours, theirs = context.Pipe()
    child = context.Process(target=write_in_a_copy, args=(stream, theirs.send))
    child.start()
    assert ours.recv() == "a line\n"
    child.join()
    stream.write("another\n")
    assert said == ["another"]


def write_in_a_copy(stream: LineStream, send: Callable[[str], None]) -> None:
    sys.stderr = io.StringIO()
    stream.write("a line\n")
    send(sys.stderr.getvalue())


def test_numpy_draws_other_numbers_in_each_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[bool] = []
    monkeypatch.setitem(sys.modules, "numpy.random", SimpleNamespace(seed=lambda: seeded.append(True)))
    worker.have_chance_of_its_own()
    assert seeded == [True]


def test_a_url_names_the_modules_of_its_driver() -> None:
    """Those that the server imports for all workers; whatever a factory makes, they are there."""
    from batchrun.database.engines import spec_of
    from batchrun.execution.work import drivers_of

    assert drivers_of([spec_of("sqlite:///x.db"), None]) == ["sqlalchemy.dialects.sqlite", "sqlite3"]
    assert "psycopg2.extras" in drivers_of([spec_of("postgresql+psycopg2://h/d")])
    assert "psycopg" in drivers_of([spec_of("postgresql+psycopg://h/d")])
    made = drivers_of([spec_of(lambda: create_engine("sqlite://"))])
    assert {"sqlalchemy.dialects.sqlite", "psycopg2.extras", "psycopg"} <= set(made)


def test_where_a_process_cannot_be_waited_for_without_reaping_it_the_server_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS before Python 3.13: multiprocessing itself wants to find it dead."""
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
    monkeypatch.setattr(preloading._any_server, "_forkserver_pid", os.getpid())
    monkeypatch.delattr(os, "waitid")
    preloading.end()
    assert killed == []


ANOTHER_DRIVER = """
import sys
from multiprocessing import forkserver
from batchrun import run_parallel

def server_of_a_run(*database):
    task = (lambda session, item: None) if database else abs
    assert run_parallel(task, [1, 2], *database, workers=1, progress=False).ok
    return forkserver._forkserver._forkserver_pid

url = sys.argv[1]
third = url.replace("postgresql:", "postgresql+psycopg:", 1)
first, again, other, back, none = map(lambda given: server_of_a_run(*given), [(url,), (url,), (third,), (url,), ()])
print(first == again, first == other, other == back == none)
"""


def test_a_fork_server_that_lacks_the_driver_of_a_run_is_replaced_once(tmp_path: Path, pg_url: str) -> None:
    """Else each worker of that run would import the driver for itself."""
    code, out, err = scripts.run(tmp_path, ANOTHER_DRIVER, pg_url)
    assert (code, out.split()) == (0, ["True", "False", "True"]), err
