"""A model's weights under their checkpoint names, whole and merged, whatever holds them.

ZeRO-3 spreads each parameter over ranks and adapters keep their change apart; the rollout engines
and `from_pretrained` know neither. Iterating is a collective under ZeRO-3: all ranks take part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch

from rlhf_ray.models.heads import base_of


@dataclass(frozen=True, kw_only=True)
class WeightInfo:
    """One weight as it will be sent."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def weight_infos(lm: Any) -> list[WeightInfo]:
    """What `named_weights` will yield, in its order, without gathering anything."""
    return [
        WeightInfo(
            name=name,
            dtype=parameter.dtype,
            shape=tuple(getattr(parameter, "ds_shape", parameter.shape)),
        )
        for name, parameter, _ in _entries(lm)
    ]


def named_weights(lm: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each weight in full. The tensor is valid until the next one is asked for."""
    with torch.no_grad():
        for name, parameter, adapter in _entries(lm):
            with _whole([parameter, *(adapter.parameters() if adapter is not None else ())]):
                weight = parameter.detach()
                if adapter is not None:
                    delta = sum(adapter.get_delta_weight(key) for key in adapter.active_adapters)
                    weight = weight + delta.to(weight.dtype)
                yield name, weight


def _entries(lm: Any) -> list[tuple[str, torch.nn.Parameter, Any]]:
    """Checkpoint name, base parameter, and the adapter layer that changes it, if any."""
    base = base_of(lm)
    adapted = {
        f"{name}.weight": module
        for name, module in base.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    entries = []
    for name, parameter in base.named_parameters():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        entries.append((plain, parameter, adapted.get(plain)))
    return entries


def _whole(parameters: list[torch.nn.Parameter]) -> AbstractContextManager[Any]:
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    if not partitioned:
        return nullcontext()
    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(partitioned)
    return context
