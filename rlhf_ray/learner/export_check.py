"""Is an export the model that is in memory? Asked before a run says that it has finished."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from rlhf_ray.errors import RunError
from rlhf_ray.learner.weight_files import Written, differences
from rlhf_ray.models.decoder import base_of
from rlhf_ray.models.sharding import is_sharded

logger = logging.getLogger(__name__)

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
