"""Digests of files, kept so that a data set of many gigabytes is not read to know it again.

A kept digest counts for a file of the same device, inode, size and times of content and of status.
The last cannot be set by a program, so that what was overwritten in place, or copied with its old
time, is read again. Times are as coarse as a file system's clock: as in git's index, the digest of
a file that was changed only just before it was read is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

_KEPT_ABOVE_BYTES = 64 << 20  # less is read in a tenth of a second
_SETTLED_NS = 10 * 10**9


def file_digest(path: Path, folder: Path) -> bytes:
    """SHA-256 of a file's content.

    Args:
        path: The file.
        folder: Where digests are kept.
    """
    with path.open("rb") as file:
        # Of the open file: on a network file system that asks the server.
        found = os.fstat(file.fileno())
        stamp = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        kept = folder / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"
        if found.st_size >= _KEPT_ABOVE_BYTES and (digest := _read(kept, stamp)):
            return digest
        began_ns = time.time_ns()
        digest = hashlib.file_digest(file, "sha256").digest()
    settled = max(found.st_mtime_ns, found.st_ctime_ns) < began_ns - _SETTLED_NS
    if found.st_size >= _KEPT_ABOVE_BYTES and settled:
        with contextlib.suppress(OSError):  # it costs a second reading, no more
            folder.mkdir(parents=True, exist_ok=True)
            # Half of it, which a killed job leaves, is no JSON and counts for nothing.
            kept.write_text(json.dumps({"stamp": stamp, "sha256": digest.hex()}))
    return digest


def _read(kept: Path, stamp: list[int]) -> bytes:
    """The digest that was kept for this very state of a file; empty where none was."""
    try:
        told = json.loads(kept.read_text())
        return bytes.fromhex(told["sha256"]) if told["stamp"] == stamp else b""
    except (OSError, ValueError, KeyError, TypeError):
        return b""
