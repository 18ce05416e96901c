"""What PyTorch's FlashAttention kernel computes, on a CPU: for `varlen_attn` without a GPU.

Written from `mha_varlen_fwd` and `mha_varlen_bwd` of PyTorch's flash_attn/flash_api.cpp, and from
the masks of its mask.h. All of PyTorch above the kernel stays as it is: `varlen_attn`, its custom
operator and that operator's gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class KernelCall:
    """What the kernel is given."""

    query: Tensor
    key: Tensor
    value: Tensor
    cum_q: Tensor
    cum_k: Tensor
    max_q: int
    max_k: int
    causal: bool
    scale: float | None
    left: int | None
    right: int | None

    def check(self) -> None:
        """What the kernel checks, and what it takes on trust."""
        head_size = self.query.shape[-1]
        assert head_size % 8 == 0 and head_size <= 256
        assert self.key.shape == self.value.shape
        assert self.key.shape[-1] == head_size
        assert self.query.shape[1] % self.key.shape[1] == 0
        assert self.query.dtype == self.key.dtype == self.value.dtype
        assert all(states.stride(-1) == 1 for states in (self.query, self.key, self.value))
        for cum, num, longest in (
            (self.cum_q, len(self.query), self.max_q),
            (self.cum_k, len(self.key), self.max_k),
        ):
            assert cum.dtype == torch.int32 and cum.is_contiguous()
            assert cum[0] == 0 and cum[-1] == num and cum.diff().max() == longest

    def sequences(self) -> Iterator[tuple[slice, slice]]:
        """Where the queries of each are, and the keys."""
        borders = zip(self.cum_q.tolist(), self.cum_k.tolist(), strict=True)
        begin_q, begin_k = next(borders)
        for end_q, end_k in borders:
            yield slice(begin_q, end_q), slice(begin_k, end_k)
            begin_q, begin_k = end_q, end_k

    def states(self, queries: slice, keys: slice) -> tuple[Tensor, Tensor, Tensor]:
        """[heads, tokens, size] each, float64, the heads of keys repeated."""
        num_groups = self.query.shape[1] // self.key.shape[1]
        q = self.query[queries].double().transpose(0, 1)
        k, v = (
            states[keys].double().transpose(0, 1).repeat_interleave(num_groups, dim=0)
            for states in (self.key, self.value)
        )
        return q, k, v

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """[heads, queries, keys], float64, minus infinity for what is not seen."""
        left = -1 if self.left is None or self.left >= self.max_k else self.left
        right = -1 if self.right is None or self.right >= self.max_k else self.right
        if self.causal:
            right = 0
        num_q, num_k = q.shape[1], k.shape[1]
        # The last query stands at the last key.
        row = torch.arange(num_q)[:, None] + num_k - num_q
        column = torch.arange(num_k)[None, :]
        seen = torch.ones(num_q, num_k, dtype=torch.bool)
        if left >= 0:
            seen &= column >= row - left
        if right >= 0:
            seen &= column <= row + right
        return (q @ k.transpose(1, 2) * self.factor).masked_fill(~seen, -torch.inf)

    @property
    def factor(self) -> float:
        """Of the scores."""
        return self.query.shape[-1] ** -0.5 if self.scale is None else self.scale


@contextmanager
def flash_kernel_on_cpu() -> Iterator[list[KernelCall]]:
    """While this is open, the kernel has a CPU version; yields what each forward pass gave it."""
    calls: list[KernelCall] = []

    def forward(
        query: Tensor, key: Tensor, value: Tensor, cum_q: Tensor, cum_k: Tensor, max_q: int,
        max_k: int, dropout: float, causal: bool, debug: bool, **keywords: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        assert dropout == 0.0 and not debug
        call = KernelCall(
            query=query, key=key, value=value, cum_q=cum_q, cum_k=cum_k, max_q=max_q, max_k=max_k,
            causal=causal, scale=keywords["scale"], left=keywords["window_size_left"],
            right=keywords["window_size_right"],
        )  # fmt: skip
        call.check()
        calls.append(call)
        none = torch.empty(0)
        return *_forward(call), none, none, none

    def backward(
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
        cum_q: Tensor, cum_k: Tensor, max_q: int, max_k: int, dropout: float, causal: bool,
        *unused: Any, scale: float | None, window_size_left: int | None,
        window_size_right: int | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        call = KernelCall(
            query=query, key=key, value=value, cum_q=cum_q, cum_k=cum_k, max_q=max_q, max_k=max_k,
            causal=causal, scale=scale, left=window_size_left, right=window_size_right,
        )  # fmt: skip
        return _backward(call, grad, out, lse)

    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", backward, "CPU")
        yield calls


def _forward(call: KernelCall) -> tuple[Tensor, Tensor]:
    """Outputs [N, heads, size] and log-sum-exps [heads, N]."""
    outputs, sums = [], []
    for queries, keys in call.sequences():
        q, k, v = call.states(queries, keys)
        scores = call.scores(q, k)
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
        sums.append(scores.logsumexp(-1))
    return torch.cat(outputs).to(call.query.dtype), torch.cat(sums, dim=1).float()


def _backward(
    call: KernelCall, grad: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Source: FlashAttention-2, https://arxiv.org/abs/2307.08691, algorithm 2."""
    gradients = []
    num_kv_heads = call.key.shape[1]
    for queries, keys in call.sequences():
        q, k, v = call.states(queries, keys)
        grad_out, output = (x[queries].double().transpose(0, 1) for x in (grad, out))
        weights = (call.scores(q, k) - lse[:, queries, None].double()).exp()
        of_weights = grad_out @ v.transpose(1, 2)
        of_scores = weights * (of_weights - (grad_out * output).sum(-1, keepdim=True))
        of_q = of_scores @ k * call.factor
        of_k = of_scores.transpose(1, 2) @ q * call.factor
        of_v = weights.transpose(1, 2) @ grad_out
        of_k, of_v = (x.unflatten(0, (num_kv_heads, -1)).sum(1) for x in (of_k, of_v))
        gradients.append([x.transpose(0, 1).to(call.query.dtype) for x in (of_q, of_k, of_v)])
    of_q, of_k, of_v = (torch.cat(parts) for parts in zip(*gradients, strict=True))
    return of_q, of_k, of_v
