"""Flat tensors from rows: the numbers that stand beside a micro-batch's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from rlhf_ray.models.batch import TokenBatch, build_batch
from rlhf_ray.types import Experience, LabelledAnswer, Ranking, Rollout

Row = TypeVar("Row")


def rollout_batch(
    rollouts_B: Sequence[Rollout], *, padded: bool, device: torch.device, with_end: bool = False
) -> TokenBatch:
    """Prompts and responses, with every response token scored; `with_end` what follows as well."""
    sequences, scored = [], []
    for rollout in rollouts_B:
        num_prompt = len(rollout.prompt.token_ids_T)
        sequences.append(
            np.concatenate(
                [np.asarray(rollout.prompt.token_ids_T, dtype=np.int32), rollout.response_ids_T]
            )
        )
        scored.append(np.arange(num_prompt, rollout.num_tokens + with_end))
    return build_batch(sequences, scored, padded=padded, device=device)


def answer_batch(
    rows_B: Sequence[Ranking | LabelledAnswer],
    *,
    answers: slice,
    padded: bool,
    device: torch.device,
) -> TokenBatch:
    """Each picked answer behind a prompt of its own, with every answer token scored."""
    sequences, scored = [], []
    for row in rows_B:
        # Without a prompt nothing predicts an answer's first token.
        first = max(1, len(row.prompt_ids_T))
        for answer_T in row.answer_ids_K[answers]:
            sequences.append(np.concatenate([row.prompt_ids_T, answer_T]))
            scored.append(np.arange(first, len(sequences[-1])))
    return build_batch(sequences, scored, padded=padded, device=device)


def answer_sums(values_T: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """Sum over the scored tokens of each sequence: [B], differentiable."""
    return values_T.new_zeros(batch.num_sequences).index_add(0, batch.segments_T, values_T)


def flat(
    rows_B: Sequence[Row],
    of: Callable[[Row], npt.NDArray[np.generic]],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """One array of each row, end to end: [T]; empty for no rows."""
    if not rows_B:
        return torch.zeros(0, dtype=dtype, device=device)
    return torch.from_numpy(np.concatenate([of(row) for row in rows_B])).to(device, dtype)


def action_mask(rows_B: Sequence[Experience], device: torch.device) -> torch.Tensor:
    """True for action tokens: [T]."""
    return flat(rows_B, lambda row: row.rollout.action_mask_T, dtype=torch.bool, device=device)


def action_lens(rows_B: Sequence[Experience], device: torch.device) -> torch.Tensor:
    """Action tokens of each row: [B], one 0 for no rows."""
    lens = [int(row.rollout.action_mask_T.sum()) for row in rows_B] or [0]
    return torch.tensor(lens, device=device)


def split_rows(values_T: torch.Tensor, lens_B: Sequence[int]) -> list[npt.NDArray[np.float32]]:
    """[T] back into one array a row."""
    array = values_T.detach().float().cpu().numpy()
    return [part.copy() for part in np.split(array, np.cumsum(lens_B)[:-1])] if lens_B else []
