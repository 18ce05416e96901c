"""Rows of a tensor by their numbers, as often as each is wanted, with gradients that repeat.

Indexing does the same, but its gradient adds up copies of a row in whatever order threads come to
them: two backward passes differ in the last bits as soon as a prompt stands once for several
sequences. On a CPU it also takes several times as long.
"""

from __future__ import annotations

from typing import Any

import torch


def take_rows(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of [N, ...] by int64 [M, ...]: [M, ..., ...].

    Gradients of a row's copies are added up in the order of `index`, in float32 at least.
    """
    taken: torch.Tensor = _Rows.apply(states, index)  # type: ignore[no-untyped-call]
    return taken


class _Rows(torch.autograd.Function):
    """Embedding's own passes, on a CPU and a GPU alike: each sums a row in one thread."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.shape = states.shape
        ctx.save_for_backward(index)
        taken = torch.embedding(states.flatten(1), index)
        return taken.view(*index.shape, *states.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        [index] = ctx.saved_tensors
        copies = gradient.flatten(index.dim())
        copies = copies.to(torch.promote_types(gradient.dtype, torch.float32))
        sums = torch.ops.aten.embedding_dense_backward(copies, index, ctx.shape[0], -1, False)
        return sums.view(ctx.shape).to(gradient.dtype), None
