"""Sequences end to end in one row, and which keys each of its queries sees.

A prompt with which several sequences begin stands once. What follows it in each of them is computed
as if it stood behind the prompt by itself: its positions go on from the prompt's, and its queries
see the prompt's keys and its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rlhf_ray.models.transfer import on_device
from rlhf_ray.shared_prompts import shared_cost


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where sequences lie that stand end to end.

    Attributes:
        cu_lens: int32 [B + 1], start of each, then the end of the last.
        max_len: Longest.
        num_tokens: N, of all.
        index: Where in the row the N tokens are: a slice, or int64 [N].
        shared: With a prompt that stands once, the parts in which attention is computed; the
            sequences are then prompts, whole sequences and what goes on from a prompt.
    """

    cu_lens: torch.Tensor
    max_len: int
    num_tokens: int
    index: slice | torch.Tensor = field(default_factory=lambda: slice(0, None))
    shared: tuple[Part, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Each is a call of an attention kernel; their queries one after the other are the row."""
        return self.shared or (Part(queries=self, keys=self),)

    @cached_property
    def to_padded(self) -> torch.Tensor:
        """int64 [B, max_len], position in the row; padding points at the first token."""
        positions = self.cu_lens[:-1, None] + self._offsets
        positions = torch.where(self._is_real, positions, 0).long()
        if isinstance(self.index, torch.Tensor):
            return self.index[positions]
        return positions + int(self.index.start)

    @cached_property
    def to_packed(self) -> torch.Tensor:
        """int64 [N], position of each token in the flattened rectangle."""
        before_B = torch.arange(len(self.cu_lens) - 1, device=self.cu_lens.device) * self.max_len
        # With their number given nobody waits for a GPU to count them.
        added = torch.repeat_interleave(
            before_B - self.cu_lens[:-1], self.cu_lens.diff(), output_size=self.num_tokens
        )
        return added + torch.arange(self.num_tokens, device=added.device)

    @property
    def _offsets(self) -> torch.Tensor:
        return torch.arange(self.max_len, device=self.cu_lens.device)

    @property
    def _is_real(self) -> torch.Tensor:
        return self._offsets < self.cu_lens.diff()[:, None]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Sequences of which the last query stands at the last key; of queries there may be fewer."""

    queries: Packing
    keys: Packing

    @property
    def is_square(self) -> bool:
        """Whether each sequence has as many queries as keys."""
        return self.queries is self.keys

    def bias(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """What to add to scores: 0 for what a query sees, else minus infinity.

        All layers of a pass have the same: kept for the backward pass, it is there once.

        Args:
            window: Tokens that each token sees, itself included; None for all before it.
            dtype: Of the scores.

        Returns:
            Of rectangles: [queries, keys] where it is square, else [B, 1, queries, keys].
        """
        if (window, dtype) not in self._biases:
            device = self.queries.cu_lens.device
            position = torch.arange(self.queries.max_len, device=device)[:, None]
            if not self.is_square:
                lens_B = self.keys.cu_lens.diff()[:, None, None, None]
                num_before_B = lens_B - self.queries.cu_lens.diff()[:, None, None, None]
                # Padding stands where the last token does: what sees nothing has no softmax.
                position = torch.minimum(position + num_before_B, lens_B - 1)
            distance = position - torch.arange(self.keys.max_len, device=device)
            hidden = (distance < 0) | (distance >= (window or self.keys.max_len))
            bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._biases[window, dtype] = bias.masked_fill_(hidden, -torch.inf)
        return self._biases[window, dtype]

    @cached_property
    def _biases(self) -> dict[tuple[int | None, torch.dtype], torch.Tensor]:
        return {}


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """B sequences in one row of N tokens.

    Attributes:
        ids_N: Tokens.
        positions_N: Of each in its sequence.
        starts_B: Where each sequence's own tokens begin.
        prompt_starts_B: Where its prompt is, if that is shared.
        prompt_lens_B: Tokens of that prompt; 0 for none.
        packing: For attention.
    """

    ids_N: npt.NDArray[np.int64]
    positions_N: npt.NDArray[np.int64]
    starts_B: npt.NDArray[np.int64]
    prompt_starts_B: npt.NDArray[np.int64]
    prompt_lens_B: npt.NDArray[np.int64]
    packing: Packing


def pack(
    sequences_B: Sequence[npt.NDArray[np.int32]],
    prompt_lens_B: Sequence[int],
    *,
    device: torch.device,
) -> PackedRow:
    """Lay sequences end to end, each prompt with which several begin once, where that saves.

    Whole sequences and prompts stand first, then what goes on from a prompt, both in their order.

    Args:
        sequences_B: At least one.
        prompt_lens_B: Tokens at the beginning of each that it may share with others.
        device: Of the tensors.
    """
    lens_B = np.array([len(sequence) for sequence in sequences_B])
    first_B = _first_with_prompt(sequences_B, prompt_lens_B)
    shared_lens_B = np.where(first_B < 0, 0, prompt_lens_B)
    heads = np.flatnonzero((first_B < 0) | (first_B == np.arange(len(lens_B))))
    tails = np.flatnonzero((first_B >= 0) & (lens_B > shared_lens_B))
    pieces = [
        *(sequences_B[row][: shared_lens_B[row] or None] for row in heads),
        *(sequences_B[row][shared_lens_B[row] :] for row in tails),
    ]
    lens_S = np.array([len(piece) for piece in pieces])
    starts_S = np.cumsum(lens_S) - lens_S
    first_positions_S = np.concatenate([np.zeros_like(heads), shared_lens_B[tails]])
    starts_B = np.zeros_like(lens_B)
    starts_B[heads] = starts_S[: len(heads)]
    prompt_starts_B = np.where(first_B < 0, 0, starts_B[first_B])
    starts_B[tails] = starts_S[len(heads) :]

    packing = _packing(lens_S, device)
    if len(tails):
        whole, going_on = lens_S[: len(heads)], lens_S[len(heads) :]
        heads_packing = _packing(whole, device)
        keys_M = np.concatenate([
            np.concatenate([np.arange(shared) + prompt_start, np.arange(own) + start])
            for prompt_start, shared, start, own in zip(
                prompt_starts_B[tails], shared_lens_B[tails], starts_B[tails], going_on, strict=True
            )
        ])  # fmt: skip
        tails_part = Part(
            queries=_packing(going_on, device, slice(whole.sum(), lens_S.sum())),
            keys=_packing(lens_B[tails], device, on_device(keys_M, device)),
        )
        heads_part = Part(queries=heads_packing, keys=heads_packing)
        packing = replace(packing, shared=(heads_part, tails_part))
    offsets_S = first_positions_S - starts_S
    return PackedRow(
        ids_N=np.concatenate(pieces).astype(np.int64),
        positions_N=np.arange(lens_S.sum()) + np.repeat(offsets_S, lens_S),
        starts_B=starts_B,
        prompt_starts_B=prompt_starts_B,
        prompt_lens_B=shared_lens_B,
        packing=packing,
    )


def _first_with_prompt(
    sequences_B: Sequence[npt.NDArray[np.int32]], prompt_lens_B: Sequence[int]
) -> npt.NDArray[np.int64]:
    """The first row that begins with each row's prompt; -1 where the prompt is not shared."""
    rows_by_prompt: dict[bytes, list[int]] = {}
    for row, (sequence, num) in enumerate(zip(sequences_B, prompt_lens_B, strict=True)):
        rows_by_prompt.setdefault(sequence[:num].tobytes(), []).append(row)
    first_B = np.full(len(sequences_B), -1)
    for rows in rows_by_prompt.values():
        num_tokens = sum(len(sequences_B[row]) for row in rows)
        if shared_cost(prompt_lens_B[rows[0]], len(rows), num_tokens) < num_tokens:
            first_B[rows] = rows[0]
    return first_B


def _packing(
    lens_B: npt.NDArray[np.int64],
    device: torch.device,
    index: slice | torch.Tensor | None = None,
) -> Packing:
    cu_lens = np.concatenate([[0], np.cumsum(lens_B)])
    return Packing(
        cu_lens=on_device(cu_lens, device, dtype=np.int32),
        max_len=int(lens_B.max()),
        num_tokens=int(cu_lens[-1]),
        index=slice(0, int(cu_lens[-1])) if index is None else index,
    )


def take_rows(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of [N, ...] by int64 [M, ...]: [M, ..., ...].

    As indexing, but for the gradient: a row's copies, as of a prompt that stands once for several
    sequences, are added up in the order of `index`, and in float32 at least. Indexing adds them up
    in whatever order threads come to them, so that two passes differ in the last bits, and takes
    several times as long on a CPU.
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
