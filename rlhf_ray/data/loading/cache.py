"""Tokenized rows on disk, found again by the content of everything that they were made from.

A folder for each: the rows as an Arrow file, which is mapped and never read whole, and a report in
JSON with the file's checksum. Nothing in them can run code. Jobs that write the same rows at once
each write their own, and the first to finish is kept.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlhf_ray.config.data import DataConfig, SourceConfig
from rlhf_ray.data.chat.borders import Tokenizer
from rlhf_ray.data.examples.tokenization import T, Tokenization
from rlhf_ray.data.files.local import LocalData
from rlhf_ray.data.files.sources import HubData
from rlhf_ray.data.rows.report import LeftOut, RowReport
from rlhf_ray.data.rows.store import ROWS_FILE, RowFile
from rlhf_ray.errors import DataError

logger = logging.getLogger(__name__)

_SMALL_BYTES = 1 << 20  # reading so little again costs less than keeping it
_REPORT_FILE = "report.json"
_KEPT_S = 90 * 86_400.0  # without being taken; a job that runs has mapped them
# What of this project decides about tokens, below its package.
_SOURCES = (
    "data/**/*.py", "config/data.py", "config/checks/data_files.py", "config/checks/references.py",
    "types.py",
)  # fmt: skip
_KEPT_ABOVE_BYTES = 64 << 20  # less is read in a tenth of a second
_SETTLED_NS = 10 * 10**9


def cache_folder(
    data: LocalData | HubData, source: SourceConfig, config: DataConfig, job: Tokenization[T]
) -> Path | None:
    """Where the rows of a data set are kept; None for data too small to be worth it.

    Raises:
        DataError: There is no such split, or a file cannot be read.
    """
    try:
        root = Path(os.environ.get("RLHF_RAY_CACHE") or "~/.cache/rlhf-ray").expanduser()
    except RuntimeError:
        logger.warning("there is no home folder: set RLHF_RAY_CACHE to keep tokenized rows")
        return None
    digest = hashlib.sha256(_code())
    for part in decided_by(source, config, job):
        digest.update(part.encode() + b"\0")
    try:
        match data:
            case HubData() as hub:
                digest.update(hub.kept(source.split)._fingerprint.encode())
            case LocalData() as local:
                by_split = local.named_by(source.split)
                files = [file.path for named in by_split.values() for file in named]
                if sum(file.stat().st_size for file in files) < _SMALL_BYTES:
                    return None
                for file in files:  # their names say how they are read, and name their rows
                    digest.update(bytes(file) + b"\0" + file_digest(file, root / "files"))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return root / "rows" / digest.hexdigest()


def read(folder: Path, schema: pa.Schema) -> tuple[Any, RowReport] | None:
    """What `keep` left there, a mapped `datasets.Dataset` of `schema`, and what it was made of.

    None where nothing can be read. What is damaged is removed.
    """
    from datasets import Dataset

    try:
        stored = json.loads((folder / _REPORT_FILE).read_text())
        if _checksum(folder / ROWS_FILE) != stored["checksum"]:
            raise ValueError("its checksum is wrong")
        dataset = Dataset.from_file(str(folder / ROWS_FILE))
        dataset.data.validate()
        if not dataset.data.schema.equals(schema):
            raise ValueError(f"its columns are {dataset.data.schema.names}")
        left_out = {
            name: LeftOut(**each) for name, each in stored["report"].pop("left_out").items()
        }
        report = RowReport(**stored["report"], left_out=left_out)
    except (
        FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        if folder.is_dir():
            logger.warning("%s: ignored, and made anew: %s", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
        return None
    except OSError as error:  # which says nothing of what is there
        logger.warning("%s: tokenized rows cannot be read: %s", folder, error)
        return None
    with contextlib.suppress(OSError):
        os.utime(folder / _REPORT_FILE)  # when they were last taken
    return dataset, report


def keep(file: RowFile, folder: Path, report: RowReport) -> None:
    """Give a file of rows its place; it is there whole or not at all.

    Rows that no job has taken for some months make room.
    """
    try:
        stored = {"checksum": _checksum(file.path), "report": asdict(report)}
        with (file.folder / _REPORT_FILE).open("w") as written:
            json.dump(stored, written)
            written.flush()
            os.fsync(written.fileno())
        file.folder.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another job was first
            logger.warning("%s: tokenized rows are not kept: %s", folder, error)
    for told_in in folder.parent.glob(f"*/{_REPORT_FILE}"):
        with contextlib.suppress(OSError):
            if time.time() - told_in.stat().st_mtime > _KEPT_S:
                shutil.rmtree(told_in.parent, ignore_errors=True)


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@functools.cache
def _code() -> bytes:
    """What makes examples of rows: the sources of this project, and the tokenizers' versions."""
    digest = hashlib.sha256(f"{version('transformers')} {version('tokenizers')}".encode())
    package = Path(__file__).parents[2]
    for file in sorted(file for pattern in _SOURCES for file in package.glob(pattern)):
        digest.update(file.read_bytes())
    return digest.digest()


def decided_by(source: SourceConfig, config: DataConfig, job: Tokenization[Any]) -> Iterator[str]:
    """Everything but the data that decides which examples there are."""
    yield source.model_dump_json(include=set(SourceConfig.model_fields))
    yield f"{config.separator!r} {config.on_bad_row}"
    yield type(job).__name__
    for name, value in vars(job).items():
        yield f"{name}={_tokenizer_content(value) if name == 'tokenizer' else value!r}"


def _tokenizer_content(tokenizer: Tokenizer) -> str:
    options = f"{tokenizer.special_tokens_map} {tokenizer.chat_template}"
    if tokenizer.is_fast:
        return f"{type(tokenizer)} {tokenizer.backend_tokenizer.to_str()} {options}"
    # Neither merges nor scores nor code of its own are in its vocabulary.
    digest = hashlib.sha256(Path(inspect.getfile(type(tokenizer))).read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        for file in sorted(tokenizer.save_vocabulary(folder)):
            digest.update(Path(file).read_bytes())
    return f"{type(tokenizer)} {digest.hexdigest()} {options}"


def file_digest(path: Path, folder: Path) -> bytes:
    """SHA-256 of a file's content, kept in `folder` so that many gigabytes are not read again.

    A kept digest counts for a file of the same device, inode, size and times of content and of
    status. The last cannot be set by a program, so that what was overwritten in place, or copied
    with its old time, is read again. Times are as coarse as a file system's clock: as in git's
    index, the digest of a file that was changed only just before it was read is not kept.
    """
    with path.open("rb") as file:
        # Of the open file: on a network file system that asks the server.
        found = os.fstat(file.fileno())
        stamp = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        kept = folder / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"
        if found.st_size >= _KEPT_ABOVE_BYTES and (digest := _kept_digest(kept, stamp)):
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


def _kept_digest(kept: Path, stamp: list[int]) -> bytes:
    """The digest that was kept for this very state of a file; empty where none was."""
    try:
        stored = json.loads(kept.read_text())
        return bytes.fromhex(stored["sha256"]) if stored["stamp"] == stamp else b""
    except (OSError, ValueError, KeyError, TypeError):
        return b""
