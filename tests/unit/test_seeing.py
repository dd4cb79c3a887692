"""What people see of a run: shares of time, rates, tables on narrow terminals and in pipes, colours, JSON."""

from __future__ import annotations

import io
import itertools
import json
import re
from dataclasses import replace

import pytest

from batchrun.cli.output import Output
from batchrun.errors import ConfigError
from batchrun.insight import Insight, Lane
from batchrun.ledger.troubles import Wanted
from batchrun.reporting import jsonout, overview, tables
from batchrun.reporting.figures import PARTS, Overview, left_s, rate_of, spent_by
from batchrun.reporting.text import percent_text, time_text
from batchrun.runs import Counts, FailureGroup, FailureRecord, RunStatus
from tests.support import insights

RUNNING = Counts(planned=4_000, done=3_000, failed=100)


def running(**given: object) -> Overview:
    record = insights.record(RunStatus.RUNNING, RUNNING, total=6_200, elapsed_s=100.0, ended=None)
    return Overview(replace(record, **given), insights.insight())  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- numbers
def test_the_shares_of_time_add_up_to_100() -> None:
    shares = spent_by(insights.insight().lanes).shares
    assert list(shares) == list(PARTS)
    assert sum(shares.values()) == pytest.approx(100)
    assert sum(spent_by([]).shares.values()) == 0


def test_the_waiting_of_a_worker_is_what_is_left_of_its_time() -> None:
    lane = Lane(0, began_s=10, ended_s=20, start_up_s=1, task_s=4, commit_s=2)
    assert spent_by([lane]).shares == {"start-up": 10, "waiting": 30, "task": 40, "commit": 20}


def test_the_rate_of_a_running_run_is_that_of_the_last_half_minute() -> None:
    seen = Insight(elapsed_s=100.2)
    seen.step_of(100.2)
    seen.done[:140] = [50] * 140
    seen.done[140:200] = [5] * 60
    record = running().record
    assert rate_of(record, seen) == pytest.approx(10)
    assert rate_of(record, None) == pytest.approx(31)
    assert rate_of(replace(record, status=RunStatus.FAILED), seen) == pytest.approx(31)
    assert left_s(record, 10.0) == pytest.approx(310)
    assert left_s(replace(record, total=None), 10.0) is None


def test_a_run_expects_what_its_source_told_or_its_limit_and_at_its_end_what_it_planned() -> None:
    record = running().record
    assert record.expected == 6_200
    assert replace(record, options={"limit": 5_000}).expected == 5_000
    assert replace(record, total=2_000).expected == 4_000  # items were added since
    assert replace(record, total=None).expected is None
    through = replace(record, status=RunStatus.FAILED, counts=Counts(planned=7, done=6, failed=1))
    assert (through.expected, through.percent) == (7, 100.0)
    assert replace(through, counts=Counts()).percent == 100.0


def test_100_percent_is_said_only_of_all() -> None:
    assert [percent_text(one) for one in (0, 0.01, 62.4, 99.4, 99.99, 100)] == [
        "0 %",
        "0.1 %",
        "62 %",
        "99.4 %",
        "99.9 %",
        "100 %",
    ]


def test_short_times_have_units_of_their_own() -> None:
    assert [time_text(one) for one in (0.0000314, 0.0031, 0.42, 1.26, 75)] == ["31 µs", "3.1 ms", "420 ms", "1.3 s", "1 min 15 s"]


# ----------------------------------------------------------------------------------------------------------- show
def test_show_says_how_far_a_running_run_is_and_when_it_will_be_through() -> None:
    assert overview.progress_line(running()).startswith("50 % of 6,200 items, ")
    assert re.search(r"[\d.]+ items/s, ETA \d+ s$", overview.progress_line(running()))
    assert overview.progress_line(running(total=None)).startswith("3,100 items so far, ")
    assert overview.progress_line(running(status=RunStatus.INTERRUPTED)) == "50 % of 6,200 items"
    assert overview.progress_line(running(status=RunStatus.DONE)) == ""


def test_show_has_the_options_given_percentiles_shares_slowest_errors_and_notes() -> None:
    shown = overview.run_text(insights.overview(12))
    assert "Options     workers=4 max_failures=5%" in shown
    assert re.search(r"^Per item    p50 \d+ ms, p95 \d+ ms, p99 \d+ ms$", shown, re.MULTILINE)
    assert re.search(r"^all +[\d.]+ % +[\d.]+ % +[\d.]+ % +[\d.]+ % +12,066$", shown, re.MULTILINE)
    assert "1 (pid 4101)" in shown
    assert "... and 4 more: batchrun report shows each" in shown
    assert shown.index("order 1000") < shown.index("order 1004")
    assert re.search(r"^ +148  psycopg2.errors.UniqueViolation  23505 +148 failed", shown, re.MULTILINE)
    assert "12 s  Worker 1 (pid 4101) was killed by SIGKILL" in shown
    assert "batchrun retry 4f7k2m9xab" in shown


def test_show_without_an_insight_shows_what_the_ledger_knows() -> None:
    shown = overview.run_text(Overview(insights.record()))
    assert "11,400 planned = " in shown
    assert "Where the time went" not in shown


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_of_show_is_longer_than_the_terminal_is_wide(width: int) -> None:
    shown = overview.run_text(insights.overview(), width=width)
    lines = shown.partition("\n\nOn the way")[0].splitlines()  # sentences and commands stay whole, to be copied
    assert max(map(len, lines)) <= width
    assert "UniqueViolation" in shown.replace("\n", "")


def test_colours_and_controls_are_there_only_on_a_terminal() -> None:
    for width in (None, 80):
        assert "\x1b" not in overview.run_text(insights.overview(), width=width)
    coloured = overview.run_text(insights.overview(), width=80, colour=True)
    assert "\x1b[31m" in coloured
    assert "\\x1b[31m" in coloured  # the message's own is escaped all the same


def test_no_color_and_a_pipe_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert not Output().has_colours()
    monkeypatch.setattr("sys.stdout", Terminal())
    assert Output().has_colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Output().has_colours()


def test_the_json_of_show_has_the_keys_of_runs_and_more() -> None:
    seen = insights.overview()
    found = json.loads(jsonout.dumped(jsonout.overview_json(seen)))
    assert set(found) >= set(jsonout.record_json(seen.record)) >= set(jsonout.RUN_KEYS)
    assert set(found["insight"]["share"]) == {"start_up", "waiting", "task", "commit"}
    assert set(found["insight"]["latency_s"]) == {"p50", "p95", "p99"}
    assert found["slowest"][0]["item"] == "order 1000"
    assert found["errors"][0]["sqlstate"] == "23505"
    assert found["percent"] == 100.0
    bare = jsonout.overview_json(Overview(insights.record(RunStatus.HALTED, total=None)))
    assert (bare["insight"], bare["percent"], bare["slowest"]) == (None, None, [])


# --------------------------------------------------------------------------------------------------- runs, failures
def test_a_terminal_that_is_narrower_than_the_table_gets_a_block_for_each_row() -> None:
    shown = tables.runs_table([insights.record()], 40)
    assert shown.splitlines()[:3] == ["RUN          4f7k2m9xab", "JOB          refresh_totals", "STATUS       failed"]
    assert max(map(len, shown.splitlines())) <= 40


def test_runs_shows_percent_and_speed_where_there_is_room() -> None:
    head, row = tables.runs_table([running().record], 120).splitlines()
    assert head.split()[-2:] == ["TOOK", "ITEMS/S"]
    assert row.split()[3:6] == ["3,000/6,200", "50", "%"]


def failure(number: int, name: str = "ValueError") -> FailureRecord:
    return FailureRecord(number, "failed", 1, 0, name, None, "m" * (number % 7))


def test_a_million_failures_are_laid_out_a_page_at_a_time() -> None:
    taken = 0

    def endless() -> itertools.count[int]:
        return itertools.count()

    def watched() -> object:
        nonlocal taken
        for number in endless():
            taken += 1
            yield failure(number)

    pages = tables.failures_table(watched(), None)  # type: ignore[arg-type]
    assert next(pages) == "\nValueError"
    first, second = next(pages).splitlines(), next(pages).splitlines()
    assert taken <= 2 * tables.PAGE + 2
    assert first[0].split() == list(tables.ITEM_COLUMNS)
    assert (len(first), len(second)) == (tables.PAGE + 1, tables.PAGE)
    assert first[-1].index("failed") == second[0].index("failed")


GROUPS = [
    FailureGroup("psycopg2.errors.UniqueViolation", "23505", 9, 9, 0, 0, ""),
    FailureGroup("sqlalchemy.exc.OperationalError", None, 2, 2, 0, 0, ""),
]


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (Wanted(), 2),
        (Wanted(either=("UniqueViolation",)), 1),
        (Wanted(either=("psycopg2.errors.UniqueViolation", "OperationalError")), 2),
        (Wanted(either=("23505",)), 1),
        (Wanted(either=("errors.UniqueViolation", "uniqueviolation", "2350")), 0),
        (Wanted(classes=("UniqueViolation",), sqlstates=("23505",)), 1),
        (Wanted(classes=("OperationalError",), sqlstates=("23505",)), 0),
    ],
)
def test_a_class_goes_by_its_whole_name_or_its_last_part_and_both_kinds_of_words_must_fit(wanted: Wanted, taken: int) -> None:
    assert sum(map(wanted.takes, GROUPS)) == taken


def test_a_word_that_fits_nothing_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError) as refused:
        Wanted(either=("23505", "Timeout")).refuse_unmatched(GROUPS, "4f7k2m9xab")
    assert str(refused.value) == (
        "--only: no item of run 4f7k2m9xab that went wrong has 'Timeout'. There are: "
        "psycopg2.errors.UniqueViolation [23505] (9), sqlalchemy.exc.OperationalError (2)."
    )
    with pytest.raises(ConfigError, match="None went wrong"):
        Wanted(classes=("Timeout",)).refuse_unmatched([], "4f7k2m9xab")
    with pytest.raises(ConfigError, match="has both"):
        Wanted(classes=("OperationalError",), sqlstates=("23505",)).refuse_unmatched(GROUPS, "4f7k2m9xab")


def test_what_is_laid_out_quickly_looks_as_rich_would_make_it() -> None:
    rows = [("a", "12", ""), ("a longer text", "3", "x y")]
    quick = tables.table(("NAME", "N", "REST"), rows, width=None, right=("N",))
    with_rich = tables.table(("NAME", "N", "REST"), [*rows, ("ä", "1", "")], width=None, right=("N",))
    assert quick.splitlines() == with_rich.splitlines()[:-1]
