"""Looking at runs in a real ledger: counts in one statement, errors by class, where items stand, retries of some, --watch."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, insert, update

from batchrun.cli.calling import Call
from batchrun.cli.output import Output
from batchrun.cli.watching import watch_run
from batchrun.codec import dump_items
from batchrun.errors import ConfigError
from batchrun.ledger import schema
from batchrun.ledger.owner import Owner
from batchrun.ledger.reading import Reading
from batchrun.ledger.schema import Tables
from batchrun.ledger.standing import standing
from batchrun.ledger.troubles import Wanted
from batchrun.runs import Counts, RunStatus
from tests.support import insights
from tests.support.commands import CommandLine

RUN = "4f7k2m9xab"
OTHER = "zzzzzzzzzz"
UNIQUE = "psycopg2.errors.UniqueViolation"


@pytest.fixture
def pg_url(kept_url: str) -> str:
    """One database for all tests of this module; each begins with an empty ledger."""
    return kept_url


@dataclass
class Ledger:
    """A ledger with rows that no runner wrote."""

    engine: Engine
    tables: Tables

    @property
    def reading(self) -> Reading:
        return Reading(self.engine, self.tables)

    def run(self, run: str = RUN, *, started: float = 1000.0, **given: Any) -> None:
        known = {
            "id": run, "job": "count", "status": "failed", "token": "t", "epoch": 1, "heartbeat": 2000.0, "owner": "",
            "next_no": 3,
            "fingerprint": "{}", "sealed": True, "params": "{}", "options": "{}", "guarantee": "exactly-once", "workers": 2,
            "total": 12, "started": started, "ended": 1010.0, "elapsed": 10.0, "note": "",
        }  # fmt: skip
        self.put(self.tables.run, {**known, **given})

    def chunk(self, no: int, size: int, pos: int, run: str = RUN, **given: Any) -> None:
        known = {"run": run, "no": no, "epoch": 1, "size": size, "pos": pos, "skipped": 0, "deaths": 0, "open": pos < size}
        self.put(self.tables.chunk, {**known, "first": None, "last": None, "frontier": None, **given})

    def item(
        self, no: int, pos: int, item: Any, state: str, kind: str = "ValueError", code: str | None = None, **given: Any
    ) -> None:
        known = {"run": RUN, "epoch": 1, "payload": dump_items([item]), "attempts": 1, "base": 0, "deaths": 0}
        self.put(
            self.tables.item,
            {**known, "no": no, "pos": pos, "state": state, "class": kind, "sqlstate": code, "message": f"item {item}", **given},
        )

    def put(self, table: Any, row: dict[str, Any]) -> None:
        with self.engine.begin() as connection:
            connection.execute(insert(table), row)

    def filled(self) -> Ledger:
        """Twelve items in three chunks; five with rows of their own."""
        self.run()
        self.chunk(0, 5, 5, first="0", last="4")
        self.chunk(1, 5, 5, skipped=1, first="5", last="9")
        self.chunk(2, 2, 1)
        self.put(self.tables.payload, {"run": RUN, "no": 2, "items": dump_items(["a", ("b", 1)])})
        self.item(0, 1, 1, "failed")
        self.item(0, 3, 3, "failed", UNIQUE, "23505", attempts=4)
        self.item(1, 0, 5, "quarantined", "batchrun.WorkerDied", deaths=3)
        self.item(1, 2, 7, "unknown", UNIQUE, "23505")
        self.item(1, 4, 9, "done", attempts=2)
        return self


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    """An empty one."""
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg2://"))
    tables = schema.ensure(engine)
    with engine.begin() as connection:
        for table in tables.metadata.sorted_tables:
            if table is not tables.meta:
                connection.execute(table.delete())
    yield Ledger(engine, tables)
    engine.dispose()


# -------------------------------------------------------------------------------------------------------- listings
def test_the_counts_of_all_runs_of_a_listing_come_in_one_statement(ledger: Ledger) -> None:
    ledger.filled().run(OTHER, started=3000.0, status="done")
    ledger.chunk(0, 3, 3, OTHER)
    said: list[str] = []
    event.listen(ledger.engine, "before_cursor_execute", lambda *given: said.append(given[2]))
    found = {record.id: record for record in ledger.reading.runs()}
    assert len(said) == 2  # the runs, and all their sums
    assert list(found) == [OTHER, RUN]
    assert found[OTHER].counts == Counts(planned=3, done=3)
    counts = Counts(planned=12, done=6, failed=2, skipped=1, quarantined=1, unknown=1, retries=4)
    assert found[RUN].counts == counts == ledger.reading.counts(RUN)
    assert found[RUN].counts.pending == 1
    assert found[RUN].total == 12


def test_runs_are_listed_by_job_and_by_the_status_they_are_shown_with(ledger: Ledger) -> None:
    for number, status in enumerate(("done", "failed", "running", "interrupted", "failed")):
        ledger.run(
            f"run{number}aaaaaa", started=float(number), status=status, job="other" if number == 4 else "count", ended=None
        )

    def listed(**given: Any) -> str:
        return "".join(record.id[3] for record in ledger.reading.runs(**given))

    assert listed() == "43210"
    assert listed(job="count") == "3210"
    assert listed(statuses=[RunStatus.FAILED]) == "41"
    assert listed(statuses=[RunStatus.FAILED], job="count") == "1"
    assert listed(statuses=[RunStatus.INTERRUPTED]) == "32"  # the owner of the second is gone
    assert listed(statuses=[RunStatus.RUNNING]) == ""
    assert listed(statuses=[RunStatus.INTERRUPTED, RunStatus.FAILED], limit=2) == "43"


# ----------------------------------------------------------------------------------------------------------- errors
def test_errors_are_counted_by_class_and_sqlstate_the_most_frequent_first(ledger: Ledger) -> None:
    groups = ledger.filled().reading.trouble_groups(RUN)
    assert [(one.name, one.items, one.failed, one.quarantined, one.unknown) for one in groups] == [
        (f"{UNIQUE} [23505]", 2, 1, 0, 1),
        ("ValueError", 1, 1, 0, 0),
        ("batchrun.WorkerDied", 1, 0, 1, 0),
    ]


def test_items_that_went_wrong_are_read_by_class_or_in_the_order_they_were_cut(ledger: Ledger) -> None:
    reading = ledger.filled().reading

    def items(**given: Any) -> list[Any]:
        return [failure.item for failure in reading.troubled(RUN, **given)]

    assert items() == [1, 3, 5, 7]
    by_class = items(by_class=True)
    assert sorted(by_class) == [1, 3, 5, 7]
    assert by_class.index(7) == by_class.index(3) + 1  # databases order classes differently, but keep each together
    assert items(limit=2) == [1, 3]
    assert items(wanted=Wanted(sqlstates=("23505",))) == [3, 7]
    assert items(wanted=Wanted(classes=("WorkerDied",))) == [5]
    assert items(wanted=Wanted(classes=("workerdied",))) == []


def test_a_retry_of_some_errors_leaves_the_others_as_they_are(ledger: Ledger) -> None:
    owner = Owner(ledger.engine, ledger.filled().tables, RUN)
    owner.epoch = 1
    assert owner.requeue(("failed", "quarantined", "unknown"), Wanted(either=("23505",))) == 2
    assert [failure.item for failure in ledger.reading.troubled(RUN)] == [1, 5]
    assert sorted(due.item for due in ledger.reading.due(RUN, 10)) == [3, 7]
    assert owner.requeue(("failed", "quarantined", "unknown")) == 2


# -------------------------------------------------------------------------------------------------- where items stand
@pytest.mark.parametrize(
    ("key", "state", "said"),
    [
        ("1", "failed", "failed, after 1 attempt"),
        ("3", "failed", "failed, after 4 attempts"),
        ("5", "quarantined", "quarantined, after 1 attempt and 3 deaths of its worker"),
        ("9", "done", "done, after 2 attempts"),
        ("4", "done", "done"),
        ("2", "done", "done, if the source has it: it lies between 0 and 4, the ends of a closed chunk"),
        ("6", "done", "done; or skipped, as 1 of its chunk were, if the source has it: it lies between 5 and 9"),
        ("a", "done", "done"),
        ('["b", 1]', "pending", "it is pending"),
        ("('b', 1)", "pending", "it is pending"),
        ("10", "not cut", "it is in no chunk that was cut so far"),
        ("{", "not cut", "it is in no chunk that was cut so far"),
    ],
)
def test_show_says_where_an_item_stands(ledger: Ledger, key: str, state: str, said: str) -> None:
    found = standing(ledger.filled().reading, RUN, key)
    assert (found.state, found.said[: len(said)]) == (state, said)


# ------------------------------------------------------------------------------------------------------------- watch
class Screen(io.StringIO):
    """Stdout, which may be a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def watched(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, steps: list[Callable[[], object]], *, terminal: bool) -> str:
    """What ``show --watch`` writes when these things happen, a second after each other."""
    screen, now = Screen(terminal=terminal), iter(range(1000))
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    happening = iter(steps)
    call = Call(Output())
    assert watch_run(call, ledger.reading, RUN, wait=lambda _: next(happening)(), clock=lambda: float(next(now))) == 0
    return screen.getvalue()


def settle(ledger: Ledger, pos: int) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(update(ledger.tables.chunk).values(pos=pos))


def end(ledger: Ledger) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(update(ledger.tables.run).values(status="done"))


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def alive(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A run of 1,000 items whose owner lives."""
    ledger.run(status="running", ended=None, total=1000)
    ledger.chunk(0, 1000, 0)
    monkeypatch.setattr(Reading, "is_alive", lambda self, stored: stored.status is RunStatus.RUNNING)
    return ledger


def test_without_a_terminal_a_watched_run_is_a_line_every_ten_seconds_and_its_end(
    alive: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Callable[[], object]] = [lambda n=n: settle(alive, 10 * n) for n in range(30)]  # type: ignore[misc]
    shown = watched(alive, monkeypatch, [*steps, lambda: end(alive)], terminal=False)
    lines = [line for line in shown.splitlines() if line.startswith(f"Run {RUN}: ")]
    assert 2 <= len(lines) <= 16
    assert lines[0] == f"Run {RUN}: 0 of 1,000 done, 0 failed, 0 retried"
    assert " items/s, ETA " in lines[-1]
    assert "Status      done" in shown
    assert "\x1b" not in shown


def test_on_a_terminal_it_is_drawn_again_and_its_end_stays(alive: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = watched(alive, monkeypatch, [lambda: settle(alive, 500), lambda: end(alive)], terminal=True)
    assert "50 % of 1,000 items" in shown
    assert "\x1b[?25h" in shown  # the cursor is there again
    assert "done" in shown.rpartition("Status")[2]


def test_ctrl_c_ends_the_watching_and_leaves_what_was_seen(alive: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = watched(alive, monkeypatch, [lambda: settle(alive, 500), interrupt], terminal=True)
    assert "\x1b[?25h" in shown
    assert "running" in shown.rpartition("Status")[2]
    assert "Traceback" not in shown


# ------------------------------------------------------------------------------------------------------ the commands
JOBS = '''
"""Jobs of the tests."""
from batchrun import job

class PriceMissing(Exception):
    """No price."""

@job(retries=0)
def price(session, item: int) -> None:
    """Price every item."""
    if item == 3:
        raise PriceMissing("<script>alert(1)</script>")
    if item > 7:
        raise ValueError(f"item {item} is too large")

@price.items
def items():
    return range(10)
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text("[run]\nworkers = 0\n")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "pricing.py").write_text(JOBS)
    return tmp_path


def test_from_a_run_to_its_failures_a_retry_of_some_and_a_report(project: Path, batchrun: CommandLine) -> None:
    assert batchrun("run", "price", "-q", cwd=project).returncode == 1
    shown = batchrun("failures", cwd=project).stdout
    assert [line.split()[:2] for line in shown.splitlines()[1:3]] == [["2", "ValueError"], ["1", "jobs.pricing.PriceMissing"]]
    one = batchrun("failures", "--class", "ValueError", "--limit", "1", cwd=project)
    assert one.stdout.splitlines()[-1].split() == ["8", "failed", "1", "-", "item", "8", "is", "too", "large"]
    assert one.stderr == "... and 1 more; a higher --limit shows them.\n"
    lines = batchrun("failures", "--format", "jsonl", "--class", "PriceMissing", cwd=project).stdout.splitlines()
    assert [json.loads(line)["item"] for line in lines] == [3]
    for command in (["retry", "last", "--only", "Nope"], ["failures", "--sqlstate", "23505"]):
        refused = batchrun(*command, cwd=project)
        assert refused.returncode == ConfigError.exit_code == 2
        assert "There are: ValueError (2), jobs.pricing.PriceMissing (1)." in refused.stderr
    again = batchrun("retry", "last", "--only", "PriceMissing", "--json", "-q", cwd=project)
    assert (json.loads(again.stdout)["failed"], json.loads(again.stdout)["retries"]) == (3, 1)
    seen = json.loads(batchrun("show", "--json", cwd=project).stdout)
    assert [(one["error"], one["items"]) for one in seen["errors"]] == [("ValueError", 2), ("jobs.pricing.PriceMissing", 1)]
    assert "Item 9: failed, after 1 attempt (chunk " in batchrun("show", "--item", "9", cwd=project).stdout
    made = batchrun("report", "-o", "run.html", cwd=project)
    assert (made.returncode, made.stdout) == (0, "run.html\n")
    text = (project / "run.html").read_text("utf-8")
    assert batchrun("report", "-o", "-", cwd=project).stdout.partition("Made by")[0] == text.partition("Made by")[0]
    assert "<script>" not in text
    assert "10 planned = 7 done + 3 failed." in text
    nowhere = batchrun("report", "-o", "no/such/run.html", cwd=project)
    assert nowhere.returncode == 2
    assert "--output: no/such/run.html cannot be written: No such file or directory." in nowhere.stderr
    assert [path.name for path in project.glob(".run.html*")] == []


def test_a_watched_run_that_is_through_is_shown_at_once(project: Path, batchrun: CommandLine) -> None:
    assert batchrun("run", "price", "--limit", "2", "-q", cwd=project).returncode == 0
    assert "2 planned = 2 done" in batchrun("show", "--watch", cwd=project).stdout
    assert "goes with neither --json nor --item" in batchrun("show", "--watch", "--json", cwd=project).stderr
    assert batchrun("runs", "--status", "wrong", cwd=project).returncode == 2
    assert "There is no such run" in batchrun("runs", "--status", "failed", cwd=project).stderr
    assert batchrun("failures", "--class", "ValueError", cwd=project).stderr == "No item of this run went wrong.\n"


def test_an_insight_that_a_later_batchrun_wrote_is_no_error(ledger: Ledger) -> None:
    ledger.run()
    ledger.put(ledger.tables.insight, {"run": RUN, "epoch": 1, "data": '{"schema": 9}'})
    assert ledger.reading.insight(RUN) is None
    with ledger.engine.begin() as connection:
        connection.execute(update(ledger.tables.insight).values(data=insights.insight().to_json()))
    found = ledger.reading.insight(RUN)
    assert found is not None
    assert found.done == insights.insight().done
