"""Rows as flat tensors, and passes over them by micro-batches, in step with the other ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.learner.engine import InferenceEngine, ParallelDims
from rlhf_ray.models.batch import TokenBatch, build_batch
from rlhf_ray.models.modes import CheckedModel
from rlhf_ray.models.transfer import on_device
from rlhf_ray.own_rows import OtherRow, own_of
from rlhf_ray.packing import RankedMicroBatches, UpdatePlan, cut
from rlhf_ray.types import Experience, IntArray, LabelledAnswer, Ranking, Rollout

Row = TypeVar("Row")
T = TypeVar("T")


def rollout_batch(
    rollouts_B: Sequence[Rollout], model: CheckedModel, *, with_end: bool = False
) -> TokenBatch:
    """Prompts and responses as `model` takes them, with the policy's own tokens scored.

    The others, which an environment wrote, cost no product with the vocabulary. `with_end` scores
    what follows the response as well.
    """
    sequences, scored, prompt_lens = [], [], []
    for rollout in rollouts_B:
        prompt_T = np.asarray(rollout.prompt.token_ids_T, dtype=np.int32)
        sequences.append(np.concatenate([prompt_T, rollout.response_ids_T]))
        own_T = len(prompt_T) + np.flatnonzero(rollout.action_mask_T)
        scored.append(np.append(own_T, rollout.num_tokens) if with_end else own_T)
        prompt_lens.append(len(prompt_T))
    return _batch(sequences, scored, prompt_lens, model)


def answer_batch(
    rows_B: Sequence[Ranking | LabelledAnswer], model: CheckedModel, *, answers: slice
) -> TokenBatch:
    """Each picked answer behind its prompt, with every answer token scored."""
    sequences, scored, prompt_lens = [], [], []
    for row in rows_B:
        # Without a prompt nothing predicts an answer's first token.
        first = max(1, len(row.prompt_ids_T))
        for answer_T in row.answer_ids_K[answers]:
            sequences.append(np.concatenate([row.prompt_ids_T, answer_T]))
            scored.append(np.arange(first, len(sequences[-1])))
            prompt_lens.append(len(row.prompt_ids_T))
    return _batch(sequences, scored, prompt_lens, model)


def _batch(
    sequences_B: Sequence[IntArray],
    scored_B: Sequence[npt.NDArray[np.int64]],
    prompt_lens_B: Sequence[int],
    model: CheckedModel,
) -> TokenBatch:
    return build_batch(
        sequences_B,
        scored_B,
        padded=model.padded,
        device=model.device,
        prompt_lens_B=prompt_lens_B if model.mode.shares_prompts else None,
    )


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
    return on_device(np.concatenate([of(row) for row in rows_B]), device).to(dtype)


def action_lens(rows_B: Sequence[Experience], device: torch.device) -> torch.Tensor:
    """Action tokens of each row: [B], one 0 for no rows."""
    lens = [int(row.rollout.action_mask_T.sum()) for row in rows_B] or [0]
    return on_device(lens, device)


def among_others(
    own_T: npt.NDArray[np.float32], rollout: Rollout, *, with_end: bool = False
) -> npt.NDArray[np.float32]:
    """Numbers of the own tokens, [T] or [T, M], among the response's, where others have 0.

    `with_end` leaves one more behind all tokens.
    """
    is_own_T = np.append(rollout.action_mask_T, True) if with_end else rollout.action_mask_T
    values_T = np.zeros((len(is_own_T), *own_T.shape[1:]), dtype=np.float32)
    values_T[is_own_T] = own_T
    return values_T


def split_rows(values_T: torch.Tensor, lens_B: Sequence[int]) -> list[npt.NDArray[np.float32]]:
    """[T], or [T, M], back into one array a row."""
    array = values_T.detach().float().cpu().numpy()
    return [part.copy() for part in np.split(array, np.cumsum(lens_B)[:-1])] if lens_B else []


def fitted(
    plan: RankedMicroBatches, lengths_B: Sequence[int], config: ForwardConfig, model: CheckedModel
) -> RankedMicroBatches:
    """The plan, its micro-batches cut where the model takes more tokens than was planned with.

    Whoever plans knows the configuration, and takes `layout: auto` for packed, with shared prompts.
    Whether a model needs rectangles, or each prompt anew, is known where it is loaded.

    Args:
        plan: Data-parallel rank -> micro-batch -> row.
        lengths_B: Tokens of each row, a prompt for each answer included.
        config: What the plan was made by.
        model: What runs it.
    """
    mode = model.mode
    if (mode.packed, mode.shares_prompts) == (not config.padded, config.shares_prompts):
        return plan
    budget = config.max_tokens_per_micro_batch
    return cut(plan, lengths_B, max_tokens_per_micro_batch=budget, padded=model.padded)


def fitted_update(
    plan: UpdatePlan, lengths_B: Sequence[int], config: ForwardConfig, model: CheckedModel
) -> UpdatePlan:
    """The same of every optimiser step."""
    return UpdatePlan(
        minibatches=tuple(
            replace(
                minibatch,
                micro_batches_by_rank=fitted(
                    minibatch.micro_batches_by_rank, lengths_B, config, model
                ),
            )
            for minibatch in plan.minibatches
        )
    )


def score_rows(
    engine: InferenceEngine,
    score: Callable[[Sequence[int]], list[T]],
    plan: RankedMicroBatches,
    lengths_B: Sequence[int],
    config: ForwardConfig,
) -> list[T]:
    """What `score` says of the rows of each of this rank's micro-batches, one pass each.

    It is called without gradients and dropout. Other arguments are as in `fitted`; what it says
    comes in the order in which `plan` names this rank's rows.
    """
    scored: list[T] = []
    with engine.inference():
        for rows in fitted(plan, lengths_B, config, engine.module)[engine.dims.data_parallel_rank]:
            scored += score(rows)
    return scored


def score_rollouts(
    engine: InferenceEngine,
    forward: Callable[[TokenBatch], torch.Tensor],
    rollouts: Sequence[Rollout | OtherRow],
    plan: RankedMicroBatches,
    config: ForwardConfig,
    *,
    with_end: bool = False,
) -> list[npt.NDArray[np.float32]]:
    """One number a response token, for this rank's rows: an array each, in the order of the plan.

    Tokens that are not the policy's own have 0. `rollouts` are all rows of the plan, of
    which others' may be missing (`OwnRows`). `forward` may
    give several numbers a token, [T, M], and `with_end` makes one more for each row, of what
    follows its last token.
    """
    model: CheckedModel = engine.module

    def score(rows: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        some = own_of(rollouts, rows)
        batch = rollout_batch(some, model, with_end=with_end)
        lens_B = [int(rollout.action_mask_T.sum()) + with_end for rollout in some]
        own_B = split_rows(forward(batch), lens_B)
        return [
            among_others(own_T, rollout, with_end=with_end)
            for own_T, rollout in zip(own_B, some, strict=True)
        ]

    lengths_B = [rollout.num_tokens for rollout in rollouts]
    return score_rows(engine, score, plan, lengths_B, config)


def score_answers(
    engine: InferenceEngine,
    rows: Sequence[Ranking | LabelledAnswer],
    plan: RankedMicroBatches,
    config: ForwardConfig,
    *,
    answers: slice = slice(None),
) -> list[tuple[float, ...]]:
    """The sum of each answer's log-probabilities (nats), for this rank's rows; `answers` of each.

    Order as in `score_rows`.
    """
    model: CheckedModel = engine.module

    def score(picked: Sequence[int]) -> list[tuple[float, ...]]:
        some = [rows[row] for row in picked]
        batch = answer_batch(some, model, answers=answers)
        sums_B = iter(answer_sums(engine(batch).logprobs_T, batch).tolist())
        return [tuple(next(sums_B) for _ in row.answer_ids_K[answers]) for row in some]

    return score_rows(engine, score, plan, [row.num_tokens for row in rows], config)


def over_ranks(
    values: Sequence[tuple[float, ...]],
    plan: RankedMicroBatches,
    dims: ParallelDims,
    *,
    num_rows: int,
    width: int,
    device: torch.device,
) -> torch.Tensor:
    """The numbers of all ranks' rows, on every rank; `device` is the process group's.

    `values` are at most `width` (K) numbers a row of this rank, in the order of `plan`, cut to
    rectangles or not.

    Returns:
        float64 [B, K]; 0 where a row has no number, and for rows that the plan leaves out.
    """
    table_BK = torch.zeros(num_rows, width, dtype=torch.float64)
    if dims.is_first_of_part:
        own_rows = [row for rows in plan[dims.data_parallel_rank] for row in rows]
        for row, numbers in zip(own_rows, values, strict=True):
            table_BK[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
    table_BK = table_BK.to(device)
    dist.all_reduce(table_BK)
    return table_BK
