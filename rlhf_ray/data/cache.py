"""Tokenized rows on disk, found again by the content of everything that they were made from.

A folder for each: the rows as an Arrow file, which is mapped and never read whole, and a report in
JSON with the file's checksum. Nothing in them can run code. Jobs that write the same rows at once
each write their own, and the first to finish is kept.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rlhf_ray.config.data import DataConfig, SourceConfig
from rlhf_ray.data.file_digests import file_digest
from rlhf_ray.data.files import hub_dataset
from rlhf_ray.data.local_data import local_data
from rlhf_ray.data.report import LeftOut, RowReport
from rlhf_ray.data.row_file import ROWS_FILE, RowFile
from rlhf_ray.data.tokenization import T, Tokenization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_SMALL_BYTES = 1 << 20  # reading so little again costs less than keeping it
_REPORT_FILE = "report.json"


def cache_folder(source: SourceConfig, config: DataConfig, job: Tokenization[T]) -> Path | None:
    """Where the rows of a data set are kept; None for data too small to be worth it.

    Raises:
        DataError: There is no such data set.
    """
    local = local_data(source.path)
    if local is not None:
        files = [file.path for named in local.named_by(source.split).values() for file in named]
        if sum(file.stat().st_size for file in files) < _SMALL_BYTES:
            return None
    folder = Path(os.environ.get("RLHF_RAY_CACHE", "~/.cache/rlhf-ray")).expanduser()
    digest = hashlib.sha256(_code())
    settings = source.model_dump_json(include=set(SourceConfig.model_fields))
    policy = f"{config.separator!r} {config.on_bad_row}"
    for part in (settings, policy, *described(job)):
        digest.update(part.encode())
        digest.update(b"\0")
    if local is None:
        digest.update(hub_dataset(source)._fingerprint.encode())
    else:
        for file in files:
            digest.update(file_digest(file, folder / "files"))
    return folder / "rows" / digest.hexdigest()


def read(folder: Path, schema: pa.Schema) -> tuple[Any, RowReport] | None:
    """What `keep` left there, a mapped `datasets.Dataset` of `schema`, and what it was made of.

    None where there is nothing, or what is there is damaged: then it is removed.
    """
    if not folder.is_dir():
        return None
    from datasets import Dataset

    try:
        told = json.loads((folder / _REPORT_FILE).read_text())
        if _checksum(folder / ROWS_FILE) != told["checksum"]:
            raise ValueError("its checksum is wrong")
        dataset = Dataset.from_file(str(folder / ROWS_FILE))
        dataset.data.validate()
        if not dataset.data.schema.equals(schema):
            raise ValueError(f"its columns are {dataset.data.schema.names}")
        left_out = {name: LeftOut(**each) for name, each in told["report"].pop("left_out").items()}
        return dataset, RowReport(**told["report"], left_out=left_out)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s: ignored, and made anew: %s", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None


def keep(file: RowFile, folder: Path, report: RowReport) -> None:
    """Give a file of rows its place; it is there whole or not at all."""
    try:
        told = {"checksum": _checksum(file.path), "report": asdict(report)}
        with (file.folder / _REPORT_FILE).open("w") as written:
            json.dump(told, written)
            written.flush()
            os.fsync(written.fileno())
        file.folder.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another job was first
            logger.warning("%s: tokenized rows are not kept: %s", folder, error)


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@functools.cache
def _code() -> bytes:
    """What makes examples of rows: this package's own source, and the renderer's version."""
    digest = hashlib.sha256(version("transformers").encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.digest()


def described(job: Tokenization[Any]) -> Iterator[str]:
    """Everything about a job that decides what becomes of a row."""
    yield type(job).__name__
    for name, value in vars(job).items():
        yield f"{name}={_tokenizer_content(value) if name == 'tokenizer' else value!r}"


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab()
    template = tokenizer.chat_template
    return f"{type(tokenizer)} {backend} {tokenizer.special_tokens_map} {template}"
