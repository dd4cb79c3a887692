"""Reporting: what progress, summaries, tables and --json show, and that nothing they do can fail a run."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
import sys
import threading
from typing import Any

import pytest

from batchrun.events import Event, ItemTrouble, Notice, Progressed, RunEnded, RunOpened, TaskOutput
from batchrun.items import ItemError, Outcome, OutcomeStatus
from batchrun.reporting import jsonout, overview, tables, text
from batchrun.reporting.figures import Overview
from batchrun.reporting.pace import Pace
from batchrun.reporting.progress import SHOWN_TROUBLES, Progress, api_observer, mode_for
from batchrun.reporting.streams import GuardedStream, printable, printable_lines
from batchrun.runs import Counts, FailureRecord, Report, RunRecord, RunStatus

ESC = "\x1b"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """A stream whose reader is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(total: int | None = 4000, **given: Any) -> RunOpened:
    counts = given.pop("counts", Counts())
    return RunOpened(
        "4f7k2m9xab", "refresh", counts, total, 4, given.pop("guarantee", "exactly-once"), given.pop("resumed", False)
    )


def trouble(item: object, message: str = "no such thing", attempts: int = 1) -> ItemTrouble:
    return ItemTrouble(Outcome(item, OutcomeStatus.FAILED, None, ItemError("ValueError", message), attempts))


def report(status: RunStatus = RunStatus.DONE, counts: Counts | None = None, **given: Any) -> Report:
    counts = counts or Counts(planned=10, done=10)
    return Report("4f7k2m9xab", None, "refresh", status, counts, given.pop("elapsed", 2.0), 4, "exactly-once", **given)


def shown(*events: Event, mode: str = "plain", **given: Any) -> str:
    stream = io.StringIO()
    progress = Progress(mode, stream, **given)
    for event in events:
        progress(event)
    progress.close()
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------------ progress
def test_without_a_terminal_a_line_comes_every_ten_seconds_from_the_tenth() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress("plain", stream, clock=clock)
    counts = Counts(planned=4000)
    progress(opened())
    lines = []
    for second in range(31):
        clock.now, counts.done = second, 35 * second
        progress(Progressed(counts, 4000))
        lines.append(stream.getvalue().count("\n") - 1)
    assert [lines[9], lines[10], lines[19], lines[20], lines[29], lines[30]] == [0, 1, 1, 2, 2, 3]


def test_a_plain_line_says_done_failed_retried_rate_and_eta() -> None:
    counts = Counts(planned=200, done=120, failed=2, retries=3)
    assert text.progress_text(counts, 4000, 35.12, 110.4) == (
        "120 of 4,000 done, 2 failed, 3 retried, 35.1 items/s, ETA 1 min 50 s"
    )
    assert text.progress_text(counts, None, None, None) == "120 done, 2 failed, 3 retried"


def test_the_bar_shows_rate_eta_done_failed_and_retried() -> None:
    clock, stream = Clock(), Terminal()
    progress = Progress("bar", stream, clock=clock)
    progress(opened(100))
    for second in range(4):
        clock.now = second
        progress(Progressed(Counts(planned=100, done=10 * second, failed=1, retries=2), 100))
    progress.close()
    last = stream.getvalue().split("\r")[-1]
    assert "31%|" in last
    assert "30/100 done, 1 failed, 2 retried, 10.0/s, ETA 6.9 s" in last


def test_a_bar_without_a_known_total_shows_what_it_can() -> None:
    clock, stream = Clock(), Terminal()
    progress = Progress("bar", stream, clock=clock)
    progress(opened(None))
    clock.now = 1.0
    progress(Progressed(Counts(planned=50, done=7), None))
    progress.close()
    assert "7 done, 0 failed, 0 retried, 00:00 so far" in stream.getvalue()
    assert "%" not in stream.getvalue()


def test_drawing_starts_no_thread_and_no_lock_between_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    tqdm_lock: Any = importlib.import_module("tqdm.std").TqdmDefaultWriteLock
    monkeypatch.delattr(tqdm_lock, "mp_lock", raising=False)
    before = threading.active_count()
    shown(opened(), Progressed(Counts(planned=5, done=5), 5), Notice("WARNING", "careful"), mode="bar")
    assert threading.active_count() == before
    assert not hasattr(tqdm_lock, "mp_lock")


def test_what_a_task_prints_stands_above_the_bar_with_its_control_characters_escaped() -> None:
    written = shown(opened(), TaskOutput(f"red {ESC}[31m\rover\nsecond line"), mode="bar")
    assert "red \\x1b[31m\\rover\nsecond line\n" in written
    assert ESC not in written


def test_a_failed_item_is_one_line_with_key_class_and_message() -> None:
    written = shown(trouble(17, f"two\nlines {ESC}[2J", attempts=4))
    assert written == "Item 17 failed after 4 attempts: ValueError: two\\nlines \\x1b[2J\n"


def test_after_twenty_failed_items_it_says_once_where_the_others_are() -> None:
    written = shown(opened(), *(trouble(number) for number in range(100)), quiet=True)
    lines = written.splitlines()
    assert len(lines) == SHOWN_TROUBLES + 1
    assert lines[-1].endswith("batchrun failures 4f7k2m9xab")


def test_quiet_shows_only_warnings_errors_and_failed_items() -> None:
    written = shown(
        opened(),
        TaskOutput("a print"),
        TaskOutput("chatter", "INFO"),
        TaskOutput("it broke", "ERROR"),
        Notice("INFO", "by the way"),
        Notice("WARNING", "a worker died"),
        trouble("k"),
        RunEnded(report()),
        mode=mode_for("auto", Terminal(), quiet=True),
        quiet=True,
    )
    assert written.splitlines() == ["Error: it broke", "Warning: a worker died", "Item 'k' failed: ValueError: no such thing"]


def test_auto_means_a_bar_only_on_a_terminal_that_can_move_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert mode_for("auto", Terminal()) == "bar"
    assert mode_for("auto", io.StringIO()) == "plain"
    assert mode_for("bar", io.StringIO()) == "bar"
    monkeypatch.setenv("TERM", "dumb")
    assert mode_for("auto", Terminal()) == "plain"


@pytest.mark.parametrize("stream", [None, Broken()], ids=["closed", "broken pipe"])
@pytest.mark.parametrize("mode", ["bar", "plain"])
def test_a_stderr_that_is_gone_fails_nothing(stream: io.StringIO | None, mode: str) -> None:
    progress = Progress(mode, GuardedStream(stream))
    for event in (opened(), Notice("WARNING", "w"), Progressed(Counts(planned=1, done=1), 1), trouble(1), RunEnded(report())):
        progress(event)


def test_an_item_whose_repr_raises_is_named_by_its_class() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert text.item_text(Odd()) == "<Odd whose repr raised RuntimeError>"
    assert len(text.item_text("x" * 1_000_000)) == text.SHOWN_ITEM


def test_a_resumed_run_says_what_was_settled_before() -> None:
    written = shown(opened(counts=Counts(planned=1500, done=1234), resumed=True))
    assert written == "Run 4f7k2m9xab of refresh goes on: 4,000 items, 1,234 of them settled before, 4 workers\n"


def test_at_least_once_is_said_when_the_run_opens() -> None:
    assert "at-least-once" in shown(opened(guarantee="at-least-once"))


def test_the_api_shows_a_bar_on_a_terminal_always_or_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert api_observer(None) is None
    assert api_observer(False) is None
    assert api_observer(True) is not None
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert api_observer(None) is not None


def test_the_pace_leaves_out_the_start_of_the_workers() -> None:
    pace = Pace(0)
    rates = []
    for now, settled in [(0.0, 0), (5.0, 10), (6.0, 20)]:
        pace.note(now, settled)
        rates.append(pace.rate)
    assert rates == [None, None, 10.0]
    assert pace.left_s(120) == 10.0
    assert pace.left_s(None) is None


def test_the_pace_is_that_of_the_last_half_minute() -> None:
    pace = Pace(0)
    for second in range(100):
        pace.note(float(second), second if second < 50 else 50 + (second - 50) * 3)
    assert pace.rate == pytest.approx(3.0)


# ----------------------------------------------------------------------------------------------------- sentences
def test_control_characters_are_shown_escaped() -> None:
    assert printable(f"a{ESC}[1m\r\n\x00\x9b\u202e\ud800\tb") == "a\\x1b[1m\\r\\n\\x00\\x9b\\u202e\\ud800\tb"
    assert printable_lines("a\nb\r") == "a\nb\\r"


COUNTS = Counts(planned=4000, done=3990, failed=2, skipped=3, quarantined=1, unknown=1, retries=5)


def test_the_summary_is_a_sum_that_adds_up() -> None:
    line = text.sum_text(COUNTS)
    assert line == "4,000 planned = 3,990 done + 2 failed + 3 skipped + 1 quarantined + 1 unknown + 3 pending"
    planned, *parts = (int(number.replace(",", "")) for number in re.findall(r"[\d,]+", line))
    assert planned == sum(parts)


def test_an_empty_run_says_0_items() -> None:
    assert "0 items" in "\n".join(text.summary(report(counts=Counts())))


@pytest.mark.parametrize(
    ("status", "counts", "commands"),
    [
        (RunStatus.DONE, Counts(planned=1, done=1), []),
        (RunStatus.FAILED, Counts(planned=1, failed=1), ["failures", "retry"]),
        (RunStatus.INTERRUPTED, Counts(planned=1), ["resume"]),
        (RunStatus.HALTED, Counts(planned=1, failed=1), ["resume", "failures", "retry"]),
    ],
)
def test_the_summary_names_the_commands_that_go_on(status: RunStatus, counts: Counts, commands: list[str]) -> None:
    lines = text.summary(report(status, counts), command="batchrun --profile night")
    found = [line.partition("batchrun --profile night ")[2] for line in lines if "batchrun" in line]
    assert found == [f"{command} 4f7k2m9xab" for command in commands]


def test_the_speed_of_a_resumed_run_is_that_of_this_call() -> None:
    resumed = report(counts=Counts(planned=110, done=110), elapsed=2.0)
    assert "5.0 items/s" in "\n".join(text.summary(resumed, settled_before=100))
    assert jsonout.report_json(resumed, settled_before=100)["items_per_s"] == 5.0


# ---------------------------------------------------------------------------------------------------------- JSON
def record(**given: Any) -> RunRecord:
    return RunRecord("4f7k2m9xab", "refresh", None, RunStatus.DONE, Counts(planned=3, done=3), "exactly-once", **given)


def test_the_json_of_a_run_has_exactly_these_keys() -> None:
    counts = "planned done failed skipped quarantined unknown pending retries"
    keys = f"schema run job status {counts} elapsed_s items_per_s workers guarantee"
    assert list(jsonout.report_json(report())) == keys.split()
    assert tuple(keys.split()) == jsonout.RUN_KEYS
    assert set(jsonout.record_json(record())) >= set(jsonout.RUN_KEYS)
    assert jsonout.runs_json([record()])["runs"][0]["run"] == "4f7k2m9xab"
    assert jsonout.runs_json([]) == {"schema": 1, "runs": []}


def test_json_stays_json_whatever_the_items_are() -> None:
    odd = FailureRecord([float("nan"), b"\xff", {"k": "\ud800"}], "failed", 1, 0, "E", None, f"{ESC}\n")
    assert json.loads(jsonout.dumped(jsonout.failure_json(odd)))["item"] == ["nan", "ff", {"k": "\ud800"}]


# -------------------------------------------------------------------------------------------------------- tables
@pytest.mark.parametrize("begin", ["=", "+", "-", "@"])
def test_a_csv_cell_that_a_spreadsheet_would_run_begins_with_an_apostrophe(begin: str) -> None:
    failure = FailureRecord(f"{begin}1+1", "failed", 1, 0, "ValueError", None, f'{begin}cmd|"x"\nsecond')
    lines = list(tables.failures_csv([failure]))
    item, *_, message = next(csv.reader(lines[1:]))
    assert item == f"'{begin}1+1"
    assert message == f'\'{begin}cmd|"x"\\nsecond'
    assert len(lines) == 2


def test_ids_and_statuses_are_never_cut_whatever_the_width() -> None:
    records = [
        record(),
        RunRecord("zzzzzzzzzz", "a_job_with_quite_a_long_name", "named", RunStatus.INTERRUPTED, COUNTS, "exactly-once"),
    ]
    for width in (20, 80, 200, None):
        shown = tables.runs_table(records, width)
        assert "4f7k2m9xab" in shown
        assert "zzzzzzzzzz" in shown
        assert "interrupted" in shown
        assert "3,990/4,000" in shown


def test_a_table_in_a_pipe_has_one_line_a_row() -> None:
    failure = FailureRecord("k" * 60, "failed", 1, 0, "package.module.SomeError", "23505", "m" * 250)
    lines = "\n".join(tables.failures_table([failure] * 3, None)).splitlines()
    assert lines[:2] == ["", "package.module.SomeError"]
    assert len(lines) == 6
    assert all("m" * 250 in line for line in lines[3:])


def test_at_80_columns_no_line_of_a_table_is_longer() -> None:
    failure = FailureRecord("k" * 60, "failed", 1, 0, "package.module.SomeError", "23505", "message " * 30)
    shown = "\n".join(tables.failures_table([failure], 80))
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.replace("\n", "").count("message") >= 20


def test_a_table_shows_markup_as_it_is() -> None:
    assert "[bold]x[/bold]" in tables.table(("A",), [("[bold]x[/bold]",)], width=80)


def test_show_says_the_guarantee_and_hides_secrets() -> None:
    shown = overview.run_text(
        Overview(record(params={"token": "s3cret"}, note="s3cret")), lambda text: text.replace("s3cret", "***")
    )
    assert "exactly-once" in shown
    assert "s3cret" not in shown
