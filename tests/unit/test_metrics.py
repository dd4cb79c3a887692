"""The textfile for Prometheus: what is kept, what is replaced, and what it is refused for."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from batchrun.reporting.metrics import METRICS, write_metrics

END, SUCCESS, CODE = "batchrun_last_end_timestamp_seconds", "batchrun_last_success_timestamp_seconds", "batchrun_last_exit_code"


def samples(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def test_the_file_is_in_prometheus_text_format(tmp_path: Path) -> None:
    path = tmp_path / "batchrun.prom"
    write_metrics(path, "refresh", {END: 1795741384.3719, CODE: 1.0}, {"done": 4, "failed": 1})
    assert path.read_text() == (
        f"# HELP {END} {METRICS[END]}\n# TYPE {END} gauge\n"
        f'{END}{{job="refresh"}} 1795741384.372\n'
        f"# HELP {CODE} {METRICS[CODE]}\n# TYPE {CODE} gauge\n"
        f'{CODE}{{job="refresh"}} 1\n'
        f"# HELP batchrun_last_items {METRICS['batchrun_last_items']}\n# TYPE batchrun_last_items gauge\n"
        'batchrun_last_items{job="refresh",outcome="done"} 4\n'
        'batchrun_last_items{job="refresh",outcome="failed"} 1\n'
    )


def test_a_failure_keeps_the_time_of_the_last_success(tmp_path: Path) -> None:
    path = tmp_path / "batchrun.prom"
    write_metrics(path, "refresh", {SUCCESS: 10.0, CODE: 0.0}, {})
    write_metrics(path, "refresh", {CODE: 6.0}, {})
    assert samples(path) == [f'{SUCCESS}{{job="refresh"}} 10', f'{CODE}{{job="refresh"}} 6']


def test_jobs_that_end_at_once_do_not_overwrite_each_other(tmp_path: Path) -> None:
    path = tmp_path / "batchrun.prom"
    with ThreadPoolExecutor(8) as threads:
        for number in range(40):
            threads.submit(write_metrics, path, f"job_{number}", {SUCCESS: float(number)}, {})
    assert sorted(samples(path)) == sorted(f'{SUCCESS}{{job="job_{number}"}} {number}' for number in range(40))
    assert list(tmp_path.iterdir()) == [path]


def test_each_job_may_have_a_file_of_its_own(tmp_path: Path) -> None:
    for job in ("one", "two"):
        write_metrics(tmp_path / "batchrun-{job}.prom", job, {CODE: 0.0}, {})
    assert samples(tmp_path / "batchrun-two.prom") == [f'{CODE}{{job="two"}} 0']


def test_others_can_read_the_file_as_the_umask_says(tmp_path: Path) -> None:
    path = tmp_path / "batchrun.prom"
    before = os.umask(0o022)
    try:
        write_metrics(path, "refresh", {CODE: 0.0}, {})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "apt.prom"
    path.write_text('# HELP x\napt_upgrades_pending{origin="x"} 3\n')
    with pytest.raises(ValueError, match="'apt_upgrades_pending', which is none of batchrun's metrics; name a file of its own"):
        write_metrics(path, "refresh", {CODE: 0.0}, {})
    assert "apt_upgrades_pending" in path.read_text()


def test_a_job_that_is_not_there_makes_no_series(tmp_path: Path) -> None:
    path = tmp_path / "batchrun.prom"
    write_metrics(path, "refresh", {CODE: 0.0}, {})
    write_metrics(path, "refrehs", {CODE: 4.0}, {}, only_known=True)
    write_metrics(path, "refresh", {CODE: 4.0}, {}, only_known=True)
    assert samples(path) == [f'{CODE}{{job="refresh"}} 4']
