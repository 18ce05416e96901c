"""A hundred files that are broken as files break, each with what must be said of it.

A file is read in a folder of its own, before one that is as it should be.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A file, where it is broken and what the error says.

    Attributes:
        line: Of the first fault; 0 where the file as a whole is refused, without a line.
        says: Part of the error.
        kept: Rows that are read nevertheless.
    """

    name: str
    content: bytes
    line: int
    says: str
    kept: int = 0


def _json_lines(num_rows: int) -> bytes:
    return b"".join(b'{"text": "row %d"}\n' % number for number in range(num_rows))


def _table(num_rows: int = 3) -> pa.Table:
    return pa.table({"text": [f"row {number}" for number in range(num_rows)]})


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="none", use_dictionary=False)
    return file.getvalue()


def _arrow(table: pa.Table, open_writer: Any = pa.ipc.new_stream) -> bytes:
    file = io.BytesIO()
    with open_writer(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return file.getvalue()


def _zip(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, _json_lines(2))
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jsonl"))
    return file.getvalue()


def _zstd(raw: bytes) -> bytes:
    return bytes(pa.compress(raw, codec="zstd", asbytes=True))


def _nested(depth: int) -> bytes:
    return b'{"text": "t", "x": ' + b"[" * depth + b"]" * depth + b"}\n"


GOOD = b'{"text": "good"}\n'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><title>404 Not Found</title></html>\n"
MANY = _json_lines(20_000)
PRETTY = json.dumps([{"text": "row 0"}, {"text": "row 1"}], indent=2).encode()
CUT = "ompressed"  # the libraries' words begin so or with a capital
TEXT = '{"text": "caf\u00e9"}\n'

ENCODINGS = [
    Broken(name=f"a.{format_}", content=TEXT.encode(encoding), line=1, says=says)
    for format_ in ("jsonl", "json", "csv", "txt")
    for encoding, says in (
        ("utf-16", "not UTF-8: this is text in UTF-16: `iconv -f UTF-16 -t UTF-8 a."),
        ("utf-32", "not UTF-8: this is text in UTF-32"),
        ("latin-1", "not UTF-8: byte 0xe9; where the file is of Windows, `iconv -f cp1252"),
    )
    if (format_, encoding) != ("csv", "latin-1")
] + [
    Broken(name="a.csv", content=b"text\n\x93quoted\x94\nplain\n", line=2, kept=1,
           says="not UTF-8: byte 0x93"),
    Broken(name="a.tsv", content="text\tn\ncaf\u00e9\t1\n".encode("cp1252"), line=2,
           says="not UTF-8: byte 0xe9"),
    Broken(name="a.jsonl", content=TEXT.encode("utf-16-le"), line=1, says="in UTF-16LE"),
    Broken(name="a.csv", content="text,n\na,1\n".encode("utf-16-le"), line=1, says="UTF-16LE"),
    Broken(name="a.csv", content="text,n\na,1\n".encode("utf-16-be"), line=1, says="UTF-16BE"),
    Broken(name="a.csv", content=b"text,n\na\x00,1\nb,2\n", line=2, kept=1,
           says="not text: it holds a NUL byte"),
    Broken(name="a.jsonl", content=GOOD + b'{"text": "\xed\xa0\x80"}\n' + GOOD, line=2, kept=2,
           says="not UTF-8: byte 0xed"),
    Broken(name="a.jsonl", content=GOOD + b"\xef\xbb\xbf" + GOOD, line=2, kept=1,
           says="not JSON: Expecting value at column 1"),
]  # fmt: skip

CUT_OR_FALSE = [
    Broken(name=f"a.jsonl.{suffix}", content=pack(MANY)[:size], line=0, kept=-1, says=says)
    for suffix, pack in (
        ("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", _zstd)
    )
    for size, says in ((-2, CUT), (40, CUT))
] + [
    Broken(name=f"a.jsonl.{suffix}", content=GOOD, line=1, says="cannot be read: ")
    for suffix in ("gz", "bz2", "xz", "zst")
] + [
    Broken(name="a.jsonl.gz", content=gzip.compress(MANY)[:-8] + bytes(8), line=20_001, kept=20_000,
           says="cannot be read: CRC check failed"),
    Broken(name="a.jsonl.gz", content=_zstd(MANY), line=1,
           says="this is compressed by zstd: call it a.jsonl.zst"),
    Broken(name="a.jsonl.gz", content=gzip.compress(_tar()), line=1, says="this is a tar archive"),
    Broken(name="a.json.gz", content=gzip.compress(PAGE), line=1, says="this is a web page"),
    Broken(name="a.parquet", content=_parquet(_table())[:-30], line=1, says="not a parquet file"),
    Broken(name="a.parquet", content=b"PAR1" + bytes(200), line=1, says="not a parquet file"),
    Broken(name="a.parquet", content=_parquet(_table())[:-4] + b"PARQ", line=1,
           says="not a parquet file"),
    Broken(name="a.parquet", content=b"", line=1, says="not a parquet file"),
    Broken(name="a.parquet", content=GOOD, line=1, says="not a parquet file"),
    Broken(name="a.parquet", content=LFS, line=1, says="`git lfs pull`"),
    Broken(name="a.parquet", content=_arrow(_table()), line=1,
           says="this is an Arrow stream: call it a.arrow"),
    Broken(name="a.parquet", content=_parquet(_table()).replace(b"row 1", b"row\xff1"), line=2,
           says="not UTF-8", kept=2),
    Broken(name="a.parquet", content=_parquet(pa.Table.from_arrays([pa.array(["a"])] * 2,
           names=["text", "text"])), line=1, says="a column's name appears twice: 'text'"),
    Broken(name="a.parquet", content=_parquet(pa.table({"text": pa.array([], pa.string())})),
           line=0, says="no rows"),
    Broken(name="a.arrow", content=_arrow(_table())[:-60], line=3, says="cannot be read: ",
           kept=2),
    Broken(name="a.arrow", content=_arrow(_table())[:-4], line=4, says="cannot be read: ", kept=3),
    Broken(name="a.arrow", content=_arrow(_table())[:-8], line=4, says="it has no end", kept=3),
    Broken(name="a.arrow", content=_arrow(_table())[:60], line=1, says="not an Arrow file"),
    Broken(name="a.arrow", content=_arrow(_table(), pa.ipc.new_file)[:-9], line=1,
           says="not an Arrow file"),
    Broken(name="a.arrow", content=_arrow(_table()).replace(b"row 1", b"row\xff1"), line=2,
           says="not UTF-8", kept=2),
    Broken(name="a.arrow", content=b"FEA1" + bytes(99), line=1, says="feather file of the first"),
    Broken(name="a.arrow", content=_parquet(_table()), line=1, says="a parquet file"),
    Broken(name="a.arrow", content=b"", line=1, says="not an Arrow file"),
    Broken(name="a.arrow", content=b"\xff\xff\xff\xff\x00\xff\xff\x7f" + bytes(99), line=1,
           says="not an Arrow file"),
]  # fmt: skip

OTHER_KINDS = [
    Broken(name=name, content=content, line=1, says=says)
    for name, content, says in (
        ("a.json", PAGE, "this is a web page: the download failed; fetch the file itself"),
        ("a.jsonl", b"<html>", "this is a web page"),
        ("a.csv", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
        ("a.jsonl", LFS, "this is a pointer of Git LFS"),
        ("a.csv", LFS, "this is a pointer of Git LFS"),
        ("a.txt", LFS, "this is a pointer of Git LFS"),
        ("a.jsonl", gzip.compress(GOOD), "compressed by gzip: call it a.jsonl.gz"),
        ("a.json", bz2.compress(GOOD), "this is compressed by bzip2"),
        ("a.txt", lzma.compress(GOOD), "this is compressed by xz"),
        ("a.jsonl", _parquet(_table()), "a parquet file: call it a.parquet"),
        ("a.json", _arrow(_table(), pa.ipc.new_file), "this is an Arrow file"),
        ("a.jsonl", _zip("a.jsonl"), "this is a zip archive: unpack it, and name the folder"),
        ("a.csv", _zip("xl/workbook.xml"), "this is a zip archive"),
        ("a.txt", _tar(), "this is a tar archive"),
        ("a.json", b"SQLite format 3\x00" + bytes(99), "this is an SQLite database"),
        ("a.txt", b"%PDF-1.7\n%\xe2\xe3", "this is a PDF document"),
        ("a.json", b"\x80\x04\x95\x10\x00", "this is a Python pickle"),
        ("a.csv", b"\x89PNG\r\n\x1a\n", "this is a PNG image"),
    )
]

ROWS = [
    Broken(name="a.jsonl", content=b"", line=0, says="no rows"),
    Broken(name="a.jsonl", content=b"\xef\xbb\xbf", line=0, says="no rows"),
    Broken(name="a.json", content=b" \n ", line=0, says="no rows"),
    Broken(name="a.json", content=b"[]", line=0, says="no rows"),
    Broken(name="a.csv", content=b"text,n\r\n", line=0, says="no rows"),
    Broken(name="a.txt", content=b"\n\n", line=0, says="no rows"),
    Broken(name="a.jsonl", content=GOOD + b"null\n" + GOOD, line=2, kept=2,
           says="not a JSON object: got NoneType"),
    Broken(name="a.jsonl", content=GOOD + b'"text"\n7\n[1]\ntrue\n', line=2, kept=1,
           says="not a JSON object: got str"),
    Broken(name="a.json", content=b"7", line=1, says="not a JSON object: got int"),
    Broken(name="a.json", content=b'[[{"text": "t"}]]', line=1, says="got list"),
    Broken(name="a.jsonl", content=GOOD + _nested(100_000) + GOOD, line=2, kept=2,
           says="nested too deeply"),
    Broken(name="a.json", content=b"[" * 100_000, line=1, says="nested too deeply"),
    Broken(name="a.jsonl", content=GOOD + b'{"text": "a\x00b"}\n', line=2, kept=1,
           says="not JSON: Invalid control character at at column 12"),
    Broken(name="a.txt", content=b"one<|endoftext|>t\x00wo<|endoftext|>three", line=1, kept=2,
           says="not text: it holds a NUL byte"),
    Broken(name="a.jsonl", content=GOOD + b'{"text": "a", "text": "b"}\n', line=2, kept=1,
           says="a key appears twice: 'text' is 'a', and 'b'"),
    Broken(name="a.jsonl", content=GOOD + b'{"text": "a", "x": [{"k": 1, "k": 2}]}\n', line=2,
           kept=1, says="a key appears twice: 'k' is 1, and 2"),
    Broken(name="a.json", content=b'[{"text": "a", "text": "b"},\n{"text": "c"}]', line=1, kept=1,
           says="a key appears twice"),
    Broken(name="a.jsonl", content=GOOD + b'{"n": ' + b"9" * 10_000 + b"}\n", line=2, kept=1,
           says="not JSON: Exceeds the limit (4300 digits)"),
    Broken(name="a.json", content=b'[{"n": ' + b"9" * 10_000 + b'}, {"text": "t"}]', line=1,
           kept=1, says="not JSON: Exceeds the limit (4300 digits)"),
    Broken(name="a.jsonl", content=b'{\n  "text": "row"\n}\n{\n  "text": "row"\n}\n', line=1,
           says="not JSON: Expecting property name enclosed in double quotes at column 2: the row "
           "does not end in this line; `jq -c . FILE` writes one row a line"),
    Broken(name="a.jsonl", content=GOOD + b'{"text": "cut of', line=2, kept=1,
           says="Unterminated string starting at at column 10: the row does not end"),
    Broken(name="a.jsonl", content=PRETTY[:-12], line=5, kept=1, says="not JSON: Unterminated"),
    Broken(name="a.jsonl", content=b"{'text': 'python'}\n" + GOOD, line=1, kept=1,
           says="not JSON: Expecting property name"),
    Broken(name="a.json", content=b'[{"text": "t"},]', line=1, kept=1,
           says="not JSON: Expecting value at column 16"),
    Broken(name="a.json", content=b'[\n{"text": "t"} // a note\n]', line=2, kept=1,
           says="wanted ',' or ']' after a row, got '// a note"),
    Broken(name="a.json", content=b'{\n"text": "t",\n}\n', line=3,
           says="not JSON: Expecting value at column 1"),
    Broken(name="a.csv", content=b'text,n\na,1\n"never closed,2\nb,3\n', line=3, kept=1,
           says="not CSV: unexpected end of data"),
    Broken(name="a.csv", content=b"text,n\na,1\nb;2\nc\t3\nd,4\n", line=3, kept=2,
           says="wrong number of fields: a row must have 2, got 1"),
    Broken(name="a.csv", content=b"text,n\na,1,extra\nb,2\n", line=2, kept=1,
           says="a row must have 2, got 3"),
    Broken(name="a.csv", content=b"text,text\na,1\n", line=1,
           says="a column's name appears twice: 'text'"),
    Broken(name="a.csv", content=b'text,n\na,1\n"b" c,2\nd,3\n', line=3, kept=2, says="not CSV"),
    Broken(name="a.tsv", content=b"text,n\na,1\n\"b\" c,2\n", line=3, kept=1, says="not CSV"),
]  # fmt: skip

BROKEN = [*ENCODINGS, *CUT_OR_FALSE, *OTHER_KINDS, *ROWS]
