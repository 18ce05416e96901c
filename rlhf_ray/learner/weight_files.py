"""Weights into safetensors files of a bounded size as they come, and what the files hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from safetensors.torch import save_file

from rlhf_ray.learner.weights import WeightInfo

# As transformers splits a model; also what the writing rank holds of it at a time.
MAX_FILE_BYTES = 5 * 10**9


@dataclass(frozen=True, kw_only=True)
class Written:
    """One weight as it was in memory when it was written."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    digest: str

    @classmethod
    def of(cls, weight: torch.Tensor) -> Written:
        """Of a contiguous weight on the CPU."""
        flat = weight.flatten().view(torch.uint8).numpy()
        digest = hashlib.blake2b(flat.data, digest_size=16).hexdigest()
        return cls(dtype=weight.dtype, shape=tuple(weight.shape), digest=digest)


def write_weights(
    folder: Path,
    infos: Sequence[WeightInfo],
    named: Iterable[tuple[str, torch.Tensor]],
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> dict[str, Written]:
    """Write each file as soon as it is complete, and the index beside more than one.

    `infos` say what comes, in its order; each weight is needed no longer than until the next one. A
    weight of more than `max_file_bytes` gets a file of its own.

    Returns:
        What was in memory, by name.
    """
    split = split_state_dict_into_shards_factory(
        {info.name: info for info in infos},
        get_storage_size=lambda info: info.num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_file_bytes,
    )
    pending: dict[str, dict[str, torch.Tensor]] = {}
    written: dict[str, Written] = {}
    for name, weight in named:
        file = split.tensor_to_filename[name]
        copied = weight.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        written[name] = Written.of(copied)
        pending.setdefault(file, {})[name] = copied
        if len(pending[file]) == len(split.filename_to_tensors[file]):
            save_file(pending.pop(file), folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return written


def differences(folder: Path, written: Mapping[str, Written]) -> list[str]:
    """What the folder's files hold otherwise than memory did, weight by weight, in words."""
    found: dict[str, Written] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found |= {name: Written.of(tensors.get_tensor(name)) for name in tensors.offset_keys()}
    lines = [f"{name} is missing" for name in written.keys() - found.keys()]
    lines += [f"{name} is not the model's" for name in found.keys() - written.keys()]
    for name in written.keys() & found.keys():
        wanted, got = written[name], found[name]
        if (wanted.dtype, wanted.shape) != (got.dtype, got.shape):
            lines.append(
                f"{name} is {got.dtype} {list(got.shape)}, wanted "
                f"{wanted.dtype} {list(wanted.shape)}"
            )
        elif wanted.digest != got.digest:
            lines.append(f"{name} has other values")
    return sorted(lines)
