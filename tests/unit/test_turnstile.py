"""Whose turn it is to write to a SQLite file: whoever waits says so, whatever it is that it waits for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from batchrun.database.turnstile import OwnerTurn, Turnstile
from tests.support.waiting import wait_until


@pytest.mark.parametrize("is_written", [False, True])
def test_a_worker_that_waits_for_the_owner_or_for_another_writer_says_so_and_then_that_it_waits_no_longer(
    tmp_path: Path, is_written: bool
) -> None:
    """The owner keeps its place while a worker writes: the next worker waits for the owner, not for the writer."""
    writer, owner, waiting = Turnstile(tmp_path), OwnerTurn(tmp_path), Turnstile(tmp_path)
    writer.enter()
    if not is_written:
        assert not owner.try_enter()
    said: list[str] = []
    thread = threading.Thread(target=waiting.enter, args=((lambda: said.append("waits"), lambda: said.append("goes on")),))
    thread.start()
    wait_until(lambda: said == ["waits"])
    writer.leave()
    if not is_written:
        wait_until(owner.try_enter)
        assert said == ["waits"]
        owner.leave()
    thread.join()
    assert said == ["waits", "goes on"]
    waiting.leave()
    for one in (writer, owner, waiting):
        one.close()


def test_who_comes_in_at_once_says_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    turnstile = Turnstile(tmp_path)
    turnstile.enter((lambda: said.append("waits"), lambda: said.append("goes on")))
    turnstile.leave()
    turnstile.close()
    assert said == []
