"""Norms and activations of vLLM's models on a CPU, each in one kernel.

vLLM has these kernels, but counts on a compiler to fuse what PyTorch does in steps, and our engines
start without one, in seconds. The steps took three tenths of a small model's time.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import ir
from vllm.model_executor.layers.activation import SiluAndMul

# Elements that a kernel takes at a time; it refuses what is left over.
_WIDTH = 16
_PROVIDER = "rlhf_ray"


def use_fused_kernels() -> None:
    """Take them from now on, in this process, wherever their arguments allow it."""
    for op in (ir.ops.rms_norm, ir.ops.fused_add_rms_norm):
        op.set_default([_PROVIDER, "native"])


def _whole(x: torch.Tensor) -> bool:
    return x.is_contiguous() and x.shape[-1] % _WIDTH == 0


def _can_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: Any = None
) -> bool:
    plain = weight is not None and weight.dtype == x.dtype and variance_size is None
    return plain and _whole(x)


def _rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> torch.Tensor:
    normed = torch.empty_like(x)
    torch.ops._C.rms_norm(normed, x, weight, epsilon)
    return normed


def _can_add_and_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: Any = None,
) -> bool:
    alike = x_residual.dtype == x.dtype and x_residual.is_contiguous()
    return alike and _can_norm(x, weight, epsilon, variance_size)


def _add_and_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


ir.ops.rms_norm.register_impl(_PROVIDER, supports_args=_can_norm)(_rms_norm)
ir.ops.fused_add_rms_norm.register_impl(_PROVIDER, supports_args=_can_add_and_norm, inplace=True)(
    _add_and_norm
)


@SiluAndMul.register_oot
class FusedSiluAndMul(SiluAndMul):
    """SwiGLU's gate."""

    def forward_cpu(self, x: torch.Tensor) -> torch.Tensor:
        """[..., 2 D] -> [..., D]."""
        half = x.shape[-1] // 2
        if half % _WIDTH or not x.is_contiguous():
            x1, x2 = x[..., :half], x[..., half:]
            return torch.nn.functional.silu(x1) * x2
        gated = torch.empty((*x.shape[:-1], half), dtype=x.dtype)
        torch.ops._C.silu_and_mul(gated, x)
        return gated
