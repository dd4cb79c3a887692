"""The table of crashes names where each row is checked: what it names must be there."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT, section

HEADING = "## What if it dies here?"
ROWS = [line for line in section((ROOT / "docs" / "internals.md").read_text(), HEADING).splitlines() if line.startswith("| ")][1:]
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_what_checks_a_row_of_the_table_of_crashes_is_there(row: str) -> None:
    names = re.findall(r"`([^`]+)`", row.split("|")[-2])
    assert names, "nothing checks this row"
    for name in names:
        if name.startswith("test_"):
            assert f"def {name}(" in TESTS
        elif "/" in name:
            assert (ROOT / name).exists() or (ROOT / f"{name}.py").exists()
        else:
            assert (ROOT / "tests" / "chaos" / f"{name}.py").exists()
