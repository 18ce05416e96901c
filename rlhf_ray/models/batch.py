"""From ragged sequences to what a transformer is fed: laid end to end, or as a rectangle.

Both layouts need no attention mask. Packed, attention keeps to each sequence by `Packing`; padded,
the padding stands on the right, where causal attention never looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where the sequences of a packed row lie.

    Attributes:
        cu_lens: int32 [B + 1], start of each sequence, then the end of the last.
        max_len: Longest sequence.
        to_padded: int64 [B, max_len], position in the packed row; padding points at position 0.
        to_packed: int64 [N], position of each packed token in the flattened rectangle.
    """

    cu_lens: torch.Tensor
    max_len: int
    to_padded: torch.Tensor
    to_packed: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """One forward pass.

    Attributes:
        input_ids: int64, [1, N] packed or [B, Tmax] padded.
        position_ids: int64, the same shape, counted from 0 in each sequence.
        packing: Of the packed layout; None for the padded one.
        predict: int64 [T], flat positions whose next token is scored.
        targets_T: int64 [T], those next tokens.
        segments_T: int64 [T], which sequence of the batch each belongs to.
        num_sequences: B.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    packing: Packing | None
    predict: torch.Tensor
    targets_T: torch.Tensor
    segments_T: torch.Tensor
    num_sequences: int


def build_batch(
    sequences_B: Sequence[npt.NDArray[np.int32]],
    scored_B: Sequence[npt.NDArray[np.int64]],
    *,
    padded: bool,
    device: torch.device,
) -> TokenBatch:
    """Lay out sequences for one forward pass.

    Args:
        sequences_B: Token ids of each sequence.
        scored_B: Indices (at least 1) of each sequence's tokens whose log-probability is wanted.
        padded: Rectangle instead of end to end.
        device: Of the tensors.

    Returns:
        The batch; scored tokens come in the order of sequences. No sequence at all makes a batch of
        one token that scores nothing, so that a rank without work can still join collectives.
    """
    if not sequences_B:
        sequences_B, scored_B = [np.zeros(1, dtype=np.int32)], [np.zeros(0, dtype=np.int64)]
    lens_B = np.asarray([len(sequence) for sequence in sequences_B])
    max_len = int(lens_B.max())
    if padded:
        input_ids = np.zeros((len(lens_B), max_len), dtype=np.int64)
        for row, sequence in enumerate(sequences_B):
            input_ids[row, : len(sequence)] = sequence
        position_ids = np.broadcast_to(np.arange(max_len), input_ids.shape)
        starts_B = np.arange(len(lens_B)) * max_len
    else:
        input_ids = np.concatenate(sequences_B).astype(np.int64)[None]
        position_ids = np.concatenate([np.arange(n) for n in lens_B])[None]
        starts_B = np.cumsum(lens_B) - lens_B

    def tensor(array: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

    pairs = list(zip(starts_B, scored_B, strict=True))
    targets = [sequence[scored] for sequence, scored in zip(sequences_B, scored_B, strict=True)]
    return TokenBatch(
        input_ids=tensor(input_ids),
        position_ids=tensor(position_ids),
        packing=None if padded else _packing(lens_B, device),
        predict=tensor(np.concatenate([start + scored - 1 for start, scored in pairs])),
        targets_T=tensor(np.concatenate(targets)),
        segments_T=tensor(np.repeat(np.arange(len(lens_B)), [len(s) for s in scored_B])),
        num_sequences=len(lens_B),
    )


def _packing(lens_B: npt.NDArray[np.int64], device: torch.device) -> Packing:
    max_len = int(lens_B.max())
    cu_lens = np.concatenate([[0], np.cumsum(lens_B)])
    offsets = np.arange(max_len)[None, :]
    real = offsets < lens_B[:, None]
    to_padded = np.where(real, cu_lens[:-1, None] + offsets, 0)
    return Packing(
        cu_lens=torch.from_numpy(cu_lens.astype(np.int32)).to(device),
        max_len=max_len,
        to_padded=torch.from_numpy(to_padded).to(device),
        to_packed=torch.from_numpy(np.flatnonzero(real)).to(device),
    )
