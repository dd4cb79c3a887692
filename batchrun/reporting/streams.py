"""Where text for people goes: a stream that hides secrets and never fails a run, and text without control characters."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TextIO

_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r"}


def printable(text: str) -> str:
    """Show control characters escaped, line ends too, so that no task, item or server can command the terminal.

    Tabs stay. Lone surrogates and characters that turn the direction of writing are escaped as well.
    """
    return _CONTROLS.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return _SHORT.get(match[0]) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def printable_lines(text: str) -> str:
    """The same, but line ends stay."""
    return "\n".join(printable(line) for line in text.split("\n"))


def refuse_bytes(text: object) -> None:
    """Raises TypeError as a text stream must: click finds out what it writes to by trying bytes first."""
    if not isinstance(text, str):
        raise TypeError(f"write() takes a text, not {type(text).__name__}")


class GuardedStream(io.TextIOBase):
    """Writes to another stream what ``clean`` makes of the text; a reader that is gone, or no stream at all, is no error.

    After the first failure nothing more is written. stream: None = closed from the start.
    """

    def __init__(self, stream: TextIO | None, clean: Callable[[str], str] = str) -> None:
        self._stream = stream
        self._clean = clean

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return getattr(self._stream, "errors", None)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        """Raises OSError where there is no descriptor."""
        if self._stream is None:
            raise OSError("there is no stream")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        refuse_bytes(text)
        if self._stream is not None:
            try:
                self._stream.write(self._clean(text))
            except UnicodeEncodeError:
                self._stream.write(self._clean(text).encode("ascii", "backslashreplace").decode("ascii"))
            except (OSError, ValueError):
                self._stream = None
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._stream = None
