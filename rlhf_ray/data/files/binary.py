"""The bytes and lines of a data file, whatever it is compressed with, in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from rlhf_ray.errors import RowError

# Of one row. Text takes up to four bytes a character, and exists twice while it is decoded.
MAX_ROW_BYTES = 128 << 20
# What decompression raises: EOFError of a file that is cut, the others of a corrupt one.
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_PASSED_OVER_BYTES = 1 << 20  # at a time


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
                    line = file.readline(_PASSED_OVER_BYTES)
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
