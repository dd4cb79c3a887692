"""Telling others how a run went: pings, as healthchecks.io and its like take them, and a command of the user's own.

    the run is open   -> POST URL/start   by a process of its own; the run does not wait for it
    it ended well     -> POST URL
    it did not        -> POST URL/fail with the last lines of the log, and on_failure with them on its stdin

All of a firing's pings carry the same ``?rid=UUID``, so that firings that overlap are told apart. Whatever goes wrong here
is a warning: it never changes what came of the run, and it takes a bounded time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit, urlunsplit

PROGRAM = Path(__file__).with_name("ping.py")
TRIES = 3
TRY_S = 10.0
PAUSE_S = 1.0
START_UP_S = 2.0
"""Of the program that asks, on a loaded machine."""
COMMAND_S = 60.0
LOOK_S = 0.1
LONGEST_BODY = 10_000

Tell = Callable[[str], None]
GiveUp = Callable[[], bool]


class Pings:
    """The pings of one firing. url: without what is added to its path. warn: takes a sentence, for people."""

    def __init__(self, url: str, agent: str, warn: Tell) -> None:
        self._url = url
        self._agent = agent
        self._warn = warn
        self._rid = str(uuid.uuid4())
        self._first: subprocess.Popen[str] | None = None

    def start(self, body: str) -> None:
        """Say that a run began, and come back at once."""
        self._first = self._send("/start", body)

    def end(self, gives_up: GiveUp, *, good: bool, body: str) -> Callable[[], None]:
        """Say how it ended. Returns what waits for the answer.

        The ping of the start comes first: overtaken by the end's it would look like a run that never ends.
        """
        if self._first is not None:
            self._await(self._first, "start", TRY_S + START_UP_S, gives_up)
        process = self._send("" if good else "/fail", body)

        def wait() -> None:
            if process is not None:
                self._await(process, "success" if good else "failure", TRIES * (TRY_S + PAUSE_S) + START_UP_S, gives_up)

        return wait

    def _send(self, path: str, body: str) -> subprocess.Popen[str] | None:
        limits = {"tries": TRIES, "try_s": TRY_S, "pause_s": PAUSE_S}
        wanted = {"url": self._address(path), "body": body[-LONGEST_BODY:], "agent": self._agent, **limits}
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, encoding="utf-8", errors="backslashreplace", start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._warn(f"{self._named('ping')} could not be sent: {error}.")
            return None
        assert process.stdin is not None
        with contextlib.suppress(OSError), process.stdin as pipe:  # what became of it says its exit code
            json.dump(wanted, pipe)
        return process

    def _address(self, path: str) -> str:
        parts = urlsplit(self._url)
        query = "&".join(filter(None, [parts.query, f"rid={self._rid}"]))
        return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") + path, query, ""))

    def _await(self, process: subprocess.Popen[str], what: str, limit_s: float, gives_up: GiveUp) -> None:
        assert process.stdout is not None
        in_time = ends_within(process, limit_s, gives_up)
        if not in_time:
            process.kill()
            process.wait()
        with process.stdout as pipe:
            why = pipe.read().strip() if in_time else "it was given up"
        if process.returncode != 0:
            said = why or f"its program ended with {process.returncode}"
            self._warn(f"{self._named(what)} failed: {said}. The run is not affected.")

    def _named(self, what: str) -> str:
        parts = urlsplit(self._url)
        return f"[notify] ping_url: the {what} ping to {parts.scheme}://{parts.hostname or ''}/***"


def run_command(
    arguments: Sequence[str], folder: Path, environ: Mapping[str, str], text: str, gives_up: GiveUp, *, limit_s: float = COMMAND_S
) -> str:
    """Run ``on_failure``, the text on its stdin. Returns what went wrong, for people; empty where nothing did.

    No shell reads its arguments; it is run in ``folder``. What it writes is shown only when it fails. By files and not by
    pipes, so that neither a command that does not read nor one that leaves a child behind is waited for.
    """
    name = f"[notify] on_failure: {arguments[0]!r}"
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as written:
        given.write(f"{text}\n".encode("utf-8", "backslashreplace"))
        given.seek(0)
        try:
            process = subprocess.Popen(
                list(arguments), cwd=folder, env={**os.environ, **environ}, stdin=given, stdout=written, stderr=written,
                start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            return f"{name} could not be started: {error}."
        if not ends_within(process, limit_s, gives_up):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"{name} did not end within {limit_s:g} s and was killed.{_last_line(written)}"
        if process.returncode == 0:
            return ""
        return f"{name} ended with {process.returncode}.{_last_line(written)}"


def ends_within(process: subprocess.Popen[str] | subprocess.Popen[bytes], limit_s: float, gives_up: GiveUp) -> bool:
    """Wait for a process; False when the time is over or ``gives_up`` says so, and it still runs."""
    until = time.monotonic() + limit_s
    while True:
        try:
            process.wait(LOOK_S)
            return True
        except subprocess.TimeoutExpired:
            if gives_up() or time.monotonic() > until:
                return False


def _last_line(written: IO[bytes]) -> str:
    written.seek(max(0, written.seek(0, os.SEEK_END) - 1000))
    lines = written.read().decode("utf-8", "replace").strip().splitlines()
    return f" It said: {lines[-1]}" if lines else ""
