"""Passes over rows, micro-batch by micro-batch, in step with the other ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from rlhf_ray.config.base import ForwardConfig
from rlhf_ray.learner.fitting import fitted
from rlhf_ray.learner.rows import answer_batch, answer_sums, rollout_batch, split_rows
from rlhf_ray.models.batch import TokenBatch
from rlhf_ray.models.checked import CheckedModel
from rlhf_ray.packing import RankedMicroBatches
from rlhf_ray.types import LabelledAnswer, Ranking, Rollout

# Batch -> [T].
Forward = Callable[[TokenBatch], torch.Tensor]


def score_rollouts(
    forward: Forward,
    rollouts: Sequence[Rollout],
    plan: RankedMicroBatches,
    config: ForwardConfig,
    model: CheckedModel,
    *,
    with_end: bool = False,
) -> list[npt.NDArray[np.float32]]:
    """One number a response token, for this rank's rows.

    Args:
        forward: Scores one batch.
        rollouts: All rows of the plan.
        plan: Rank -> micro-batch -> row.
        config: What the plan was made by.
        model: Says how its batches are laid out, and where.
        with_end: One number more for each row, of what follows its last token.

    Returns:
        One array a row, in the order in which `plan` names this rank's rows.
    """
    lens_B = [len(rollout.response_ids_T) + with_end for rollout in rollouts]
    scored: list[npt.NDArray[np.float32]] = []
    plan = fitted(plan, [rollout.num_tokens for rollout in rollouts], config, model)
    for rows in plan[dist.get_rank()]:
        batch = rollout_batch(
            [rollouts[row] for row in rows],
            padded=model.padded,
            device=model.device,
            with_end=with_end,
        )
        scored += split_rows(forward(batch), [lens_B[row] for row in rows])
    return scored


def score_answers(
    forward: Forward,
    rows: Sequence[Ranking | LabelledAnswer],
    plan: RankedMicroBatches,
    config: ForwardConfig,
    model: CheckedModel,
    *,
    answers: slice = slice(None),
) -> list[tuple[float, ...]]:
    """The sum of each answer's token scores, for this rank's rows.

    Arguments and order as in `score_rollouts`; `answers` picks some of each row's.
    """
    sums: list[tuple[float, ...]] = []
    plan = fitted(plan, [row.num_tokens for row in rows], config, model)
    for picked in plan[dist.get_rank()]:
        some = [rows[row] for row in picked]
        batch = answer_batch(some, answers=answers, padded=model.padded, device=model.device)
        sums_B = iter(answer_sums(forward(batch), batch).tolist())
        sums += [tuple(next(sums_B) for _ in row.answer_ids_K[answers]) for row in some]
    return sums


def over_ranks(
    values: Sequence[tuple[float, ...]],
    plan: RankedMicroBatches,
    *,
    num_rows: int,
    width: int,
    device: torch.device,
) -> torch.Tensor:
    """The numbers of all ranks' rows, on every rank.

    Args:
        values: At most `width` numbers a row of this rank, in the order of the plan.
        plan: Rank -> micro-batch -> row.
        num_rows: B.
        width: K.
        device: Of the process group.

    Returns:
        float64 [B, K]; 0 where a row has no number, and for rows that the plan leaves out.
    """
    table_BK = torch.zeros(num_rows, width, dtype=torch.float64)
    mine = [row for rows in plan[dist.get_rank()] for row in rows]
    for row, numbers in zip(mine, values, strict=True):
        table_BK[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
    table_BK = table_BK.to(device)
    dist.all_reduce(table_BK)
    return table_BK
