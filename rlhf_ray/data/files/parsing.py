"""From a data file to its rows: the number of the line where a row begins, and its columns.

A file may be another than its name says, which its first bytes tell.

What is wrong with a row comes in the row's place, so that those after it can still be read; what is
wrong with a file comes after its last readable row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.config.checks.data_files import ARROW_FORMATS, COMPRESSIONS, data_format
from rlhf_ray.data.files import json_rows, tables
from rlhf_ray.data.files.reading import READ_ERRORS, open_bytes
from rlhf_ray.data.row import NumberedRows
from rlhf_ray.errors import RowError

_PARSERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".jsonl": json_rows.read_lines,
    ".ndjson": json_rows.read_lines,
    ".csv": tables.read_csv,
    ".tsv": tables.read_tsv,
    ".parquet": tables.read_parquet,
    ".arrow": tables.read_arrow,
}
_HEAD_BYTES = 1024


def parse(path: Path, *, separator: str, key: str = "") -> NumberedRows:
    """Yield `(line, columns)` of each row of a file, whose name says what it is (`data_format`).

    Lines count from 1; where a row has no line, in parquet say, its number stands for it. The texts
    of a `.txt` file, between separators, are a column `text`. The rows of a `.json` file that is
    one object are under `key`.
    """
    line = 0
    try:
        if (kind := _another_kind(path)) is not None:
            yield 1, RowError(f"{path}:1", kind.reason, kind.advice(path))
            return
        for line, columns in _rows(path, separator, key):
            yield line, columns
    except READ_ERRORS as error:
        yield line + 1, RowError(f"{path}:{line + 1}", "cannot be read", str(error))


def _rows(path: Path, separator: str, key: str) -> NumberedRows:
    match data_format(path.name):
        case ".txt":
            return tables.read_texts(path, separator)
        case ".json":
            return json_rows.read(path, key)
        case format_:
            return _PARSERS[format_](path)


def _another_kind(path: Path) -> FileKind | None:
    """What the file is, where it is plainly not what its name says."""
    suffix = path.suffix.lower()
    kind = kind_of_file(path)
    if kind is not None and kind.suffix != suffix:
        return kind
    if kind is None or suffix not in COMPRESSIONS or suffix in ARROW_FORMATS:
        return None
    with open_bytes(path) as file:
        return kind_of(file.read(_HEAD_BYTES))


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


def kind_of(head: bytes) -> FileKind | None:
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
            return kind_of(file.read(_HEAD_BYTES))
    except OSError:
        return None
