"""What is said of a run, as lines and as JSON; and standard logging in a task, as plain data with the item it is at."""

from __future__ import annotations

import datetime
import decimal
import json
import logging
import sys
import uuid
from typing import Any

import pytest

from batchrun.execution.output import said_of
from batchrun.execution.whereabouts import stay
from batchrun.items import LONGEST_NAME, item_name
from batchrun.masking import Redactor
from batchrun.reporting.entries import KEPT_CHARACTERS, KEPT_LINES, Entry, JsonLines, LastLines, Lines


def line(entry: Entry) -> str:
    form = Lines()
    form.run = "4f7k2m9xab"
    return form(entry)


def as_json(entry: Entry, *secrets: str) -> dict[str, Any]:
    form = JsonLines(Redactor(secrets))
    form.run, form.job = "4f7k2m9xab", "refresh"
    written = form(entry)
    assert "\n" not in written
    found: dict[str, Any] = json.loads(written)
    return found


def test_a_record_of_a_task_names_its_run_and_item() -> None:
    assert line(Entry("INFO", "told", "mine", "k", 1)) == "mine [run 4f7k2m9xab, item 'k']: told"
    assert line(Entry("WARNING", "told", "mine", 7, 2)) == "Warning: mine [run 4f7k2m9xab, item 7, attempt 2]: told"
    assert line(Entry("INFO", "told", "mine")) == "mine: told"


def test_a_traceback_stands_below_its_record_and_commands_no_terminal() -> None:
    assert (
        line(Entry("ERROR", "it\x1b[2J", "mine", traceback="Traceback:\n  x\r")) == "Error: mine: it\\x1b[2J\nTraceback:\n  x\\r"
    )


def test_a_record_is_one_json_object_with_its_ids() -> None:
    entry = Entry("ERROR", "two\nlines", "mine", "k", 2, 3, "Traceback:\n  x", 1795741384.25)
    assert as_json(entry) == {
        "time": "2026-11-27T01:03:04.250Z", "level": "ERROR", "logger": "mine", "message": "two\nlines", "run": "4f7k2m9xab",
        "job": "refresh", "item": "k", "attempt": 2, "worker": 3, "traceback": "Traceback:\n  x",
    }  # fmt: skip


def test_prints_and_our_own_words_have_a_logger_too() -> None:
    assert [as_json(Entry("PRINT", "x"))[key] for key in ("level", "logger")] == ["INFO", "print"]
    assert [as_json(Entry("WARNING", "x"))[key] for key in ("level", "logger")] == ["WARNING", "batchrun"]


@pytest.mark.parametrize(
    "text", ['password="hunter2secret"', "password=hunter2secret\"', x", "http://a:hunter2secret@b/'\"", "\ud800"]
)
def test_hiding_a_secret_never_spoils_the_json(text: str) -> None:
    found = as_json(Entry("INFO", text, "mine", text, 1, traceback=text, more={"error": text}), "hunter2secret")
    assert "hunter2secret" not in json.dumps(found)


@pytest.mark.parametrize(
    ("item", "name"),
    [
        (7, 7),
        (True, True),
        (None, None),
        ("a\nb", "a\nb"),
        (2**80, str(2**80)),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (decimal.Decimal("1.50"), "1.50"),
        ((1, "a"), "(1, 'a')"),
        ({"id": "3"}, "{'id': '3'}"),
    ],
)
def test_an_item_is_named_by_its_key(item: object, name: object) -> None:
    assert item_name(item) == name


def test_an_item_has_a_name_whatever_its_class_does() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert item_name(Odd()) == "<Odd whose repr raised RuntimeError>"
    assert len(str(item_name("x" * 10_000))) == LONGEST_NAME
    assert as_json(Entry("INFO", "x", "mine", float("nan"), 1))["item"] == "nan"


class Busy:
    at: tuple[Any, int] | None = ("k", 2)


def test_a_log_record_crosses_as_plain_data_with_the_item_its_thread_is_at() -> None:
    busy = Busy()
    stay(busy)
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.getLogger("mine").makeRecord("mine", logging.ERROR, "f", 1, "at %s", ("x",), sys.exc_info())
    said = said_of(record)
    assert (said.level, said.text, said.logger, said.item, said.attempt) == ("ERROR", "at x", "mine", "k", 2)
    assert said.traceback.startswith("Traceback")
    assert said.traceback.endswith("ValueError: no")
    busy.at = None
    assert said_of(record).attempt == 0


def test_only_the_last_lines_are_kept_and_no_secret_is_cut_in_half() -> None:
    kept = LastLines(Redactor(["hunter2secret"]))
    for number in range(KEPT_LINES + 5):
        kept.add(Entry("INFO", f"line {number}"))
    assert kept.text().splitlines()[0] == "line 5"
    kept.add(Entry("WARNING", "hunter2secret" * KEPT_CHARACTERS))
    assert len(kept.text()) <= KEPT_CHARACTERS
    assert "secret" not in kept.text()
