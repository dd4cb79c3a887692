"""What the command line writes: results to stdout, everything else to stderr, and one redaction over both.

print() in this process, a job's import, its items function, C code, child processes -> stderr
result()                                                                             -> stdout, nothing else
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from batchrun.masking import Redactor
from batchrun.reporting.streams import GuardedStream, printable_lines, refuse_bytes

if TYPE_CHECKING:
    from batchrun.reporting.entries import JsonLines


class Output:
    """Stdout for results and stderr for people. owns_process: the process is batchrun's own, so descriptors may be moved."""

    def __init__(self, *, owns_process: bool = False) -> None:
        self.owns_process = owns_process
        self.redact = Redactor()
        self.err = GuardedStream(sys.stderr, self.redact)
        self.bare_err = GuardedStream(sys.stderr)
        """For JSON lines, which hide secrets themselves: redaction could take a quotation mark along."""
        self.json: JsonLines | None = None
        self._out = GuardedStream(sys.stdout, self.redact)

    def clean(self, text: str) -> str:
        """Hide the secrets of a text that is laid out afterwards."""
        return self.redact(text)

    def result(self, text: str) -> None:
        """Write a result to stdout."""
        self._out.write(f"{text}\n")
        self._out.flush()

    def say(self, text: str, level: str = "INFO", **more: object) -> None:
        """Write to stderr, control characters escaped. more: further keys, where entries are JSON."""
        if self.json is not None:
            from batchrun.reporting.entries import Entry

            self.bare_err.write(f"{self.json(Entry(level, text, more=more))}\n")
            self.bare_err.flush()
            return
        name = f"{level.capitalize()}: " if level in ("WARNING", "ERROR") else ""
        self.err.write(f"{printable_lines(self.redact(name + text))}\n")
        self.err.flush()

    def warn(self, text: str) -> None:
        """A warning."""
        self.say(text, "WARNING")

    def speak_json(self) -> None:
        """From now on each entry on stderr is a JSON object on a line of its own."""
        from batchrun.reporting.entries import JsonLines

        self.json = self.json or JsonLines(self.redact)

    def table_width(self) -> int | None:
        """The width of the terminal that results go to; None where they go elsewhere."""
        try:
            return os.get_terminal_size(self._out.fileno()).columns if self._out.isatty() else None
        except (OSError, ValueError):
            return None

    def has_colours(self) -> bool:
        """Whether results go to a terminal that shows colours, and nobody asked for none (NO_COLOR, whatever it says)."""
        return self._out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    @property
    def results(self) -> GuardedStream:
        """Where results go, for what draws on a terminal by itself."""
        return self._out

    @contextlib.contextmanager
    def results_only(self) -> Iterator[None]:
        """While this lasts, only ``result`` reaches stdout."""
        if not self.owns_process:
            with contextlib.redirect_stdout(sys.stderr):
                yield
            return
        with _moved_stdout() as stream, contextlib.redirect_stdout(self.err), contextlib.redirect_stderr(self.err):
            self._out = GuardedStream(stream, self.redact)
            yield
            self._out.flush()


@contextlib.contextmanager
def _moved_stdout() -> Iterator[TextIO]:
    """Let descriptor 1 mean stderr; yields a stream to what it was."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    kept = os.dup(1)  # not inherited by children
    os.dup2(2, 1)
    stream = os.fdopen(kept, "w", encoding=sys.stdout.encoding, errors="backslashreplace")
    try:
        yield stream
    finally:
        let_go(stream)
        os.dup2(kept, 1)
        with contextlib.suppress(OSError):
            stream.close()


def let_go(stream: TextIO | None) -> None:
    """Flush a stream for the last time. Where its reader is gone, what is left goes nowhere, without a complaint at exit."""
    if stream is None or stream.closed:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def hold_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed, lest a database or a pipe gets its number; text never fails to encode."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number is this one; workers need it too
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115 - it stays open as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")


class LineStream(io.TextIOBase):
    """A text stream that hands on whole lines; what is left without a line end goes with the next one or a flush of its own.

    In a worker, which is a copy of this process, a log handler that the job's module made may still hold it: there it
    hands on to the worker's own stream.
    """

    encoding = "utf-8"

    def __init__(self, write_line: Callable[[str], object]) -> None:
        self._write_line = write_line
        self._rest = ""
        self._pid = os.getpid()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        refuse_bytes(text)
        if os.getpid() != self._pid and sys.stderr is not self:
            return sys.stderr.write(text)
        whole, newline, self._rest = (self._rest + text).rpartition("\n")
        if newline:
            self._write_line(whole)
        return len(text)

    def finish(self) -> None:
        """Hand on what is left."""
        if self._rest:
            self._write_line(self._rest)
        self._rest = ""
