"""Rotary embeddings that see one sequence at a time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.models.batch import Layout


@contextmanager
def rope_by_sequence(decoder: nn.Module, layout: Layout) -> Iterator[None]:
    """While this is open, `decoder` computes rotary embeddings sequence by sequence.

    Families with stretched positions (LongRoPE, https://arxiv.org/abs/2402.13753; dynamic NTK)
    choose frequencies by the longest sequence of a call, and keep what they chose for the next.
    """
    found = list(_rotary_modules(decoder))
    for module in found:
        module.forward = partial(_by_sequence, module, module.forward, layout)
    try:
        yield
    finally:
        for module in found:
            del module.forward


def _rotary_modules(decoder: nn.Module) -> Iterator[Any]:
    for module in decoder.modules():
        parameters = inspect.signature(module.forward).parameters
        has_frequencies = any(name.endswith("inv_freq") for name, _ in module.named_buffers())
        is_leaf = not any(True for _ in module.children())
        if is_leaf and has_frequencies and "position_ids" in parameters:
            yield module


def _by_sequence(
    module: Any,
    forward: Any,
    layout: Layout,
    states: Tensor,
    position_ids: Tensor,
    *arguments: Any,
    **keywords: Any,
) -> Any:
    if layout.packing is None:
        parts, dim = position_ids.split(1, dim=-2), 0
    else:
        parts, dim = position_ids.split(layout.lens_B.tolist(), dim=-1), 1
    results = []
    for part in parts:
        _forget_longer(module)
        results.append(forward(states, part, *arguments, **keywords))
    if isinstance(results[0], Tensor):
        return torch.cat(results, dim=dim)
    return tuple(torch.cat(tensors, dim=dim) for tensors in zip(*results, strict=True))


def _forget_longer(module: Any) -> None:
    """What dynamic NTK kept of a longer sequence, it would use for this one too."""
    for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
        prefix = name.removesuffix("max_seq_len_cached")
        original = getattr(module, f"{prefix}original_inv_freq", None)
        if original is not None:
            setattr(module, name, module.original_max_seq_len)
            setattr(
                module,
                f"{prefix}inv_freq",
                original.to(module.get_buffer(f"{prefix}inv_freq").device),
            )
