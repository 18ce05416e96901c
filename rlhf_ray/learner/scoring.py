"""Inference passes over rollouts, micro-batch by micro-batch, in step with the other ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from rlhf_ray.config.base import ForwardConfig
from rlhf_ray.data.packing import RankedMicroBatches
from rlhf_ray.learner.rows import rollout_batch, split_rows
from rlhf_ray.learner.update import num_chunks_of_pass
from rlhf_ray.models.batch import TokenBatch
from rlhf_ray.types import Rollout


def score_rollouts(
    forward: Callable[[TokenBatch, int], torch.Tensor],
    rollouts: Sequence[Rollout],
    plan: RankedMicroBatches,
    config: ForwardConfig,
    *,
    device: torch.device,
) -> list[npt.NDArray[np.float32]]:
    """One number a response token, for this rank's rows.

    Args:
        forward: Batch and calls of the vocabulary product -> [T].
        rollouts: All rows of the plan.
        plan: Rank -> micro-batch -> row.
        config: Layout of micro-batches, chunks of logits.
        device: Of the model.

    Returns:
        One array a row, in the order in which `plan` names this rank's rows.
    """
    lens_B = [len(rollout.response_ids_T) for rollout in rollouts]
    scored: list[npt.NDArray[np.float32]] = []
    with torch.no_grad():
        for index, rows in enumerate(plan[dist.get_rank()]):
            batch = rollout_batch(
                [rollouts[row] for row in rows], padded=config.padded, device=device
            )
            num_chunks = num_chunks_of_pass(plan, index, lens_B, config.logits_chunk_tokens)
            scored += split_rows(forward(batch, num_chunks), [lens_B[row] for row in rows])
    return scored
