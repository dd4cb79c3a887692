"""Where each key of a TOML text stands. tomllib reads the values; this only finds places, for error messages."""

from __future__ import annotations

import bisect
import contextlib
import re
import tomllib
from dataclasses import dataclass, field
from typing import NamedTuple

KeyPath = tuple[str | int, ...]
"""The keys from the top down to a value; a list's elements go by their index."""


class Place(NamedTuple):
    """A line and a column, both counted from 1, in characters."""

    line: int
    column: int


@dataclass(slots=True)
class Places:
    """found: where each key (or element of a list) begins. twice: a key, its first place and its second."""

    found: dict[KeyPath, Place] = field(default_factory=dict)
    twice: list[tuple[KeyPath, Place, Place]] = field(default_factory=list)

    def of(self, path: KeyPath) -> Place:
        """The place of a key, else of the nearest table around it, else the first line."""
        while path and path not in self.found:
            path = path[:-1]
        return self.found.get(path, Place(1, 1))


def find_places(text: str) -> Places:
    """Return the place of every key. A text that is no TOML gives those before the fault; it never raises."""
    scanner = _Scanner(text.replace("\r\n", "\n"))
    with contextlib.suppress(_Lost, RecursionError, tomllib.TOMLDecodeError):  # tomllib's own message says what is wrong
        scanner.document()
    return scanner.places


class _Lost(Exception):
    """Raised where the text is no TOML."""


_BLANK = re.compile(r"[ \t]*")
_BETWEEN = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_STRING = re.compile(r'''"""(?:[^\\]|\\.)*?"{3,5}(?!")|\'\'\'.*?\'{3,5}(?!\')|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'''', re.DOTALL)
_BARE = re.compile(r"[^,\]}#\n]+")


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.places = Places()
        self.written: set[KeyPath] = set()
        self.counts: dict[KeyPath, int] = {}
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def document(self) -> None:
        table: KeyPath = ()
        while self.skip(_BETWEEN) < len(self.text):
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)

    def header(self) -> KeyPath:
        is_list = self.text.startswith("[[", self.at)
        self.at += 2 if is_list else 1
        start = self.skip(_BLANK)
        path = self.inside_lists(self.keys())
        self.imply(path[:-1], 0, start)
        if is_list:
            number = self.counts.get(path, 0)
            self.counts[path] = number + 1
            self.places.found.setdefault(path, self.place(start))
            path = (*path, number)
        self.expect("]]" if is_list else "]")
        self.note(path, start)
        return path

    def inside_lists(self, path: KeyPath) -> KeyPath:
        """``[a.b]`` after ``[[a]]`` means b of the last element of a."""
        done: KeyPath = ()
        for position, key in enumerate(path):
            done = (*done, key)
            if position < len(path) - 1 and done in self.counts:
                done = (*done, self.counts[done] - 1)
        return done

    def pair(self, table: KeyPath) -> None:
        start = self.at
        path = (*table, *self.keys())
        self.imply(path[:-1], len(table), start)
        self.note(path, start)
        self.expect("=")
        self.value(path)

    def imply(self, path: KeyPath, known: int, start: int) -> None:
        """The tables above a dotted key exist without being written."""
        for end in range(known + 1, len(path) + 1):
            self.places.found.setdefault(path[:end], self.place(start))

    def keys(self) -> KeyPath:
        found = [self.key()]
        while self.skip(_BLANK) < len(self.text) and self.text[self.at] == ".":
            self.at += 1
            self.skip(_BLANK)
            found.append(self.key())
        return tuple(found)

    def key(self) -> str:
        written = self.match(_KEY)
        return str(tomllib.loads(f"key = {written}")["key"]) if written[0] in "\"'" else written

    def value(self, path: KeyPath) -> None:
        self.skip(_BLANK)
        first = self.text[self.at : self.at + 1]
        if first == "[":
            self.enclosed("]", path)
        elif first == "{":
            self.enclosed("}", path)
        else:
            self.match(_STRING if first in ('"', "'") else _BARE)

    def enclosed(self, end: str, path: KeyPath) -> None:
        """The elements of a list or the pairs of an inline table."""
        self.at += 1
        number = 0
        while self.text[self.skip(_BETWEEN) : self.at + 1] != end:
            if end == "}":
                self.pair(path)
            else:
                self.places.found[(*path, number)] = self.place(self.at)
                self.value((*path, number))
            number += 1
            if self.text[self.skip(_BETWEEN) : self.at + 1] == ",":
                self.at += 1
            elif self.text[self.at : self.at + 1] != end:
                raise _Lost
        self.at += 1

    def note(self, path: KeyPath, start: int) -> None:
        place = self.place(start)
        if path in self.written:
            self.places.twice.append((path, self.places.found[path], place))
            return
        self.written.add(path)
        self.places.found[path] = place

    def place(self, offset: int) -> Place:
        line = bisect.bisect_right(self.starts, offset)
        return Place(line, offset - self.starts[line - 1] + 1)

    def expect(self, wanted: str) -> None:
        if not self.text.startswith(wanted, self.skip(_BLANK)):
            raise _Lost
        self.at += len(wanted)

    def match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if not found:
            raise _Lost
        self.at = found.end()
        return found[0]

    def skip(self, pattern: re.Pattern[str]) -> int:
        """Step over blanks and return where we are then."""
        if found := pattern.match(self.text, self.at):
            self.at = found.end()
        return self.at
