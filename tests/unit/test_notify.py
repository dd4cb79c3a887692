"""Pings and the command on failure: what is sent, what is tried again, and that nothing of it lasts for ever."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchrun.reporting import notify
from batchrun.reporting.notify import Pings, run_command
from tests.support.monitor import Monitor, monitor

PATH = "/a-secret-of-the-project"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Monitor]:
    monkeypatch.setattr(notify, "PAUSE_S", 0.01)
    with monitor() as made:
        yield made


def ended(url: str, *, good: bool, started: bool = False, body: str = "as it was") -> list[str]:
    """Ping the end of a run; what was warned of."""
    said: list[str] = []
    pings = Pings(url, "tests", said.append)
    if started:
        pings.start("it began")
    pings.end(lambda: False, good=good, body=body)()
    return said


def test_the_start_comes_before_the_end_and_both_carry_one_id(server: Monitor) -> None:
    assert ended(server.url, good=True, started=True) == []
    assert server.paths == [f"{PATH}/start", PATH]
    assert len({ping.rid for ping in server.pings}) == 1
    assert server.pings[0].rid


def test_a_failure_goes_to_fail_with_the_end_of_the_log(server: Monitor) -> None:
    assert ended(f"{server.url}/?create=1", good=False, body="x" * 20_000 + "last words: \u00fc\ud800") == []
    assert server.paths == [f"{PATH}/fail"]
    assert server.pings[0].body.endswith("xlast words: \u00fc\\ud800")
    assert len(server.pings[0].body) < 10_100


def test_a_server_in_trouble_is_asked_three_times(server: Monitor) -> None:
    server.answers = [500, 429]
    assert ended(server.url, good=True) == []
    assert len(server.pings) == 3
    server.answers = [500, 502, 503]
    (said,) = ended(server.url, good=True)
    assert said.endswith("/*** failed: it answered 503 Service Unavailable. The run is not affected.")
    assert said.startswith("[notify] ping_url: the success ping to http://127.0.0.1/***")
    assert PATH not in said


def test_what_the_server_refuses_is_not_tried_again(server: Monitor) -> None:
    server.answers = [404]
    (said,) = ended(server.url, good=True)
    assert "it answered 404 Not Found" in said
    assert len(server.pings) == 1


def test_a_server_that_does_not_answer_is_given_up_in_time(server: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "TRY_S", 0.1)
    monkeypatch.setattr(notify, "START_UP_S", 60.0)
    server.answers = [0, 0, 0]
    (said,) = ended(server.url, good=False)
    assert "the failure ping" in said
    assert "no answer within 0.1 s" in said or "timed out" in said


def test_the_wait_for_an_answer_ends_when_somebody_wants_to_leave(server: Monitor) -> None:
    server.answers = [0]
    said: list[str] = []
    Pings(server.url, "tests", said.append).end(lambda: bool(server.pings), good=True, body="")()
    assert "it was given up" in said[0]


def test_a_server_that_is_not_there_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "PAUSE_S", 0.01)
    (said,) = ended("http://127.0.0.1:1/a-secret", good=True)
    assert "Connection refused" in said
    assert "a-secret" not in said


# ------------------------------------------------------------------------------------------------------- on_failure
def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def run(arguments: list[str], folder: Path, *, limit_s: float = 30.0) -> str:
    return run_command(arguments, folder, {"BATCHRUN_RUN": "4f7k2m9xab"}, "the last line", lambda: False, limit_s=limit_s)


def test_a_command_gets_its_arguments_unread_by_a_shell_the_variables_and_the_log(tmp_path: Path) -> None:
    code = "import os, sys; open('told', 'w').write(' '.join([sys.argv[1], os.environ['BATCHRUN_RUN'], sys.stdin.read()]))"
    assert run([*python(code), "$HOME; *"], tmp_path) == ""
    assert (tmp_path / "told").read_text() == "$HOME; * 4f7k2m9xab the last line\n"


def test_a_command_that_fails_is_told_with_its_last_line(tmp_path: Path) -> None:
    said = run(python("print('first'); raise SystemExit('no such mailbox')"), tmp_path)
    assert said == f"[notify] on_failure: {sys.executable!r} ended with 1. It said: no such mailbox"


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    said = run(["no-such-command"], tmp_path)
    assert said.startswith("[notify] on_failure: 'no-such-command' could not be started: ")


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    said = run(["sh", "-c", "echo still here; cat /dev/zero > /dev/null & wait"], tmp_path, limit_s=0.2)
    assert said.endswith("did not end within 0.2 s and was killed. It said: still here")


def test_a_command_that_reads_nothing_is_not_waited_for(tmp_path: Path) -> None:
    assert run(["true"], tmp_path) == ""
