"""Items from files: the rows of a CSV file, the values of a JSON Lines file, the lines of a text.

    file -> LineFeed (lines, byte offset) -> format.records() (items) -> FileReader.take()

The cursor of a plain file holds the byte offset behind the last record, so that a resume seeks there at once. A
compressed file is skipped through by count. Standard input can only be read again by its sender: its cursor holds
the rolling hash of ``iterables``. Rows appended while a run goes on are not read by it: the bound is the file's
size when the run opens, and a record that begins behind it is not taken.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from batchrun.errors import ConfigError
from batchrun.items import Item
from batchrun.sources.feeds import LineFeed, content_hash, find_file, go_to, is_compressed, known_encoding, open_feed, open_stdin
from batchrun.sources.iterables import IterableReader, RollingHash, changed, skip_hashed
from batchrun.sources.source import Cursor, SourceContext

_FIELD_LIMIT = 64 << 20
_COUNT_S = 0.25


def csv_rows(
    path: str | os.PathLike[str],
    *,
    delimiter: str = ",",
    quotechar: str = '"',
    encoding: str = "utf-8",
    member: str | None = None,
) -> FileSource:
    """Each row of a CSV file as ``dict[str, str]``; the first row names the columns.

    path: relative to the project's folder (or the current one without a project); "-" is standard input; .gz and
    .zip are unpacked as they are read. delimiter: one character, such as ";" or a tab. encoding: a byte order
    mark of UTF-8 is dropped. member: which file of a .zip that has several.
    Blank lines are left out. Raises ConfigError with file:line for a duplicate or empty column name, a row with too many or too
    few fields, bad quoting, a NUL character and bad encoding; items before it are handed out first.
    """
    for name, value in (("delimiter", delimiter), ("quotechar", quotechar)):
        if len(value) != 1 or value in "\r\n":
            raise ConfigError(f"csv_rows: {name} is {value!r}; it must be one character, such as ',' or ';'.")
    return _source(path, CsvRows(delimiter, quotechar), encoding, member)


def jsonl(path: str | os.PathLike[str], *, encoding: str = "utf-8", member: str | None = None) -> FileSource:
    """Each line of a JSON Lines file as the JSON value it holds; blank lines are left out.

    path, encoding, member: as for ``csv_rows``. Raises ConfigError with file:line:column for a line that is no JSON.
    """
    return _source(path, JsonLines(), encoding, member)


def lines(path: str | os.PathLike[str], *, encoding: str = "utf-8", member: str | None = None) -> FileSource:
    """Each line of a text file as str, without its newline; blank lines are kept, as ``""``.

    path, encoding, member: as for ``csv_rows``.
    """
    return _source(path, TextLines(), encoding, member)


class Format(Protocol):
    """How lines become records."""

    def __str__(self) -> str: ...
    def start(self, feed: LineFeed) -> None:
        """Read what comes before the records."""

    def records(self, feed: LineFeed) -> Iterator[Item]:
        """Yield the records from where the feed stands, each marked before it is handed out."""


@dataclass(slots=True)
class CsvRows:
    """CSV with a header row. The header is read anew by each ``start``."""

    delimiter: str
    quotechar: str
    header: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"csv, delimiter {self.delimiter!r}, quotechar {self.quotechar!r}"

    def _rows(self, feed: LineFeed) -> Iterator[list[str]]:
        # The limit is one for the whole process: raised so that 1 MB of text is read, kept so that a quote which is
        # never closed does not read the whole file into one field.
        csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
        feed.refuses_nul = True
        return csv.reader(feed, delimiter=self.delimiter, quotechar=self.quotechar, strict=True)

    def start(self, feed: LineFeed) -> None:
        header = self._next(self._rows(feed), feed)
        while header == []:
            header = self._next(self._rows(feed), feed)
        if header is None:
            raise feed.error("the file is empty; the first row must name the columns.")
        for place, name in enumerate(header, 1):
            if not name.strip():
                raise feed.error(f"column {place} has no name; the first row must name the columns.")
            if header.index(name) != place - 1:
                raise feed.error(f"the column {name!r} is named twice; give each column a name of its own.")
        self.header = header

    def _next(self, rows: Iterator[list[str]], feed: LineFeed) -> list[str] | None:
        line = feed.line + 1
        try:
            return next(rows, None)
        except csv.Error as error:
            raise feed.error(f"is not the CSV that was expected ({error}); see the quotes and the delimiter.", line) from None

    def records(self, feed: LineFeed) -> Iterator[Item]:
        header, rows, width = self.header, self._rows(feed), len(self.header)
        while feed.is_within():
            line = feed.line + 1
            row = self._next(rows, feed)
            if row is None:
                return
            if len(row) == width:
                feed.mark()
                yield dict(zip(header, row, strict=True))
            elif row:
                many = "many" if len(row) > width else "few"
                raise feed.error(f"too {many} fields: {len(row)}, but the header names {width}.", line)


class JsonLines:
    """One JSON value a line."""

    def __str__(self) -> str:
        return "jsonl"

    def start(self, feed: LineFeed) -> None:
        """Nothing comes before the records."""

    def records(self, feed: LineFeed) -> Iterator[Item]:
        while feed.is_within() and (text := next(feed, None)) is not None:
            if not text.isspace():
                item = self._value(text, feed)
                feed.mark()
                yield item

    def _value(self, text: str, feed: LineFeed) -> Item:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise feed.error(f"is no JSON value: {error.msg}.", column=error.colno) from None
        except (ValueError, RecursionError) as error:  # an integer of thousands of digits; nested too deep
            raise feed.error(f"is no JSON value that can be read: {error}.", column=1) from None


class TextLines:
    """One str a line."""

    def __str__(self) -> str:
        return "lines"

    def start(self, feed: LineFeed) -> None:
        """Nothing comes before the records."""

    def records(self, feed: LineFeed) -> Iterator[Item]:
        while feed.is_within() and (text := next(feed, None)) is not None:
            feed.mark()
            if text.endswith("\n"):
                text = text[:-2] if text.endswith("\r\n") else text[:-1]
            yield text


class FileReader(IterableReader):
    """Takes records from a file. The cursor points behind the last record that was handed out.

    seeks: the cursor holds the byte offset, for a plain file.
    """

    def __init__(self, feed: LineFeed, records: Iterator[Item], *, count: int, seeks: bool, hashed: RollingHash | None) -> None:
        super().__init__(records, count=count, hashed=hashed)
        self._feed = feed
        self._seeks = seeks
        self._place = feed.place

    @property
    def cursor(self) -> Cursor:
        """``{"count": n}``, with ``offset`` and ``line`` for a plain file, with ``hash`` for standard input."""
        found: dict[str, Any] = super().cursor
        return found | {"offset": self._place[0], "line": self._place[1]} if self._seeks else found

    def _settled(self, items: list[Item]) -> None:
        super()._settled(items)
        if items:
            self._place = self._feed.place

    def close(self) -> None:
        super().close()
        self._feed.close()


@dataclass(slots=True)
class FileSource:
    """A file, or standard input ("-"), read by a format. Making one reads nothing.

    accept_changes: resume although the file or the first items are not what they were.
    """

    path: str
    form: Format
    encoding: str
    member: str | None = None
    accept_changes: bool = False
    _was_read: bool = False

    @property
    def is_stdin(self) -> bool:
        return self.path == "-"

    def describe(self) -> str:
        """The path as it was given, such as ``flights.csv.gz``, or ``stdin``."""
        return "stdin" if self.is_stdin else self.path + (f" ({self.member})" if self.member else "")

    def fingerprint(self, context: SourceContext) -> Mapping[str, str]:
        """Name, size and a hash of the first and last MiB. Raises ConfigError where there is no such file."""
        how = {"format": f"{self.form}, {self.encoding}"}
        if self.is_stdin:
            return {"stdin": "not checked", **how}
        full = find_file(self.path, context.folder)
        try:
            size = full.stat().st_size
            content = content_hash(full, size)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {error.strerror or error}; looked at {full}.") from None
        return {"file": self.describe(), "size": f"{size:,} bytes", "content": content, **how}

    def bound(self, context: SourceContext) -> int | None:
        """The size in bytes of a plain file; None for the others, which end by themselves."""
        return find_file(self.path, context.folder).stat().st_size if self._seeks() else None

    def total(self, context: SourceContext, bound: Any) -> int | None:
        """The number of records: exact where they are counted in a quarter of a second.

        A longer plain file: what that many bytes hold on average. Else None: stdin, a longer compressed file, an error in it.
        """
        if self.is_stdin:
            return None
        feed = self._open(context, bound)
        try:
            self.form.start(feed)
            return self._count(feed)
        except ConfigError:  # it is raised, at its record, when the items before it were handed out
            return None
        finally:
            feed.close()

    def _count(self, feed: LineFeed) -> int | None:
        deadline, count, records = time.monotonic() + _COUNT_S, 0, self.form.records(feed)
        while more := sum(1 for _ in islice(records, 1000)):
            count += more
            if time.monotonic() > deadline:
                return round(count * feed.upto / feed.offset) if feed.upto else None
        return count

    def read(self, context: SourceContext, after: Cursor, upto: Any) -> FileReader:
        """Open a reader behind ``after``. Raises ConfigError for a missing file or bad header, RunChanged if it shrank."""
        if self.is_stdin:
            return self._read_stdin(context, after)
        feed = self._open(context, upto)
        try:
            return self._read_behind(feed, after)
        except BaseException:
            feed.close()
            raise

    def _read_behind(self, feed: LineFeed, after: Cursor) -> FileReader:
        self.form.start(feed)
        feed.mark()
        count = 0 if after is None else after["count"]
        jumped = after is not None and "offset" in after and self._seeks() and go_to(feed, after["offset"], after["line"])
        records = self.form.records(feed)
        if after is not None and not jumped:
            self._skip(records, after)
        return FileReader(feed, records, count=count, seeks=self._seeks(), hashed=None)

    def _skip(self, records: Iterator[Item], after: Mapping[str, Any]) -> None:
        count = int(after["count"])
        if "offset" in after and not self.accept_changes:
            raise changed(f"the file {self.describe()}", f"has no record any more that ends at byte {after['offset']:,}")
        skipped = sum(1 for _ in islice(records, count))
        if skipped < count and not self.accept_changes:
            raise changed(
                f"the file {self.describe()}", f"now ends after {skipped:,} items, but {count:,} were taken from it before"
            )

    def _read_stdin(self, context: SourceContext, after: Cursor) -> FileReader:
        if self._was_read:
            raise ConfigError("-: standard input was already read, and gives its items only once.")
        self._was_read = True
        feed = open_stdin(self.encoding)
        self.form.start(feed)
        records = self.form.records(feed)
        if after is None:
            return FileReader(feed, records, count=0, seeks=False, hashed=RollingHash() if context.durable else None)
        hashed = skip_hashed(records, after, "standard input", self.accept_changes)
        return FileReader(feed, records, count=after["count"], seeks=False, hashed=hashed)

    def _seeks(self) -> bool:
        return not self.is_stdin and not is_compressed(self.path) and known_encoding(self.encoding)[1]

    def _open(self, context: SourceContext, upto: Any) -> LineFeed:
        return open_feed(self.path, find_file(self.path, context.folder), self.encoding, self.member, upto)


def _source(path: str | os.PathLike[str], form: Format, encoding: str, member: str | None) -> FileSource:
    found: Any = os.fspath(path)
    if not isinstance(found, str) or not found:
        raise ConfigError(f"path: {path!r} is no path; pass text or a pathlib.Path, or '-' for standard input.")
    known_encoding(encoding)
    if member is not None and not found.lower().endswith(".zip"):
        raise ConfigError(f"member: {found} is no .zip file, so it has no member {member!r}.")
    return FileSource(found, form, encoding, member)
