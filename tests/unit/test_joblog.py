"""The job log has GNU parallel's columns, goes on in a file that exists, and never fails a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchrun.errors import ConfigError
from batchrun.events import ItemTimed, ItemTrouble, RunOpened
from batchrun.items import Outcome, OutcomeStatus
from batchrun.reporting.joblog import HEADER, Joblog
from batchrun.runs import Counts

OPENED = RunOpened("r1", "send", Counts(), None, 1, "exactly-once", False)


def write(path: Path, *events: ItemTimed | ItemTrouble) -> list[str]:
    log = Joblog(path, lambda text: text.replace("hunter2", "***"), pytest.fail)
    for event in (OPENED, *events):
        log(event)
    log.close()
    return path.read_text().splitlines(keepends=True)


def test_each_attempt_has_a_line_in_the_columns_of_gnu_parallel(tmp_path: Path) -> None:
    lines = write(
        tmp_path / "log",
        ItemTimed(7, "done", 1700000000.5, 0.25, 0, 1),
        ItemTimed("a\tb\nhunter2", "retry", 1700000001.0, 1.0, 1, 1),
        ItemTimed(8, "failed", 1700000001.0, 1.0, 1, 2),
        ItemTrouble(Outcome(9, OutcomeStatus.QUARANTINED, None, None, 3)),
        ItemTrouble(Outcome(8, OutcomeStatus.FAILED, None, None, 2)),  # its line is there already
    )
    assert lines == [
        HEADER,
        "1\t:\t1700000000.500\t     0.250\t0\t0\t0\t0\tsend 7\n",
        "2\t:\t1700000001.000\t     1.000\t0\t0\t75\t0\tsend a\\tb\\n***\n",
        "3\t:\t1700000001.000\t     1.000\t0\t0\t1\t0\tsend 8\n",
        "4\t:\t0.000\t     0.000\t0\t0\t1\t9\tsend 9\n",
    ]


def test_a_log_that_exists_is_gone_on_with(tmp_path: Path) -> None:
    write(tmp_path / "log", ItemTimed(1, "done", 0.0, 0.0, 0, 1))
    lines = write(tmp_path / "log", ItemTimed(2, "skipped", 0.0, 0.0, 0, 1))
    assert [line.split("\t")[0] for line in lines] == ["Seq", "1", "2"]
    assert lines.count(HEADER) == 1


def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--joblog: .*no/log cannot be written: No such file or directory"):
        Joblog(tmp_path / "no" / "log", str, pytest.fail)


def test_a_full_disk_ends_the_log_and_not_the_run() -> None:
    full = Path("/dev/full")
    if not full.exists():
        return  # of Linux; elsewhere there is no such device
    told: list[str] = []
    log = Joblog(full, str, told.append)
    log(OPENED)
    log(ItemTimed(1, "done", 0.0, 0.0, 0, 1))
    log.close()
    log(ItemTimed(2, "done", 0.0, 0.0, 0, 1))
    assert told == ["The job log /dev/full cannot be written any more: No space left on device. The run goes on."]
