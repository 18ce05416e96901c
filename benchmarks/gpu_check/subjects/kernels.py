"""Attention of packed sequences, by each kernel that may run here, against float64.

Forward and backward, for sequences of very different lengths in one row and as a rectangle, with
groups of queries that share keys, with a window and without, and each sequence by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.utils import is_flash_attn_2_available

from benchmarks.gpu_check.records import Measurement
from benchmarks.gpu_check.setting import Setting
from rlhf_ray.models import attention
from rlhf_ray.models.batch import Layout, lay_out

# Of the relative error. The inputs are the same rounded numbers; what a kernel rounds itself is
# 8 bits of weights and results in bfloat16, and more where float32 is made of three TF32 products.
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# Heads of queries, of keys, and their size: Qwen2.5-0.5B's, Llama 3 8B's, and one that is padded.
HEADS = {"cuda": ((14, 2, 64), (32, 8, 128), (8, 2, 80)), "cpu": ((4, 2, 8), (2, 1, 16))}
LENGTHS = {"cuda": (700, 1, 128, 1500, 17), "cpu": (12, 1, 33, 5)}
WINDOWS = {"cuda": (None, 100), "cpu": (None, 7)}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """An attention function by transformers' name for it, in a dtype."""

    name: str
    dtype: torch.dtype

    @property
    def is_of_package(self) -> bool:
        """Whether it is transformers' own, which knows packed rows alone by other keywords."""
        return self.name == "flash_attention_2"


@dataclass(frozen=True, kw_only=True)
class States:
    """Random inputs of one attention layer, [N, heads, size], and the gradient of its output."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    slope: torch.Tensor


def kernels_here(device: str) -> list[Kernel]:
    """Those that this machine can run."""
    attention.register()
    kernels = [Kernel(name="packed_sdpa", dtype=dtype) for dtype in LIMITS]
    known = AttentionInterface._global_mapping
    if device == "cuda" and "varlen_attn" in known:
        kernels.append(Kernel(name="varlen_attn", dtype=torch.bfloat16))
    if device == "cuda" and is_flash_attn_2_available():
        kernels.append(Kernel(name="flash_attention_2", dtype=torch.bfloat16))
    return kernels


def check_kernels(setting: Setting) -> Iterator[Measurement]:
    """The worst case of each kernel: output, gradients, and those of each sequence alone."""
    device = setting.scale.device
    lengths = LENGTHS[device]
    for kernel in kernels_here(device):
        worst = {"output": 0.0, "gradients": 0.0, "packed against one by one": 0.0}
        for heads, window in itertools.product(HEADS[device], WINDOWS[device]):
            states = _random_states(heads, sum(lengths), kernel.dtype, device)
            wanted = reference(states, lengths, window)
            layouts = (False,) if kernel.is_of_package else (False, True)
            for padded in layouts:
                found = attended(kernel, states, lengths, window, padded=padded)
                worst["output"] = max(worst["output"], distance(found[0], wanted[0]))
                gaps = [distance(*pair) for pair in zip(found[1:], wanted[1:], strict=True)]
                worst["gradients"] = max(worst["gradients"], *gaps)
            packed = attended(kernel, states, lengths, window, padded=False)
            gaps = [
                distance(*pair)
                for pair in zip(packed, one_by_one(kernel, states, lengths, window), strict=True)
            ]
            worst["packed against one by one"] = max(worst["packed against one by one"], *gaps)
        dtype = str(kernel.dtype).removeprefix("torch.")
        for what, error in worst.items():
            yield Measurement(
                name=f"{kernel.name} in {dtype}: {what}, relative error",
                value=error,
                at_most=LIMITS[kernel.dtype],
            )


def _random_states(
    heads: tuple[int, int, int], num_tokens: int, dtype: torch.dtype, device: str
) -> States:
    num_heads, num_kv_heads, size = heads
    generator = torch.Generator(device).manual_seed(0)

    def random(num: int) -> torch.Tensor:
        return torch.randn(
            num_tokens, num, size, generator=generator, device=device, dtype=torch.float32
        ).to(dtype)

    return States(
        query=random(num_heads),
        key=random(num_kv_heads),
        value=random(num_kv_heads),
        slope=random(num_heads),
    )


def attended(
    kernel: Kernel,
    states: States,
    lengths: Sequence[int],
    window: int | None,
    *,
    padded: bool,
) -> tuple[torch.Tensor, ...]:
    """Output [N, heads, size], and the gradients of queries, keys and values."""
    leaves = [
        part.detach().clone().requires_grad_() for part in (states.query, states.key, states.value)
    ]
    layout = _layout(lengths, padded=padded, device=states.query.device)
    # As a model hands them over: [B, heads, T, size], not contiguous.
    laid = [_laid_out(leaf, layout).transpose(1, 2) for leaf in leaves]
    keywords = {}
    if (packing := layout.packing) is not None:
        keywords = {
            "packing": packing,
            "cu_seq_lens_q": packing.cu_lens,
            "cu_seq_lens_k": packing.cu_lens,
            "max_length_q": packing.max_len,
            "max_length_k": packing.max_len,
        }
    function = AttentionInterface._global_mapping[kernel.name]
    config = SimpleNamespace(_attn_implementation=kernel.name)
    output_BTHD, _ = function(
        SimpleNamespace(is_causal=True, config=config, training=True),
        *laid,
        None,
        scaling=states.query.shape[-1] ** -0.5,
        sliding_window=window,
        position_ids=layout.position_ids,
        **keywords,
    )
    output_NHD = output_BTHD.flatten(0, 1)[_real(layout)]
    output_NHD.backward(states.slope)
    return output_NHD.detach(), *(leaf.grad for leaf in leaves)


def one_by_one(
    kernel: Kernel, states: States, lengths: Sequence[int], window: int | None
) -> list[torch.Tensor]:
    """The same with each sequence in a row of its own."""
    parts = []
    for start, length in zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True):
        here = slice(int(start), int(start) + length)
        alone = States(**{name: part[here] for name, part in vars(states).items()})
        parts.append(attended(kernel, alone, [length], window, padded=False))
    return [torch.cat(same) for same in zip(*parts, strict=True)]


def reference(
    states: States, lengths: Sequence[int], window: int | None
) -> tuple[torch.Tensor, ...]:
    """By the formula, a sequence at a time, in float64."""
    leaves = [
        part.detach().double().requires_grad_() for part in (states.query, states.key, states.value)
    ]
    outputs = []
    for query_THD, key_TKD, value_TKD in zip(
        *(leaf.split(list(lengths)) for leaf in leaves), strict=True
    ):
        group = query_THD.shape[1] // key_TKD.shape[1]
        key_THD, value_THD = (x.repeat_interleave(group, dim=1) for x in (key_TKD, value_TKD))
        scores_HTT = torch.einsum("thd,shd->hts", query_THD, key_THD) * query_THD.shape[-1] ** -0.5
        position = torch.arange(len(query_THD), device=query_THD.device)
        back_TT = position[:, None] - position[None, :]
        seen_TT = (back_TT >= 0) & (back_TT < (window or len(query_THD)))
        weights_HTT = scores_HTT.masked_fill(~seen_TT, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hts,shd->thd", weights_HTT, value_THD))
    output_NHD = torch.cat(outputs)
    output_NHD.backward(states.slope.double())
    return output_NHD.detach(), *(leaf.grad for leaf in leaves)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of the norm of what is wanted."""
    wanted = wanted.double()
    return float((found.double() - wanted).norm() / wanted.norm())


def _layout(lengths: Sequence[int], *, padded: bool, device: torch.device) -> Layout:
    sequences_B = [np.ones(length, dtype=np.int32) for length in lengths]
    return lay_out(sequences_B, padded=padded, device=device)


def _real(layout: Layout) -> torch.Tensor:
    """Flat positions of tokens, without padding."""
    return layout.attention_mask.flatten().nonzero().squeeze(1)


def _laid_out(part_NHD: torch.Tensor, layout: Layout) -> torch.Tensor:
    """[N, heads, size] -> [B, T, heads, size]; what pads a rectangle is no zero."""
    shape = layout.input_ids.shape
    flat = torch.ones(
        (layout.input_ids.numel(), *part_NHD.shape[1:]),
        dtype=part_NHD.dtype,
        device=part_NHD.device,
    )
    return flat.index_copy(0, _real(layout), part_NHD).unflatten(0, shape)
