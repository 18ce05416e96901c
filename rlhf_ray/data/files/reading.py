"""What a data file is and holds, in bounded memory: its kind, bytes, lines and JSON values.

A file may be another than its name says, which its first bytes tell.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from rlhf_ray.config.checks.data_files import ARROW_FORMATS, COMPRESSIONS
from rlhf_ray.data.json_values import DECODER, LENIENT_DECODER, depth_fault, fault_of
from rlhf_ray.errors import RowError

# Of one row. Text takes up to four bytes a character, and exists twice while it is decoded.
MAX_ROW_BYTES = 128 << 20
# What decompression raises: EOFError of a file that is cut, the others of a corrupt one.
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_READ_BYTES = 1 << 20  # at a time
_HEAD_BYTES = 1024  # by which the kind of a file is told
_SPACE = re.compile(r"[ \t\r\n]*")
_LONGEST_TOKEN = 16  # of JSON, but for strings and numbers; \ud800\udc00 is one of 12


def open_bytes(path: Path) -> IO[bytes]:
    """The content of a file, decompressed as its name says."""
    match path.suffix.lower():
        case ".gz":
            return cast(IO[bytes], gzip.open(path, "rb"))
        case ".bz2":
            return cast(IO[bytes], bz2.open(path, "rb"))
        case ".xz":
            return cast(IO[bytes], lzma.open(path, "rb"))
        case ".zst":
            import pyarrow as pa

            return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
        case _:
            return path.open("rb")


def lines(path: Path) -> Iterator[bytes | None]:
    """Lines with their ends, the first without a byte order mark; None for one that is too long.

    Only a newline ends one: JSON strings may hold other separators.
    """
    with open_bytes(path) as file:
        mark = BYTE_ORDER_MARK
        while line := file.readline(MAX_ROW_BYTES):
            if len(line) < MAX_ROW_BYTES or line.endswith(b"\n"):
                yield line.removeprefix(mark)
            else:
                while line and not line.endswith(b"\n"):
                    line = file.readline(_READ_BYTES)
                yield None
            mark = b""


def decode(raw: bytes) -> str:
    """Bytes that are not UTF-8 become lone surrogates, for `utf8_fault` to find row by row."""
    return raw.decode("utf-8", errors="surrogateescape")


def utf8_fault(text: str, where: str) -> RowError | None:
    """What is wrong with text that `decode` made of bytes."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return not_utf8(ord(text[error.start]) - 0xDC00, where)
    return None


def not_utf8(byte: int, where: str) -> RowError:
    """The error of a byte that is not UTF-8."""
    advice = "where the file is of Windows, `iconv -f cp1252 -t utf-8` mends it"
    return RowError(where, "not UTF-8", f"byte 0x{byte:02x}; {advice}")


def too_long(where: str) -> RowError:
    """The error of a row that does not end."""
    return RowError(where, "row too long", f"more than {MAX_ROW_BYTES >> 20} MiB")


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """A kind of file that is no text of a data set.

    Attributes:
        what: In words.
        remedy: What to do, `{path}` being the file and `{named}` its right name.
        suffix: That such a file has among data; empty where such files are not served.
        reason: Under which such a file is counted.
    """

    what: str
    remedy: str
    suffix: str = ""
    reason: str = "another kind of file"

    def advice(self, path: Path) -> str:
        """What it is and what to do, in one line."""
        keeps_suffix = self.suffix in COMPRESSIONS and path.suffix.lower() not in COMPRESSIONS
        named = (path.name if keeps_suffix else path.stem) + self.suffix
        return f"this is {self.what}: {self.remedy.format(path=path.name, named=named)}"


def _served(what: str, suffix: str) -> FileKind:
    return FileKind(what=what, remedy="call it {named}", suffix=suffix)


def _archive(what: str) -> FileKind:
    return FileKind(what=what, remedy="unpack it, and name the folder")


def _utf(encoding: str) -> FileKind:
    return FileKind(
        what=f"text in {encoding}",
        reason="not UTF-8",
        remedy=f"`iconv -f {encoding} -t UTF-8 {{path}} > utf8_{{path}}` writes it as UTF-8",
    )


_UNSERVED = "convert it to one that is served, such as JSON lines or parquet"
_LINKED = FileKind(
    what="a pointer of Git LFS, not the file it stands for",
    remedy="`git lfs pull` in its repository fetches that",
)
_PAGE = FileKind(what="a web page", remedy="the download failed; fetch the file itself")
_TAR = _archive("a tar archive")

_MAGIC = (
    (b"\x1f\x8b", _served("compressed by gzip", ".gz")),
    (b"BZh", _served("compressed by bzip2", ".bz2")),
    (b"\xfd7zXZ\x00", _served("compressed by xz", ".xz")),
    (b"\x28\xb5\x2f\xfd", _served("compressed by zstd", ".zst")),
    (b"PAR1", _served("a parquet file", ".parquet")),
    (b"ARROW1", _served("an Arrow file", ".arrow")),
    (b"\xff\xff\xff\xff", _served("an Arrow stream", ".arrow")),
    (b"PK\x03\x04", _archive("a zip archive")),
    (b"7z\xbc\xaf\x27\x1c", _archive("a 7z archive")),
    (b"Rar!\x1a\x07", _archive("a rar archive")),
    (b"\xff\xfe\x00\x00", _utf("UTF-32")),
    (b"\x00\x00\xfe\xff", _utf("UTF-32")),
    (b"\xff\xfe", _utf("UTF-16")),
    (b"\xfe\xff", _utf("UTF-16")),
    (b"version https://git-lfs", _LINKED),
    (b"SQLite format 3\x00", FileKind(what="an SQLite database", remedy=_UNSERVED)),
    (b"\x89HDF", FileKind(what="an HDF5 file", remedy=_UNSERVED)),
    (b"Obj\x01", FileKind(what="an Avro file", remedy=_UNSERVED)),
    (b"FEA1", FileKind(what="a feather file of the first version", remedy=_UNSERVED)),
    (b"%PDF-", FileKind(what="a PDF document", remedy=_UNSERVED)),
    (b"\x89PNG", FileKind(what="a PNG image", remedy=_UNSERVED)),
    (b"\xff\xd8\xff", FileKind(what="a JPEG image", remedy=_UNSERVED)),
    (b"\x80\x04\x95", FileKind(what="a Python pickle", remedy=_UNSERVED)),
)
_PAGE_BEGINNINGS = (b"<!doctype html", b"<html", b"<?xml", b"<head")


def _kind_of(head: bytes) -> FileKind | None:
    """The kind of file that begins with these bytes, `_HEAD_BYTES` of them; None for text."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return _TAR
    # The first two characters of any text that is data are of one byte each.
    for first, encoding in ((0, "UTF-16LE"), (1, "UTF-16BE")):
        if head[1 - first : 4 : 2] == b"\0\0" and b"\0" not in head[first:4:2]:
            return _utf(encoding)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower().startswith(_PAGE_BEGINNINGS):
        return _PAGE
    return None


def kind_of_file(path: Path) -> FileKind | None:
    """The kind of a file that is there; None for text, and for what cannot be read."""
    try:
        with path.open("rb") as file:
            return _kind_of(file.read(_HEAD_BYTES))
    except OSError:
        return None


def another_kind(path: Path) -> FileKind | None:
    """What the file is, where it is plainly not what its name says."""
    suffix = path.suffix.lower()
    kind = kind_of_file(path)
    if kind is not None and kind.suffix != suffix:
        return kind
    if kind is None or suffix not in COMPRESSIONS or suffix in ARROW_FORMATS:
        return None
    with open_bytes(path) as file:
        return _kind_of(file.read(_HEAD_BYTES))


class JsonWindow:
    """Reads on from a place in a JSON text.

    Attributes:
        name: Of the file.
        line: Of the place, from 1.
        is_broken: Nobody can say where a next value begins.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        """Begin at the start of `file`, which errors call `name`."""
        self._file, self.name = file, name
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._text, self._at = "", 0
        self._column_before = 0  # of the line that the text held begins in
        self._is_whole = False
        self.line, self.is_broken = 1, False

    @property
    def where(self) -> str:
        """File and line of the place."""
        return f"{self.name}:{self.line}"

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        following = self._text[self._at : self._at + 1]
        if following and following not in " \t\r\n":  # the usual case, of which there are many
            return following
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._go_to(space.end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more():
                return ""

    def take(self, character: str) -> bool:
        """Pass over a character, if it is the next."""
        if self.peek() != character:
            return False
        self._at += 1
        return True

    def wrong(self, wanted: str) -> RowError:
        """The error of something else than `wanted` at the place."""
        self.is_broken = True
        found = repr(self._text[self._at : self._at + 20]) if self.peek() else "the end"
        return RowError(self.where, "not JSON", f"wanted {wanted}, got {found}")

    def value(self) -> Any | RowError:
        """The next value, or what is wrong with it."""
        self.peek()
        where, decoder, refused = self.where, DECODER, None
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._is_cut(error) and self._read_more():
                    continue
                return self._broken(self._syntax_error(error, where))
            except RecursionError as error:
                return self._broken(fault_of(error, where))
            except ValueError as error:
                refused, decoder = fault_of(error, where), LENIENT_DECODER
                continue
            if end < len(self._text) or not self._read_more():
                break
        text = self._text[self._at : end]
        self._go_to(end)
        return refused or utf8_fault(text, where) or depth_fault(value, text, where) or value

    def _broken(self, fault: RowError) -> RowError:
        self.is_broken = True
        return too_long(fault.where) if self._is_full else fault

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether more text may mend it."""
        is_near_end = error.pos > len(self._text) - _LONGEST_TOKEN
        return is_near_end or error.msg.startswith("Unterminated")

    def _syntax_error(self, error: json.JSONDecodeError, where: str) -> RowError:
        below = self._text.count("\n", self._at, error.pos)
        before = self._column_before if error.lineno == 1 else 0
        of_line = f" of line {self.line + below}" if below else ""
        return RowError(where, "not JSON", f"{error.msg} at column {error.colno + before}{of_line}")

    @property
    def _is_full(self) -> bool:
        return len(self._text) - self._at >= MAX_ROW_BYTES

    def _read_more(self) -> bool:
        """Hold more text, as much again; whether there is any and room for it."""
        held = self._text[self._at :]
        more = ""
        while not more and not self._is_whole and not self._is_full:
            raw = self._file.read(min(max(_READ_BYTES, len(held)), MAX_ROW_BYTES))
            self._is_whole = not raw
            more = self._decode(raw, final=self._is_whole)
        if not more:
            return False
        newline = self._text.rfind("\n", 0, self._at)
        self._column_before = (
            self._at - newline - 1 if newline >= 0 else self._column_before + self._at
        )
        self._text, self._at = held + more, 0
        return True

    def _go_to(self, at: int) -> None:
        self.line += self._text.count("\n", self._at, at)
        self._at = at
