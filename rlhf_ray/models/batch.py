"""From ragged sequences to what a transformer is fed: laid end to end, or as a rectangle.

Both layouts need no attention mask. Packed, attention keeps to each sequence by `Packing`, and a
prompt that several sequences begin with may stand once; padded, the padding stands on the right,
where causal attention never looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from rlhf_ray.models.packed import Packing, pack
from rlhf_ray.models.transfer import on_device


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sequences as one forward pass takes them.

    Attributes:
        input_ids: int64, [1, N] packed or [B, Tmax] padded.
        position_ids: int64, the same shape, counted from 0 in each sequence; padding has that of
            the last token.
        packing: Of the packed layout; None for the padded one.
        starts_B: int64 [B], flat position of each sequence's first token, or of the first behind a
            prompt that it shares.
        lens_B: int64 [B], tokens of each sequence, its prompt included.
        prompt_starts_B: int64 [B], flat position of the prompt that it shares.
        prompt_lens_B: int64 [B], tokens of that prompt; 0 for none.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    packing: Packing | None
    starts_B: torch.Tensor
    lens_B: torch.Tensor
    prompt_starts_B: torch.Tensor
    prompt_lens_B: torch.Tensor

    def places(self, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Flat positions of tokens, each by its sequence and its number in it: int64, all alike."""
        behind = tokens - self.prompt_lens_B[rows]
        shared = self.prompt_starts_B[rows] + tokens
        return torch.where(behind < 0, shared, self.starts_B[rows] + behind)

    @property
    def last_B(self) -> torch.Tensor:
        """Flat position of each sequence's last token."""
        return self.places(torch.arange(len(self.lens_B)).to(self.lens_B), self.lens_B - 1)

    @property
    def num_uses(self) -> torch.Tensor:
        """int64, the shape of `input_ids`: how many sequences have each token; 0 for padding."""
        own_lens_B, one_B = self.lens_B - self.prompt_lens_B, torch.ones_like(self.lens_B)
        changes = self.lens_B.new_zeros(self.input_ids.numel() + 1)
        for starts_B, lens_B in (
            (self.starts_B, own_lens_B),
            (self.prompt_starts_B, self.prompt_lens_B),
        ):
            changes.index_add_(0, starts_B, one_B).index_add_(0, starts_B + lens_B, -one_B)
        return changes[:-1].cumsum(0).view_as(self.input_ids)

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
    prompt_lens_B: Sequence[int] | None = None,
) -> Layout:
    """Lay out sequences for one forward pass.

    Args:
        sequences_B: Token ids of each sequence; none at all makes one sequence of one token, so
            that a rank without work can still join collectives.
        padded: Rectangle instead of end to end.
        device: Of the tensors.
        pad_id: Stands on the right of the shorter ones in a rectangle.
        prompt_lens_B: Tokens at the beginning of each that those which begin with the same share,
            where they lie end to end and that saves; None for nothing.
    """
    if not sequences_B:
        sequences_B, prompt_lens_B = [np.zeros(1, dtype=np.int32)], None
    lens_B = np.asarray([len(sequence) for sequence in sequences_B])
    if padded:
        max_len = int(lens_B.max())
        input_ids = np.full((len(lens_B), max_len), pad_id, dtype=np.int64)
        for row, sequence in enumerate(sequences_B):
            input_ids[row, : len(sequence)] = sequence
        # Padding counts no further: some rotary embeddings look at the highest position.
        position_ids = np.minimum(np.arange(max_len)[None, :], lens_B[:, None] - 1)
        starts_B, nothing_B = np.arange(len(lens_B)) * max_len, np.zeros_like(lens_B)
        prompt_starts_B = shared_lens_B = nothing_B
        packing = None
    else:
        packed = pack(sequences_B, prompt_lens_B or [0] * len(lens_B), device=device)
        input_ids, position_ids = packed.ids_N[None], packed.positions_N[None]
        starts_B, packing = packed.starts_B, packed.packing
        prompt_starts_B, shared_lens_B = packed.prompt_starts_B, packed.prompt_lens_B
    return Layout(
        input_ids=_tensor(input_ids, device),
        position_ids=_tensor(position_ids, device),
        packing=packing,
        starts_B=_tensor(starts_B, device),
        lens_B=_tensor(lens_B, device),
        prompt_starts_B=_tensor(prompt_starts_B, device),
        prompt_lens_B=_tensor(shared_lens_B, device),
    )


def build_batch(
    sequences_B: Sequence[npt.NDArray[np.int32]],
    scored_B: Sequence[npt.NDArray[np.int64]],
    *,
    padded: bool,
    device: torch.device,
    prompt_lens_B: Sequence[int] | None = None,
) -> TokenBatch:
    """Lay out sequences for one forward pass that scores tokens.

    Args:
        sequences_B: Token ids of each sequence.
        scored_B: Indices (at least 1) of each sequence's tokens whose log-probability is wanted. An
            index one past the end asks what a critic makes of the whole sequence; its target is 0.
        padded: Rectangle instead of end to end.
        device: Of the tensors.
        prompt_lens_B: See `lay_out`.

    Returns:
        The batch; scored tokens come in the order of sequences. No sequence at all makes a batch of
        one token that scores nothing.
    """
    layout = lay_out(sequences_B, padded=padded, device=device, prompt_lens_B=prompt_lens_B)
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
        predict=layout.places(segments_T, scored_T - 1),
        targets_T=_tensor(np.concatenate([nothing, *targets]), device),
        segments_T=segments_T,
        num_sequences=len(layout.lens_B),
    )


def moved(layout: LaidOut, distance: int) -> LaidOut:
    """The same with its last sequence, which shares no prompt, further on, as in a long text."""
    positions = layout.position_ids.clone()
    start = layout.starts_B[-1]
    positions.view(-1)[start : start + layout.lens_B[-1]] += distance
    return replace(layout, position_ids=positions)


def _tensor(array: npt.NDArray[np.integer], device: torch.device) -> torch.Tensor:
    return on_device(array, device, dtype=np.int64)
