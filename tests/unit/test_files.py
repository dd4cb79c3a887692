"""Files are read record by record, whatever packs them; a resume goes on at the next record; errors name file:line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchrun import codec, csv_rows, jsonl, lines
from batchrun.errors import ConfigError, RunChanged
from batchrun.sources.files import FileSource
from batchrun.sources.source import SourceContext

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # CI machines are slow


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    return SourceContext(engine=None, folder=tmp_path, durable=True)


def drain(source: FileSource, context: SourceContext, after: Any = None, upto: Any = "bound", size: int = 3) -> list[Any]:
    reader = source.read(context, after, source.bound(context) if upto == "bound" else upto)
    items = []
    try:
        while not reader.exhausted:
            items += reader.take(size)
    finally:
        reader.close()
        reader.close()
    return items


def cursor_after(source: FileSource, context: SourceContext, takes: list[int]) -> tuple[list[Any], Any]:
    """Take so many items so often, then crash: the items handed out and the cursor as the ledger gives it back."""
    reader, items = source.read(context, None, source.bound(context)), []
    for size in takes:
        items += reader.take(size)
    reader.close()
    return items, codec.load(codec.dump(reader.cursor))


def pack(path: Path, content: bytes) -> None:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inner/rows.txt", content)
            archive.writestr("__MACOSX/rows.txt", b"")
    else:
        path.write_bytes(content)


def use_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def as_csv(rows: list[tuple[str, str]], ending: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator=ending, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    return text.getvalue()


field = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6) | st.sampled_from(['"', "\r\n", "\n\n", "é,"])
line = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=6)
value = st.none() | st.integers() | st.text(max_size=4) | st.lists(st.integers(), max_size=2)
packings = st.sampled_from(["rows", "rows.gz", "rows.zip"])
encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
endings = st.sampled_from(["\n", "\r\n"])
takes = st.lists(st.integers(0, 4), max_size=4)


def each_once(make: Callable[..., FileSource], name: str, text: str, encoding: str, takes: list[int]) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        context = SourceContext(engine=None, folder=Path(folder), durable=True)
        pack(Path(folder) / name, text.encode(encoding))
        source = make(name, encoding=encoding)
        taken, cursor = cursor_after(source, context, takes)
        found = taken + drain(make(name, encoding=encoding), context, after=cursor)
        assert source.total(context, source.bound(context)) == len(found)
        return found


@unhurried
@given(st.lists(st.tuples(field, field)), packings, encodings, endings, takes)
def test_resuming_a_csv_file_gives_each_row_exactly_once(
    rows: list[tuple[str, str]], name: str, encoding: str, ending: str, takes: list[int]
) -> None:
    assert each_once(csv_rows, name, as_csv(rows, ending), encoding, takes) == [{"a": a, "b": b} for a, b in rows]


@unhurried
@given(st.lists(line), packings, encodings, endings, st.booleans(), takes)
def test_resuming_a_text_gives_each_line_exactly_once(
    rows: list[str], name: str, encoding: str, ending: str, ends: bool, takes: list[int]
) -> None:
    text = ending.join(rows) + (ending if rows and (ends or not rows[-1]) else "")
    assert each_once(lines, name, text, encoding, takes) == rows


@unhurried
@given(st.lists(value), packings, encodings, endings, takes)
def test_resuming_json_lines_gives_each_value_exactly_once(
    rows: list[Any], name: str, encoding: str, ending: str, takes: list[int]
) -> None:
    text = "".join(json.dumps(row) + ending + ending for row in rows)
    assert each_once(jsonl, name, text, encoding, takes) == rows


@unhurried
@given(st.lists(line.filter(bool)), takes)
def test_resuming_standard_input_gives_each_line_exactly_once(rows: list[str], takes: list[int]) -> None:
    context = SourceContext(engine=None, folder=Path(), durable=True)
    content = "".join(f"{row}\n" for row in rows).encode()
    with pytest.MonkeyPatch.context() as patch:
        use_stdin(patch, content)
        taken, cursor = cursor_after(lines("-"), context, takes)
        use_stdin(patch, content)
        assert taken + drain(lines("-"), context, after=cursor) == rows


def test_changed_standard_input_is_refused_on_resume(monkeypatch: pytest.MonkeyPatch, context: SourceContext) -> None:
    use_stdin(monkeypatch, b"a\nb\nc\n")
    _, cursor = cursor_after(lines("-"), context, [2])
    use_stdin(monkeypatch, b"a\nx\nc\n")
    with pytest.raises(RunChanged, match="standard input now gives other items"):
        lines("-").read(context, cursor, None)
    use_stdin(monkeypatch, b"a\nx\nc\n")
    source = lines("-")
    source.accept_changes = True
    assert drain(source, context, after=cursor) == ["c"]
    assert source.fingerprint(context) == {"stdin": "not checked", "format": "lines, utf-8"}
    assert source.bound(context) is None
    assert source.total(context, None) is None


def test_standard_input_is_not_read_twice_nor_closed(monkeypatch: pytest.MonkeyPatch, context: SourceContext) -> None:
    use_stdin(monkeypatch, b"a\n")
    source = lines("-")
    assert drain(source, context) == ["a"]
    with pytest.raises(ConfigError, match="already read"):
        source.read(context, None, None)
    assert source.describe() == "stdin"
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ConfigError, match="no standard input"):
        lines("-").read(context, None, None)


def test_a_resume_seeks_and_does_not_read_what_is_behind(tmp_path: Path, context: SourceContext) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a\n" + "".join(f"{number}\n" for number in range(1000)))
    _, cursor = cursor_after(csv_rows("rows.csv"), context, [500])
    assert cursor == {"count": 500, "offset": 2 + 10 * 2 + 90 * 3 + 400 * 4, "line": 501}
    reader = csv_rows("rows.csv").read(context, cursor, None)
    assert reader.take(1) == [{"a": "500"}]
    assert reader.cursor["line"] == 502
    reader.close()


def test_rows_appended_while_the_run_goes_on_are_not_read(tmp_path: Path, context: SourceContext) -> None:
    path = tmp_path / "rows"
    for make, first, more in ((csv_rows, "a\n1\n", "2\n"), (jsonl, "1\n\n", "2\n"), (lines, "1\n", "2\n")):
        path.write_text(first)
        source = make("rows")
        bound = source.bound(context)
        path.write_text(first + more)
        assert len(drain(source, context, upto=bound)) == 1
        assert len(drain(source, context)) == 2


def test_a_file_cut_or_rewritten_is_refused_on_resume(tmp_path: Path, context: SourceContext) -> None:
    path = tmp_path / "rows"
    path.write_text("one\ntwo\nthree\n")
    _, cursor = cursor_after(lines("rows"), context, [2])
    path.write_text("o\n")
    with pytest.raises(RunChanged, match="--accept-changes"):
        lines("rows").read(context, cursor, None)
    path.write_text("a longer one\ntwo\nthree\n")
    source = lines("rows")
    source.accept_changes = True
    assert drain(source, context, after=cursor) == ["three"]


def test_a_shorter_compressed_file_is_refused_on_resume(tmp_path: Path, context: SourceContext) -> None:
    pack(tmp_path / "rows.gz", b"1\n2\n3\n")
    _, cursor = cursor_after(lines("rows.gz"), context, [2])
    pack(tmp_path / "rows.gz", b"1\n")
    with pytest.raises(RunChanged, match="now ends after 1 items, but 2 were taken"):
        lines("rows.gz").read(context, cursor, None)


def test_the_fingerprint_sees_size_and_both_ends(tmp_path: Path, context: SourceContext) -> None:
    path, seen = tmp_path / "rows", []
    body = b"x" * (3 << 20)
    for content in (body, body + b"x", b"y" + body[1:], body[:-1] + b"y"):
        path.write_bytes(content)
        seen.append(tuple(lines("rows").fingerprint(context).items()))
    assert len(set(seen)) == 4
    assert dict(seen[0])["file"] == "rows"
    assert csv_rows("rows").fingerprint(context) != csv_rows("rows", delimiter=";").fingerprint(context)


CSV_ERRORS = [
    (b"", "rows:1: the file is empty; the first row must name the columns"),
    (b"a,b,a\n", "rows:1: the column 'a' is named twice"),
    (b"a,,c\n", "rows:1: column 2 has no name"),
    (b"\n\na, \n", "rows:3: column 2 has no name"),
    (b"a,b\n1,2\n1\n", "rows:3: too few fields: 1, but the header names 2"),
    (b'a,b\n1,2\n"1\n",2,3\n', "rows:3: too many fields: 3, but the header names 2"),
    (b'a,b\n1,2\n"1"x,2\n', "rows:3: is not the CSV that was expected"),
    (b'a,b\n1,2\n"1,2\n3,4\n', "rows:3: is not the CSV that was expected"),
    (b"a,b\n1,2\n1,\0\n", "rows:3: has a NUL character"),
    (b"a,b\n1,2\n1,\xff\n", "rows:3: is not utf-8 text"),
    ("a,b\n".encode("utf-16"), "rows:1: is not utf-8 text"),
]


@pytest.mark.parametrize(("content", "message"), CSV_ERRORS, ids=[message for _, message in CSV_ERRORS])
def test_a_bad_csv_row_is_named_by_file_and_line_after_the_rows_before_it(
    tmp_path: Path, context: SourceContext, content: bytes, message: str
) -> None:
    (tmp_path / "rows").write_bytes(content)
    source = csv_rows("rows")
    with pytest.raises(ConfigError, match=re.escape(message)):
        drain(source, context)
    assert source.total(context, None) is None
    if b"\n1,2\n" in content:
        reader = source.read(context, None, source.bound(context))
        assert reader.take(10) == [{"a": "1", "b": "2"}]
        assert reader.cursor == {"count": 1, "offset": 8, "line": 2}
        resumed = source.read(context, reader.cursor, None)
        with pytest.raises(ConfigError, match=re.escape(message)):
            resumed.take(1)
        reader.close()
        resumed.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1\n{'a': 1}\n", "rows:2:2: is no JSON value"),
        (b'1\n\n{"a": 1} x\n', "rows:3:10: is no JSON value"),
        (b"1\n" + b"9" * 5000 + b"\n", "rows:2:1: is no JSON value that can be read"),
        (b"1\n" + b"[" * 100_000 + b"\n", "rows:2:1: is no JSON value that can be read"),
        (b"1\n\xff\n", "rows:2: is not utf-8 text"),
    ],
)
def test_a_bad_json_line_is_named_by_file_line_and_column(
    tmp_path: Path, context: SourceContext, content: bytes, message: str
) -> None:
    (tmp_path / "rows").write_bytes(content)
    reader = jsonl("rows").read(context, None, None)
    assert reader.take(10) == [1]
    with pytest.raises(ConfigError, match=re.escape(message)):
        reader.take(10)
    reader.close()


def test_lines_keep_all_but_the_newline(tmp_path: Path, context: SourceContext) -> None:
    (tmp_path / "rows").write_bytes(b"\xef\xbb\xbf a \r\n\n\tb\r\x0b\n\0\nlast")
    assert drain(lines("rows"), context) == [" a ", "", "\tb\r\x0b", "\0", "last"]


def test_an_empty_file_has_no_lines(tmp_path: Path, context: SourceContext) -> None:
    for content in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "rows").write_bytes(content)
        assert drain(lines("rows"), context) == []
        assert lines("rows").total(context, len(content)) == 0
        assert drain(jsonl("rows"), context) == []


def test_long_fields_other_delimiters_and_encodings_are_read(tmp_path: Path, context: SourceContext) -> None:
    long = "x" * 1_000_000
    (tmp_path / "rows").write_bytes(f"a;é\n'{long}';\n\n".encode("latin-1"))
    source = csv_rows(tmp_path / "rows", delimiter=";", quotechar="'", encoding="latin-1")
    assert drain(source, context) == [{"a": long, "é": ""}]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lines("gone/rows"), "gone/rows: there is no such file; looked at {folder}/gone/rows (relative to {folder})"),
        (lambda: lines("sub"), "sub: is a directory, not a file; looked at {folder}/sub"),
        (lambda: lines("pipe"), "pipe: is no regular file but a pipe or device; pass '-'"),
        (lambda: lines("/gone"), "/gone: there is no such file; looked at /gone."),
        (lambda: lines("a\0b"), "cannot be read"),
        (lambda: lines("bad.zip"), "bad.zip: cannot be read"),
        (lambda: lines("bad.gz"), "bad.gz:1: cannot be read further"),
        (lambda: lines("cut.gz"), "cannot be read further"),
        (lambda: lines("two.zip"), "two.zip: has 2 files, not one; name one by member=: a.csv, b.csv"),
        (lambda: lines("two.zip", member="c.csv"), "two.zip: has no file 'c.csv'; it has a.csv, b.csv"),
    ],
)
def test_a_file_that_cannot_be_opened_says_where_it_was_looked_for(
    tmp_path: Path, context: SourceContext, make: Callable[[], FileSource], message: str
) -> None:
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("bad.zip", "bad.gz"):
        (tmp_path / name).write_bytes(b"neither")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(os.urandom(1000))[:500])
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", "1\n")
        archive.writestr("b.csv", "2\n")
    with pytest.raises(ConfigError, match=re.escape(message.format(folder=tmp_path))):
        drain(make(), context, upto=None)
    assert drain(lines("two.zip", member="b.csv"), context) == ["2"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: csv_rows("a", delimiter=""), "delimiter is ''; it must be one character"),
        (lambda: csv_rows("a", delimiter=";;"), "delimiter is ';;'"),
        (lambda: lines("a", encoding="klingon"), "no encoding 'klingon'"),
        (lambda: lines("a", encoding="hex"), "no encoding 'hex'"),
        (lambda: lines(""), "is no path"),
        (lambda: lines("a.csv", member="b"), "no .zip file"),
    ],
)
def test_a_bad_argument_is_refused_at_once(make: Callable[[], FileSource], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()


def test_a_long_file_is_estimated(tmp_path: Path, context: SourceContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchrun.sources.files._COUNT_S", -1)
    (tmp_path / "rows").write_text("abc\n" * 5000)
    assert lines("rows").total(context, 20_000) == 5000
    pack(tmp_path / "rows.gz", b"abc\n" * 5000)
    assert lines("rows.gz").total(context, None) is None
