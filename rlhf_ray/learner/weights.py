"""A model's weights under their checkpoint names, whole and merged, whatever holds them.

ZeRO-3 spreads each parameter over ranks and adapters keep their change apart; the rollout engines
and `from_pretrained` know neither. Iterating is a collective under ZeRO-3: all ranks take part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from peft.utils.integrations import dequantize_module_weight

from rlhf_ray.models.decoder import base_of


@dataclass(frozen=True, kw_only=True)
class WeightInfo:
    """One weight as it will be sent."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Whole."""
        return self.dtype.itemsize * math.prod(self.shape)


def weight_infos(lm: Any) -> list[WeightInfo]:
    """What `named_weights` will yield, in its order, without gathering anything."""
    return [_info(entry) for entry in _entries(lm)]


def named_weights(lm: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each weight in full. The tensor is valid until the next one is asked for."""
    with torch.no_grad():
        for entry in _entries(lm):
            adapter = entry.adapter
            spread = [entry.parameter, *(adapter.parameters() if adapter is not None else ())]
            with _whole(spread):
                weight = entry.parameter.detach()
                if _is_quantized(entry.parameter):
                    weight = dequantize_module_weight(entry.owner).to(_info(entry).dtype)
                if adapter is not None:
                    delta = sum(adapter.get_delta_weight(key) for key in adapter.active_adapters)
                    weight = weight + delta.to(weight.dtype)
                yield entry.name, weight


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A weight by its checkpoint name; `owner` holds it, `adapter`, if any, changes it."""

    name: str
    parameter: torch.nn.Parameter
    owner: torch.nn.Module
    adapter: Any
    model_dtype: torch.dtype


def _entries(lm: Any) -> list[_Entry]:
    base = base_of(lm)
    modules = dict(base.named_modules())
    adapters = {n: module for n, module in modules.items() if hasattr(module, "get_delta_weight")}
    entries = []
    for name, parameter in base.named_parameters():
        if ".lora_" in name:
            continue
        owner, _, leaf = name.rpartition(".")
        plain = owner.removesuffix(".base_layer")
        entries.append(
            _Entry(
                name=f"{plain}.{leaf}",
                parameter=parameter,
                owner=modules[owner],
                adapter=adapters.get(plain) if leaf == "weight" else None,
                model_dtype=base.dtype,
            )
        )
    return entries


def _info(entry: _Entry) -> WeightInfo:
    parameter = entry.parameter
    if not _is_quantized(parameter):
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        return WeightInfo(name=entry.name, dtype=parameter.dtype, shape=shape)
    state = getattr(parameter, "quant_state", None)
    shape = tuple(parameter.shape if state is None else state.shape)
    return WeightInfo(name=entry.name, dtype=entry.model_dtype, shape=shape)


def _is_quantized(parameter: torch.nn.Parameter) -> bool:
    """Whether bitsandbytes holds it, by the name of its class: the package need not be there."""
    return type(parameter).__name__ in ("Params4bit", "Int8Params")


def _whole(parameters: list[torch.nn.Parameter]) -> AbstractContextManager[Any]:
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    if not partitioned:
        return nullcontext()
    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(partitioned)
    return context
