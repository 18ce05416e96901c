"""A trained model as others load it: transformers layout, adapters merged, tokenizer beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlhf_ray.learner.weights import named_weights
from rlhf_ray.models.heads import base_of


def export_model(lm: Any, folder: Path, tokenizer_path: str, *, write: bool) -> None:
    """Write weights, configuration and tokenizer; every rank calls it, one writes.

    Args:
        lm: The model, perhaps with adapters or spread by ZeRO-3.
        folder: Created if needed.
        tokenizer_path: Where the run's tokenizer is.
        write: Whether this rank writes; the others only take part in gathering.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, weight in named_weights(lm):
        if write:
            weights[name] = weight.to("cpu", copy=True).contiguous()
    if not write:
        return
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    base = base_of(lm)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    base.config.save_pretrained(folder)
    if base.generation_config is not None:
        base.generation_config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_path).save_pretrained(folder)
