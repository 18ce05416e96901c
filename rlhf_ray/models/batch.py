"""From ragged sequences to what a transformer is fed: laid end to end, or as a rectangle.

Both layouts need no attention mask. Packed, attention keeps to each sequence by `Packing`; padded,
the padding stands on the right, where causal attention never looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where the sequences of a packed row lie.

    Attributes:
        cu_lens: int32 [B + 1], start of each sequence, then the end of the last.
        max_len: Longest sequence.
        num_tokens: N, of all sequences.
    """

    cu_lens: torch.Tensor
    max_len: int
    num_tokens: int

    @cached_property
    def to_padded(self) -> torch.Tensor:
        """int64 [B, max_len], position in the packed row; padding points at position 0."""
        positions = self.cu_lens[:-1, None] + self._offsets
        return torch.where(self._is_real, positions, 0).long()

    @cached_property
    def to_packed(self) -> torch.Tensor:
        """int64 [N], position of each packed token in the flattened rectangle."""
        return self._is_real.flatten().nonzero().squeeze(1)

    @property
    def _offsets(self) -> torch.Tensor:
        return torch.arange(self.max_len, device=self.cu_lens.device)

    @property
    def _is_real(self) -> torch.Tensor:
        return self._offsets < self.cu_lens.diff()[:, None]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sequences as one forward pass takes them.

    Attributes:
        input_ids: int64, [1, N] packed or [B, Tmax] padded.
        position_ids: int64, the same shape, counted from 0 in each sequence; padding has that of
            the last token.
        packing: Of the packed layout; None for the padded one.
        starts_B: int64 [B], flat position of each sequence's first token.
        lens_B: int64 [B], tokens of each sequence.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    packing: Packing | None
    starts_B: torch.Tensor
    lens_B: torch.Tensor

    @property
    def last_B(self) -> torch.Tensor:
        """Flat position of each sequence's last token."""
        return self.starts_B + self.lens_B - 1

    @property
    def attention_mask(self) -> torch.Tensor:
        """int64, the shape of `input_ids`: 1 for a token, 0 for padding."""
        if self.packing is not None:
            return torch.ones_like(self.input_ids)
        offsets = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return (offsets[None, :] < self.lens_B[:, None]).long()


@dataclass(frozen=True, kw_only=True)
class TokenBatch(Layout):
    """One forward pass, and which of its tokens are scored.

    Attributes:
        predict: int64 [T], flat positions whose next token is scored.
        targets_T: int64 [T], those next tokens.
        segments_T: int64 [T], which sequence of the batch each belongs to.
        num_sequences: B.
    """

    predict: torch.Tensor
    targets_T: torch.Tensor
    segments_T: torch.Tensor
    num_sequences: int


LaidOut = TypeVar("LaidOut", bound=Layout)


def lay_out(
    sequences_B: Sequence[npt.NDArray[np.int32]],
    *,
    padded: bool,
    device: torch.device,
    pad_id: int = 0,
) -> Layout:
    """Lay out sequences for one forward pass.

    Args:
        sequences_B: Token ids of each sequence; none at all makes one sequence of one token, so
            that a rank without work can still join collectives.
        padded: Rectangle instead of end to end.
        device: Of the tensors.
        pad_id: Stands on the right of the shorter ones in a rectangle.
    """
    sequences_B = sequences_B or [np.zeros(1, dtype=np.int32)]
    lens_B = np.asarray([len(sequence) for sequence in sequences_B])
    if padded:
        max_len = int(lens_B.max())
        input_ids = np.full((len(lens_B), max_len), pad_id, dtype=np.int64)
        for row, sequence in enumerate(sequences_B):
            input_ids[row, : len(sequence)] = sequence
        # Padding counts no further: some rotary embeddings look at the highest position.
        position_ids = np.minimum(np.arange(max_len)[None, :], lens_B[:, None] - 1)
        starts_B = np.arange(len(lens_B)) * max_len
    else:
        input_ids = np.concatenate(sequences_B).astype(np.int64)[None]
        position_ids = np.concatenate([np.arange(n) for n in lens_B])[None]
        starts_B = np.cumsum(lens_B) - lens_B
    return Layout(
        input_ids=_tensor(input_ids, device),
        position_ids=_tensor(position_ids, device),
        packing=None if padded else _packing(lens_B, device),
        starts_B=_tensor(starts_B, device),
        lens_B=_tensor(lens_B, device),
    )


def build_batch(
    sequences_B: Sequence[npt.NDArray[np.int32]],
    scored_B: Sequence[npt.NDArray[np.int64]],
    *,
    padded: bool,
    device: torch.device,
) -> TokenBatch:
    """Lay out sequences for one forward pass that scores tokens.

    Args:
        sequences_B: Token ids of each sequence.
        scored_B: Indices (at least 1) of each sequence's tokens whose log-probability is wanted. An
            index one past the end asks what a critic makes of the whole sequence; its target is 0.
        padded: Rectangle instead of end to end.
        device: Of the tensors.

    Returns:
        The batch; scored tokens come in the order of sequences. No sequence at all makes a batch of
        one token that scores nothing.
    """
    layout = lay_out(sequences_B, padded=padded, device=device)
    nothing = np.zeros(0, dtype=np.int64)
    targets = [
        np.append(sequence, 0)[scored]
        for sequence, scored in zip(sequences_B, scored_B, strict=True)
    ]
    num_scored_B = np.array([len(scored) for scored in scored_B], dtype=np.int64)
    segments_T = _tensor(np.repeat(np.arange(len(scored_B)), num_scored_B), device)
    scored_T = _tensor(np.concatenate([nothing, *scored_B]), device)
    return TokenBatch(
        **vars(layout),
        predict=layout.starts_B[segments_T] + scored_T - 1,
        targets_T=_tensor(np.concatenate([nothing, *targets]), device),
        segments_T=segments_T,
        num_sequences=len(layout.lens_B),
    )


def moved(layout: LaidOut, distance: int) -> LaidOut:
    """The same with its last sequence at positions further on, as if it belonged to a long text."""
    positions = layout.position_ids.clone()
    positions.view(-1)[layout.starts_B[-1] :] += distance
    return replace(layout, position_ids=positions)


def _tensor(array: npt.NDArray[np.integer], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)


def _packing(lens_B: npt.NDArray[np.int64], device: torch.device) -> Packing:
    max_len = int(lens_B.max())
    cu_lens = np.concatenate([[0], np.cumsum(lens_B)])
    return Packing(
        cu_lens=torch.from_numpy(cu_lens.astype(np.int32)).to(device),
        max_len=max_len,
        num_tokens=int(cu_lens[-1]),
    )
