"""When a worker has had enough, what its exit means, and what faulthandler says about it."""

from __future__ import annotations

import os
import signal
import sysconfig
from pathlib import Path

import pytest

from batchrun.config_layers import environment_layer
from batchrun.errors import ConfigError
from batchrun.execution import strategies
from batchrun.execution.deaths import OomWatch, advice, describe_exit, likely_cause
from batchrun.execution.places import Frame, shortened, task_frame
from batchrun.execution.recycling import Life, Limits, memory_reader
from batchrun.execution.stacks import parsed
from batchrun.jobs import job, job_of
from batchrun.options import RunOptions, memory_size, with_options

MB = 10**6


def test_a_worker_takes_what_still_fits_and_a_chunk_of_any_size_if_it_had_none() -> None:
    life = Life(Limits(items=10))
    assert life.fits(50)
    life.assigned = 8
    assert (life.fits(2), life.fits(3), life.is_full()) == (True, False, False)
    life.assigned = 10
    assert life.is_full()
    assert Life(Limits()).fits(10**9)


def test_the_baseline_is_the_most_of_the_first_three_orders() -> None:
    life = Life(Limits(growth=50 * MB))
    grew = [life.grew_too_much(size * MB) for size in (100, 180, 150, 230, 231)]
    assert grew == [False, False, False, False, True]
    assert "grew from 180 MB to 231 MB" in life.growth_text()
    assert not Life(Limits()).grew_too_much(10**12)


def test_memory_is_read_only_where_it_is_wanted() -> None:
    assert memory_reader(Limits())() == 0
    read = memory_reader(Limits(growth=1))
    before = read()
    held = bytearray(os.urandom(1) * 50 * MB)
    assert read() - before > 30 * MB
    assert held


@pytest.mark.parametrize(
    ("written", "meant"), [(1, 1), ("200MB", 200 * MB), ("1.5 GiB", 3 * 2**29), ("64kb", 64_000), ("10", 10), ("7B", 7)]
)
def test_a_size_is_bytes_or_a_number_with_a_unit(written: object, meant: int) -> None:
    assert memory_size(written) == meant


@pytest.mark.parametrize("wrong", [0, -1, True, 2.5, "", "MB", "5 parsecs", "0MB", "٣MB", [1]])
def test_what_is_no_size_is_refused_with_examples(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"max_worker_growth: .* is no size of memory; write bytes or .*'200MB' or '1GiB'"):
        with_options(RunOptions(), {"max_worker_growth": wrong})


def test_the_options_come_by_decorator_and_environment() -> None:
    @job(max_items_per_worker=100, max_worker_growth="1MB")
    def task(item: int) -> None: ...

    made = job_of(task)
    assert made is not None
    assert made.options == {"max_items_per_worker": 100, "max_worker_growth": MB}
    layer = environment_layer({"BATCHRUN_RUN_MAX_ITEMS_PER_WORKER": "7", "BATCHRUN_RUN_MAX_WORKER_GROWTH": "2MB"})
    assert layer.tables["run"] == {"max_items_per_worker": 7, "max_worker_growth": 2 * MB}
    unset = environment_layer({"BATCHRUN_RUN_MAX_ITEMS_PER_WORKER": "none", "BATCHRUN_RUN_MAX_WORKER_GROWTH": "none"})
    assert unset.tables["run"] == {"max_items_per_worker": None, "max_worker_growth": None}


@pytest.mark.parametrize("wrong", [0, -1, True, "5"])
def test_items_per_worker_are_a_whole_number(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"max_items_per_worker: .* is not a whole number from 1"):
        with_options(RunOptions(), {"max_items_per_worker": wrong})


# --------------------------------------------------------------------------------------------------------- deaths


@pytest.mark.parametrize(
    ("exitcode", "described", "cause"),
    [
        (0, "exited with code 0", "os._exit"),
        (3, "exited with code 3", "os._exit"),
        (-signal.SIGKILL, "was killed by SIGKILL", "often the out-of-memory killer"),
        (-signal.SIGSEGV, "was killed by SIGSEGV", "a crash in C code"),
        (-signal.SIGBUS, "was killed by SIGBUS", "a crash in C code"),
        (-signal.SIGILL, "was killed by SIGILL", "another processor"),
        (-signal.SIGFPE, "was killed by SIGFPE", "a crash in C code"),
        (-signal.SIGABRT, "was killed by SIGABRT", "abort()"),
        (-signal.SIGUSR1, "was killed by SIGUSR1", "somebody sent it"),
        (-250, "was killed by signal 250", "somebody sent it"),
        (None, "ended together with the fork server", ""),
    ],
)
def test_an_exit_is_described_with_its_likely_cause(exitcode: int | None, described: str, cause: str) -> None:
    assert describe_exit(exitcode) == described
    assert cause in likely_cause(exitcode)


def test_advice_fits_the_cause() -> None:
    assert "lower --workers" in advice(-signal.SIGKILL)
    assert "faulthandler" in advice(-signal.SIGSEGV)
    assert advice(0) == advice(None) == ""


@pytest.mark.parametrize(
    ("cgroup", "file", "text"),
    [
        ("0::/job.slice\n", "sys/fs/cgroup/job.slice/memory.events", "low 0\noom 4\noom_kill {}\noom_group_kill 0\n"),
        ("0::/\n", "sys/fs/cgroup/memory.events", "oom_kill {}\n"),
        ("4:cpu,memory:/a/b\n0::/\n", "sys/fs/cgroup/memory/a/b/memory.oom_control", "under_oom 0\noom_kill {}\n"),
        ("0::/\n", "proc/vmstat", "nr_free_pages 9\noom_kill {}\n"),
    ],
)
def test_the_out_of_memory_killer_is_certain_where_the_kernel_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, file: str, text: str
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    counter = tmp_path / file
    counter.parent.mkdir(parents=True, exist_ok=True)
    counter.write_text(text.format(5))
    watch = OomWatch(tmp_path)
    assert not watch.took_one()
    counter.write_text(text.format(7))
    assert [watch.took_one() for _ in range(3)] == [True, True, False]
    assert "count of victims rose" in likely_cause(-9, out_of_memory=True)


def test_without_a_counter_nothing_is_certain(tmp_path: Path) -> None:
    assert not OomWatch(tmp_path).took_one()


# --------------------------------------------------------------------------------------------------------- places

DUMP = """\
Thread 0x00007f00000000aa (most recent call first):
  File "/x/lib/waiting.py", line 5 in wait
  File "/home/me/jobs/mail.py", line 12 in task
  File "RUNNER", line 9 in run

Current thread 0x00007f00000000bb (most recent call first):
  File "/home/me/jobs/other.py", line 3 in other
"""


def test_a_dump_is_read_by_thread_outermost_first() -> None:
    found = parsed(DUMP)
    assert [frame.line for frame in found[0x7F00000000AA]] == [9, 12, 5]
    assert found[0x7F00000000BB] == [Frame("/home/me/jobs/other.py", 3, "other")]
    assert parsed("") == {}


def test_the_innermost_line_of_the_users_own_is_the_tasks() -> None:
    ours, library = strategies.__file__, os.path.join(sysconfig.get_path("stdlib"), "json", "encoder.py")  # noqa: PTH118
    mine = Frame("/home/me/jobs/mail.py", 12, "send")
    outer = [Frame("/home/me/script.py", 1, "<module>"), Frame(ours, 9, "run")]
    assert task_frame([*outer, mine, Frame(library, 5, "encode"), Frame("x/wait.pyx", 1, "wait")]) == mine
    assert task_frame([*outer, Frame(library, 5, "encode")]) == Frame(library, 5, "encode")
    assert task_frame(outer) is None


def test_a_statement_is_shown_on_one_line_and_cut() -> None:
    assert shortened("SELECT 1\n   FROM x") == "SELECT 1 FROM x"
    assert len(shortened("x" * 1000)) == 200
