"""Are a model's weights all there? Told from names, sizes and headers; no weight is read whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rlhf_ray.config.checks.model_config import read_json

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
# How Git LFS begins what stands for a file that was not fetched.
_POINTER = b"version https://git-lfs"
_LENGTH_BYTES = 8
# A header describes some ten thousand tensors; what asks for more is no safetensors file.
_MOST_HEADER_BYTES = 100 * 2**20
_SAMPLE_BYTES = 64 * 2**10


def weights_fault(folder: Path) -> str | None:
    """What is wrong with the weights of a folder in the transformers layout; None for nothing."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = (read_json(adapter) or {}).get("base_model_name_or_path") or "its base model"
        return (
            f"folder {str(folder)!r} holds an adapter: merge it into {base} (peft's "
            "merge_and_unload) and name the folder with the result"
        )
    for name in (SAFETENSORS, BIN):  # in transformers' order
        if (folder / name).is_file():
            return _file_fault(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards_fault(index)
    return f"folder {str(folder)!r} holds no weights ({SAFETENSORS}, or its parts and their index)"


def untied_head_fault(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Whether embeddings that `config.json` ties to the head are other ones in the files.

    transformers then leaves them apart and vLLM does not.
    """
    if not config.get("tie_word_embeddings"):
        return None
    places = {name: (file, span) for file in _files(folder) for name, span in _spans(file)}
    embedding = next((n for n in places if n.endswith(("embed_tokens.weight", "wte.weight"))), None)
    if embedding is None or "lm_head.weight" not in places:
        return None
    if _samples(*places["lm_head.weight"]) == _samples(*places[embedding]):
        return None
    return (
        f"{str(folder)!r} says tie_word_embeddings in its config.json, but lm_head.weight is not "
        f"{embedding}: set it to false there"
    )


def _shards_fault(index: Path) -> str | None:
    names = set((read_json(index) or {}).get("weight_map", {}).values())
    if not names:
        return f"{str(index)!r} names no files"
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        return f"folder {str(index.parent)!r} lacks {', '.join(missing)}, which {index.name} names"
    faults = (_file_fault(index.parent / name) for name in sorted(names))
    return next((fault for fault in faults if fault), None)


def _file_fault(path: Path) -> str | None:
    size = path.stat().st_size
    if size == 0:
        return f"{str(path)!r} is empty"
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            return f"{str(path)!r} stands for a file that was not fetched: run git lfs pull there"
        if path.suffix != ".safetensors":
            return None
        file.seek(0)
        header = _header(file, size)
    if header is None:
        return f"{str(path)!r} is no safetensors file, or cut short"
    start, tensors = header
    whole = start + max((end for _, end in tensors.values()), default=0)
    return None if size == whole else f"{str(path)!r} has {size} bytes, but names {whole}"


def _header(file: BinaryIO, size: int) -> tuple[int, dict[str, tuple[int, int]]] | None:
    """Where the data begin, and each tensor's bytes from there."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > min(size - _LENGTH_BYTES, _MOST_HEADER_BYTES):
        return None
    try:
        named = json.loads(file.read(length))
        spans = {name: value["data_offsets"] for name, value in named.items() if name[:2] != "__"}
        return _LENGTH_BYTES + length, {name: (int(a), int(b)) for name, (a, b) in spans.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _files(folder: Path) -> list[Path]:
    """Those of safetensors that transformers would load."""
    whole, index = folder / SAFETENSORS, folder / f"{SAFETENSORS}.index.json"
    if whole.is_file():
        return [whole]
    return [folder / name for name in set((read_json(index) or {}).get("weight_map", {}).values())]


def _spans(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    with path.open("rb") as file:
        start, tensors = _header(file, path.stat().st_size) or (0, {})
    for name, (first, end) in tensors.items():
        yield name, (start + first, start + end)


def _samples(path: Path, span: tuple[int, int]) -> tuple[int, list[bytes]]:
    """A tensor's length, and bytes of its beginning, middle and end."""
    first, end = span
    last = max(first, end - _SAMPLE_BYTES)
    samples = []
    with path.open("rb") as file:
        for place in (first, (first + last) // 2, last):
            file.seek(place)
            samples.append(file.read(min(_SAMPLE_BYTES, end - place)))
    return end - first, samples
