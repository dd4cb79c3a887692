"""The judgement of the fault benchmark, and its table: the database decides, and no silence passes as a success."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.faults.cases import FAULTS, Case, Notes
from benchmarks.faults.judge import Result, Seen, guilty_of, judge
from benchmarks.faults.table import as_data, as_markdown, as_text, cell_of, put, read_cells

ONCE = dict.fromkeys(range(10), 1)


def seen(
    changed: Mapping[int, int] | None = None,
    *,
    failed: frozenset[int] = frozenset(),
    guilty: frozenset[int] = frozenset(),
    ending: str = "ended",
) -> Seen:
    """Ten items that are applied once, but for what is changed: item -> how often."""
    applied = {item: times for item, times in {**ONCE, **(changed or {})}.items() if times}
    return Seen(10, applied, frozenset(range(10)) - failed, failed, ending, guilty)


@pytest.mark.parametrize(
    ("what", "word", "is_fine"),
    [
        (seen(), "ok", True),
        (seen({3: 0}), "loses 1", False),
        (seen({3: 0, 4: 0}, failed=frozenset({3, 4})), "loses 2", False),
        (seen({3: 0}, guilty=frozenset({3}), failed=frozenset({3})), "fails 1", True),
        (seen({3: 0}, guilty=frozenset({3})), "loses 1", False),
        (seen({3: 2}, guilty=frozenset({3}), failed=frozenset({3})), "doubles 1", False),
        (seen(failed=frozenset({3})), "misreports 1", False),
        (seen({3: 0, 5: 2}), "loses 1, doubles 1", False),
        (seen({3: 0}, ending="hung"), "hangs", False),
        (seen({3: 0, 5: 2}, ending="hung"), "hangs, doubles 1", False),
        (seen({3: 0}, ending="raised RuntimeError: no"), "aborts, loses 1", False),
        (seen(ending="raised RuntimeError: no"), "aborts", False),
        (seen({3: 0}, ending="died: exit code -11"), "aborts, loses 1", False),
    ],
)
def test_the_word_for_what_was_seen(what: Seen, word: str, is_fine: bool) -> None:
    judged = judge(what)
    assert (judged.word, judged.is_fine) == (word, is_fine)


@pytest.mark.parametrize(
    ("failed", "ending", "word"),
    [
        (frozenset(), "raised RuntimeError: no", "says so"),
        (frozenset(range(10)), "ended", "says so"),
        (frozenset(), "ended", "loses 10"),
        (frozenset(), "hung", "hangs"),
    ],
)
def test_where_nothing_can_be_done_somebody_must_say_so(failed: frozenset[int], ending: str, word: str) -> None:
    nothing = dict.fromkeys(range(10), 0)
    assert judge(seen(nothing, failed=failed, guilty=frozenset(range(10)), ending=ending)).word == word


def test_who_may_fail_depends_on_the_fault() -> None:
    assert guilty_of("kill", 10, 3) == frozenset()
    assert guilty_of("poison", 10, 3) == {3}
    assert guilty_of("initializer", 10, 3) == set(range(10))
    assert {fault.guilty for fault in FAULTS.values()} == {"none", "one", "all"}


def test_the_table_has_a_row_a_fault_and_a_column_a_peer_in_their_order() -> None:
    results = [
        Result("b", "server", seen({3: 0})),
        Result("a", "kill", seen()),
        Result("b", "kill", seen({3: 2})),
    ]
    cells = [cell_of(result) for result in results]
    titles = {"a": "A", "b": "Bee", "never asked for": "C"}
    kill, server = FAULTS["kill"].title, FAULTS["server"].title
    assert as_markdown(cells, titles) == (
        f"| what happens | A | Bee |\n| --- | --- | --- |\n| {kill} | **ok** | doubles 1 |\n| {server} | - | loses 1 |\n"
    )
    head, first, second = as_text(cells, titles).splitlines()
    assert head.split() == ["what", "happens", "A", "Bee"]
    assert first.endswith("ok  doubles 1")
    assert head.index("A") == first.rindex("ok") == second.rindex("-   loses")


def test_the_brief_table_keeps_the_gravest_word_of_a_cell() -> None:
    results = [Result("a", "kill", seen({3: 0, 5: 2})), Result("b", "kill", seen({3: 0}, ending="raised RuntimeError: no"))]
    cells = [cell_of(result) for result in results]
    assert as_markdown(cells, {"a": "A", "b": "B"}, is_brief=True).endswith(f"| {FAULTS['kill'].title} | loses 1 | aborts |\n")


def test_a_result_is_plain_data() -> None:
    data = json.loads(json.dumps(as_data(Result("a", "kill", seen({3: 2})))))
    assert (data["peer"], data["fault"], data["doubled"], data["lost"], data["ending"]) == ("a", "kill", 1, 0, "ended")


def test_a_later_run_replaces_the_cells_of_an_earlier_one(tmp_path: Path) -> None:
    files = [tmp_path / "first", tmp_path / "second"]
    runs = [[Result("a", "kill", seen({3: 0})), Result("b", "kill", seen())], [Result("a", "kill", seen())]]
    for file, results in zip(files, runs, strict=True):
        file.write_text(json.dumps({"facts": file.name, "results": [as_data(result) for result in results]}))
    cells, facts = read_cells(files)
    assert {(cell.peer, cell.word) for cell in cells} == {("a", "ok"), ("b", "ok")}
    assert facts == "second"


def test_the_table_is_put_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- faults -->\nold\n<!-- end of faults -->\nafter\n")
    put(page, "| a \\1 |\n")
    assert page.read_text() == "before\n<!-- faults -->\n\n| a \\1 |\n\n<!-- end of faults -->\nafter\n"


def test_notes_are_read_again_and_the_last_word_on_an_item_holds(tmp_path: Path) -> None:
    notes = Notes(str(tmp_path))
    notes.note("failed", 1, "ValueError: two\nlines")
    notes.note("failed", 2, "ValueError")
    notes.note("done", 1)
    notes.note("end", why="ended")
    again = Notes(str(tmp_path))
    assert (again.done, again.failed, again.end) == ({1}, {2: "ValueError"}, "ended")


def test_a_fault_that_happens_once_leaves_its_mark(tmp_path: Path) -> None:
    case = Case.read(Case("pool", "kill", "postgresql://", str(tmp_path), 40, 7).text())
    assert [case.happens_once(), case.happens_once()] == [True, False]
