"""Lines out of files, compressed files and stdin, and where each one stood."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import hashlib
import io
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from batchrun.errors import ConfigError

_MIB = 1 << 20
_BUFFER = 256 * 1024


class ByteLines(Protocol):
    """What a feed reads from: a binary file, or something that looks like one."""

    def readline(self) -> bytes: ...
    def close(self) -> None: ...


class LineFeed(Iterator[str]):
    """Iterates over decoded lines, each with its newline, and keeps where it stands.

    name: the file as the user named it, for messages. text: its encoding, other than UTF-8 only where a newline
    is one byte. offset, line: the bytes and lines read so far. upto: lines that begin at this offset or behind
    it are not for us. place: (offset, line) behind the last *record*, set by ``mark``.
    """

    def __init__(self, name: str, stream: ByteLines, encoding: str, upto: int | None = None) -> None:
        self.name = name
        self.offset = 0
        self.line = 0
        self.upto = upto
        self.refuses_nul = False
        self.place = (0, 0)
        self.stream = stream
        self._encoding = encoding

    def __next__(self) -> str:
        try:
            raw = self.stream.readline()
            self.line += 1
            self.offset += len(raw)
            if self.line == 1 and self._encoding == "utf-8":
                raw = raw.removeprefix(codecs.BOM_UTF8)
                if not raw and self.offset:  # a byte order mark and nothing else
                    raise StopIteration
            if not raw:
                self.line -= 1
                raise StopIteration
            text = raw.decode(self._encoding)
        except UnicodeError as error:
            raise self.error(
                f"is not {self._encoding} text ({error}). Name the right encoding, such as encoding='latin-1'."
            ) from None
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise self.error(
                f"cannot be read further: {str(error) or type(error).__name__}. The file may be cut off or damaged."
            ) from error
        if self.refuses_nul and "\0" in text:
            raise self.error("has a NUL character, so it is not CSV text in this encoding; perhaps encoding='utf-16'.")
        return text

    def is_within(self) -> bool:
        """True while the next line begins before ``upto``."""
        return self.upto is None or self.offset < self.upto

    def mark(self) -> None:
        """Call this before a record is handed out: the cursor then points behind it."""
        self.place = (self.offset, self.line)

    def error(self, what: str, line: int | None = None, column: int | None = None) -> ConfigError:
        """An error at a line (the last one read) and perhaps a column, both counted from 1."""
        at = f":{column}" if column is not None else ""
        return ConfigError(f"{self.name}:{max(1, self.line if line is None else line)}{at}: {what}")

    def close(self) -> None:
        self.stream.close()


class _Transcoded:
    """Lines of an encoding whose newline is not one byte (UTF-16), as UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._text = io.TextIOWrapper(stream, encoding, newline="\n")

    def readline(self) -> bytes:
        return self._text.readline().encode("utf-8", "surrogatepass")

    def close(self) -> None:
        self._text.close()


class _Borrowed:
    """The process's stdin: read, but not closed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readline(self) -> bytes:
        return self._stream.readline()

    def close(self) -> None:
        """It is not ours to close."""


def known_encoding(encoding: str) -> tuple[str, bool]:
    """Return (the encoding's usual name, whether a newline is one byte in it). Raises ConfigError for an unknown one."""
    try:
        name = codecs.lookup(encoding).name
        is_bytewise = '\n\r,"'.encode(encoding) == b'\n\r,"'
    except LookupError:
        raise ConfigError(f"encoding: there is no encoding {encoding!r}; such as 'utf-8', 'latin-1' or 'cp1252'.") from None
    return ("utf-8", True) if name == "utf-8-sig" else (name, is_bytewise)


def find_file(path: str, folder: Path) -> Path:
    """Return the absolute path. Raises ConfigError unless it is a regular file, with the path that was looked at."""
    full = Path(path) if Path(path).is_absolute() else folder.absolute() / path
    where = f"looked at {full}" + ("" if Path(path).is_absolute() else f" (relative to {folder.absolute()})")
    try:
        mode = full.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: there is no such file; {where}.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}; {where}.") from None
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{path}: is a directory, not a file; {where}.")
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path}: is no regular file but a pipe or device; pass '-' and send it to standard input; {where}.")
    return full


def is_compressed(path: str) -> bool:
    return path.lower().endswith((".gz", ".zip"))


def open_feed(path: str, full: Path, encoding: str, member: str | None, upto: int | None) -> LineFeed:
    """Open a file, unpacking .gz and .zip. Raises ConfigError when it cannot be opened."""
    try:
        stream = _open(path, full, member)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # RuntimeError: encrypted
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}; looked at {full}.") from error
    return _feed(path, stream, encoding, upto)


def _feed(name: str, stream: BinaryIO, encoding: str, upto: int | None = None) -> LineFeed:
    usual, is_bytewise = known_encoding(encoding)
    if is_bytewise:
        return LineFeed(name, stream, usual, upto)
    return LineFeed(name, _Transcoded(stream, encoding), "utf-8")


def _open(path: str, full: Path, member: str | None) -> BinaryIO:
    if path.lower().endswith(".gz"):
        return cast(BinaryIO, io.BufferedReader(gzip.open(full, "rb"), _BUFFER))
    if path.lower().endswith(".zip"):
        return _open_member(path, full, member)
    return full.open("rb", buffering=_BUFFER)


def _open_member(path: str, full: Path, member: str | None) -> BinaryIO:
    # The opened member keeps the archive's file open by itself (zipfile counts references to it).
    with zipfile.ZipFile(full) as archive:
        names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
        if member is None and len(names) != 1:
            listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise ConfigError(f"{path}: has {len(names)} files, not one; name one by member=: {listed or 'it is empty'}.")
        chosen = names[0] if member is None else member
        if chosen not in archive.namelist():
            raise ConfigError(f"{path}: has no file {chosen!r}; it has {', '.join(names[:10]) or 'none'}.")
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, archive.open(chosen)), _BUFFER))


def open_stdin(encoding: str) -> LineFeed:
    """A feed of standard input. Raises ConfigError where the process has none."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise ConfigError("-: this process has no standard input to read items from.")
    return _feed("stdin", cast(BinaryIO, _Borrowed(stream)), encoding)


def go_to(feed: LineFeed, offset: int, line: int) -> bool:
    """Move a feed over a plain file to where a line begins; False, unmoved, where no line begins there."""
    stream = cast(BinaryIO, feed.stream)
    here = stream.tell()
    size = stream.seek(0, io.SEEK_END)
    if 0 < offset <= size:
        stream.seek(offset - 1)
        if stream.read(1) == b"\n" or offset == size:
            feed.offset, feed.line, feed.place = offset, line, (offset, line)
            return True
    stream.seek(here)
    return offset == feed.offset


def content_hash(full: Path, size: int) -> str:
    """A hash of the first and the last MiB."""
    state = hashlib.blake2b(digest_size=16)
    with contextlib.closing(full.open("rb")) as stream:
        state.update(stream.read(_MIB))
        if size > _MIB:
            stream.seek(max(_MIB, size - _MIB))
            state.update(stream.read(_MIB))
    return state.hexdigest()
