"""Tokenized rows on disk, found again by the content of everything that they were made from."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
import pickle
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.data import DataConfig, SourceConfig
from rlhf_ray.data.files import data_files, hub_dataset, local_path
from rlhf_ray.data.report import Loaded
from rlhf_ray.data.tokenization import T, Tokenization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_SMALL_BYTES = 1 << 20  # reading so little again costs less than keeping it
_DIGEST_BYTES = 32
# What a kept file may hold: nothing that could run code when it is read back.
_SAFE_NAMES = {
    "rlhf_ray.types": {"SftExample", "Ranking", "LabelledAnswer", "Prompt"},
    "rlhf_ray.data.report": {"Loaded", "RowReport", "LeftOut"},
    "numpy": {"dtype", "ndarray"},
    "numpy._core.multiarray": {"_reconstruct"},
    "numpy._core.numeric": {"_frombuffer"},
    "numpy.core.multiarray": {"_reconstruct"},
    "numpy.core.numeric": {"_frombuffer"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
}


def cache_file(source: SourceConfig, config: DataConfig, job: Tokenization[T]) -> Path | None:
    """Where the examples of a data set are kept; None for data too small to be worth it.

    Raises:
        DataError: There is no such data set.
    """
    local = local_path(source.path)
    if local is not None:
        files = data_files(local)
        if sum(file.stat().st_size for file in files) < _SMALL_BYTES:
            return None
    digest = hashlib.sha256(_code())
    settings = source.model_dump_json(include=set(SourceConfig.model_fields))
    policy = f"{config.separator!r} {config.on_bad_row}"
    for part in (settings, policy, *_described(job)):
        digest.update(part.encode())
        digest.update(b"\0")
    if local is None:
        digest.update(hub_dataset(source)._fingerprint.encode())
    else:
        for file in files:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    folder = Path(os.environ.get("RLHF_RAY_CACHE", "~/.cache/rlhf-ray")).expanduser()
    return folder / "rows" / f"{digest.hexdigest()}.pickle"


def read(file: Path) -> Loaded[Any] | None:
    """What `write` kept there; None where nothing is, or what is there is damaged."""
    if not file.exists():
        return None
    try:
        raw = file.read_bytes()
        if hashlib.sha256(raw[_DIGEST_BYTES:]).digest() != raw[:_DIGEST_BYTES]:
            raise pickle.UnpicklingError("its checksum is wrong")
        loaded = _SafeUnpickler(io.BytesIO(raw[_DIGEST_BYTES:])).load()
        assert isinstance(loaded, Loaded)
        return loaded
    except (OSError, pickle.UnpicklingError) as error:
        logger.warning("%s: ignored, and made anew: %s", file, error)
        return None


def write(file: Path, loaded: Loaded[Any]) -> None:
    """Keep examples; a file is there whole or not at all. A full disk costs the cache alone."""
    content = pickle.dumps(loaded, protocol=pickle.HIGHEST_PROTOCOL)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as temporary:
            temporary.write(hashlib.sha256(content).digest() + content)
        os.replace(temporary.name, file)
    except OSError as error:
        logger.warning("%s: tokenized rows are not kept: %s", file, error)


@functools.cache
def _code() -> bytes:
    """What makes examples of rows: this package's own source, and the renderer's version."""
    digest = hashlib.sha256(version("transformers").encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.digest()


def _described(job: Tokenization[Any]) -> Iterator[str]:
    """Everything about a job that decides what becomes of a row."""
    yield type(job).__name__
    for name, value in vars(job).items():
        yield f"{name}={_tokenizer_content(value) if name == 'tokenizer' else value!r}"


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab()
    template = tokenizer.chat_template
    return f"{type(tokenizer)} {backend} {tokenizer.special_tokens_map} {template}"


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """A class that may stand in a kept file.

        Raises:
            UnpicklingError: Any other.
        """
        if name in _SAFE_NAMES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")
