"""A trained model as others load it: transformers layout, adapters merged, tokenizer beside.

An export is compared with the model in memory before a run says that it has finished.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME
from transformers.utils import logging as transformers_logging

from rlhf_ray.data.chat.turn_end import turn_end
from rlhf_ray.errors import RunError
from rlhf_ray.learner.weights import WeightInfo, named_weights, weight_infos
from rlhf_ray.models.classifier import is_packable
from rlhf_ray.models.decoder import base_of
from rlhf_ray.models.sharding import is_sharded

logger = logging.getLogger(__name__)

# As transformers splits a model; also what the writing rank holds of it at a time.
MAX_FILE_BYTES = 5 * 10**9
# Up to this size a model is also loaded and asked: a second or so.
SMALL_BYTES = 256 * 2**20
NUM_TOKENS = 24
# How far logits may be apart, as a share of their size, in float32 and in what rounds more. The
# weights are compared bit by bit, so that this is about what is missing: a router's bias changes
# logits by their own size.
FLOAT32_GAP, ROUNDED_GAP = 1e-3, 0.1
# Merging rounds, and some models make much of that; but by no more than this share of what the
# adapters do.
MERGED_SHARE = 0.1


def export_model(lm: Any, folder: Path, tokenizer_path: str, *, write: bool) -> None:
    """Write weights, configuration and tokenizer, aside first; every rank calls it, one writes.

    What was there stays until the new export is complete. Ranks that do not `write` only take part
    in gathering what ZeRO-3 has spread.

    Raises:
        RunError: What was written is not the model in memory.
    """
    if not write:
        for _ in named_weights(lm):
            continue
        return
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    written = write_weights(aside, weight_infos(lm), named_weights(lm))
    export_description(lm, aside, tokenizer_path)
    check_export(lm, aside, written)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def export_description(lm: Any, folder: Path, tokenizer_path: str) -> None:
    """Write all but the weights: configuration and tokenizer."""
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    base = base_of(lm)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    if hasattr(config, "quantization_config"):
        # What is written is dequantized.
        del config.quantization_config
    if base.can_generate():
        # Not `save_pretrained`, which refuses what it loaded, such as a temperature without
        # do_sample: what came with the model goes with it.
        path = folder / "generation_config.json"
        _generation_config(base, tokenizer).to_json_file(path, keys_to_pop=["compile_config"])
    elif is_packable(base) and tokenizer.pad_token_id != tokenizer.eos_token_id:
        # transformers reads a decoder's score at the last token that is not this one.
        config.pad_token_id = tokenizer.pad_token_id
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if config.get_text_config() is not config:
        _copy_processor(base.config, folder)


def _generation_config(base: Any, tokenizer: Any) -> Any:
    """The model's own, which also ends where its chat template ends a turn.

    Servers take end tokens from here: one that answers in ChatML would write both sides' turns.
    """
    end = turn_end(tokenizer)
    own = base.generation_config.eos_token_id
    known = own if isinstance(own, list) else [] if own is None else [own]
    if end is None or end.token_id is None or end.token_id in known:
        return base.generation_config
    generation = copy.deepcopy(base.generation_config)
    generation.eos_token_id = [*known, end.token_id]
    return generation


def _copy_processor(config: Any, folder: Path) -> None:
    """Take along how images and sounds are read: vLLM serves no model that knows them without."""
    from transformers.utils import cached_file

    for name in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME):
        found = cached_file(
            config._name_or_path,
            name,
            revision=getattr(config, "_commit_hash", None),
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is not None:
            shutil.copy(found, folder / name)


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


def check_export(lm: Any, folder: Path, written: Mapping[str, Written]) -> None:
    """Compare a complete export with the model, as its own readers see it.

    `written` is what was in memory when its weights were written.

    Raises:
        RunError: They differ; it names the weights.
    """
    base = base_of(lm)
    lines = differences(folder, written) or _not_loaded(base, folder)
    size = sum(one.dtype.itemsize * math.prod(one.shape) for one in written.values())
    # A pass through a model of which ranks hold parts would need all of them.
    is_spread = any(is_sharded(parameter) for parameter in base.parameters())
    if not lines and size <= SMALL_BYTES and not is_spread:
        lines = _other_answers(lm, folder)
    if lines:
        more = f", and {len(lines) - 10} more" if len(lines) > 10 else ""
        raise RunError(
            f"the export in {folder} is not the model in memory: {'; '.join(lines[:10])}{more}"
        )


def _not_loaded(base: Any, folder: Path) -> list[str]:
    """What transformers makes of the names and shapes; on the meta device, it keeps no numbers."""
    try:
        _, report = _load(base, folder, device_map="meta", output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        return [f"transformers cannot load it: {error}"]
    lines = [f"{name} is missing" for name in report["missing_keys"]]
    lines += [f"{name} is none of the model's weights" for name in report["unexpected_keys"]]
    lines += [f"{name} has another shape" for name, *_ in report["mismatched_keys"]]
    return sorted(lines) + list(report["error_msgs"])


def _other_answers(lm: Any, folder: Path) -> list[str]:
    """How far the logits of a loaded copy are from the model's own."""
    base = base_of(lm)
    device = next(base.parameters()).device
    loaded = _load(base, folder, attn_implementation=base.config._attn_implementation)
    wanted = _logits(base, device)
    gap = _apart(_logits(loaded.to(device), device), wanted)
    exact = base.dtype is torch.float32 and not getattr(base, "is_quantized", False)
    limit = FLOAT32_GAP if exact else ROUNDED_GAP
    if lm is not base:
        with lm.disable_adapter():
            limit = max(limit, MERGED_SHARE * _apart(_logits(base, device), wanted))
    logger.info("a loaded copy's logits are %.1e apart", gap)
    if gap <= limit:  # not so for nan
        return []
    return [f"its logits are {gap:.2g} of their size apart (limit {limit:.2g})"]


def _apart(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """As a share of the size of what is wanted."""
    smallest = torch.finfo(torch.float32).tiny
    return float((got - wanted).norm() / wanted.norm().clamp(min=smallest))


def _load(base: PreTrainedModel, folder: Path, **keywords: Any) -> Any:
    # What does not fit is said by our own error; its report would be an alarm as well.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return type(base).from_pretrained(folder, dtype=base.dtype, **keywords)
    finally:
        transformers_logging.set_verbosity(verbosity)


@torch.no_grad()
def _logits(model: Any, device: torch.device) -> torch.Tensor:
    """Of one sequence, which ends as some families' must."""
    num_ids = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(NUM_TOKENS) * 7919 + num_ids // 3) % num_ids
    end = getattr(model.config.get_text_config(), "eos_token_id", None)
    if model.config.is_encoder_decoder and end is not None:
        ids = torch.where(ids == end, (ids + 1) % num_ids, ids)
        ids[-1] = end
    was_training = model.training
    model.eval()
    try:
        without_cache = {"use_cache": False} if model.can_generate() else {}
        logits: torch.Tensor = model(input_ids=ids[None].to(device), **without_cache).logits
    finally:
        model.train(was_training)
    return logits.float()
