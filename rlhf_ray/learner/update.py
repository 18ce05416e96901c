"""One update: minibatches, each of micro-batches, each a forward and a backward pass."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rlhf_ray.algorithms import metric_sums
from rlhf_ray.algorithms.metric_sums import Metric, MetricSums
from rlhf_ray.algorithms.reduction import Reduction
from rlhf_ray.config.algorithm_table import ReductionKind
from rlhf_ray.learner.engine import TrainingEngine
from rlhf_ray.packing import MinibatchPlan, UpdatePlan

Row = TypeVar("Row")
# Rows of one micro-batch and the reduction of its optimiser step -> loss (this micro-batch's share
# of the step's) and metrics.
MicroBatchLoss = Callable[[Sequence[Any], Reduction], tuple[torch.Tensor, MetricSums]]
# One optimiser step -> the rows that its micro-batches train on, for losses in which a row's share
# depends on the step's other rows: by their number in the plan.
Preparation = Callable[[MinibatchPlan], Sequence[Any] | Mapping[int, Any]]


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """How minibatches become optimiser steps.

    Attributes:
        reduction: Of token losses.
        constant_length: For reduction `constant`; None for the others.
        replay_folder: Where rows go whose step was skipped; empty for nowhere.
    """

    reduction: ReductionKind
    constant_length: int | None
    replay_folder: str


def run_update(
    engine: TrainingEngine,
    rows: Sequence[Row],
    plan: UpdatePlan,
    loss_of: MicroBatchLoss,
    settings: UpdateSettings,
    *,
    prepare: Preparation | None = None,
) -> dict[str, float]:
    """Take every optimiser step of a plan, on one rank; all ranks call it with the same arguments.

    The rows are all of the plan, of which this rank may have none but its own (`OwnRows`) where
    `prepare`, which comes before an optimiser step's first pass, does not look at others'.

    Returns:
        Metrics over all ranks: the loss's own, `loss` and `grad_norm`, all of the steps that were
        applied; and `lr`, `skipped_steps`, `skipped_in_a_row`.
    """
    applied_parts: list[MetricSums] = []
    results = []
    most_skipped_in_a_row = 0
    for minibatch in plan.minibatches:
        reduction = Reduction(
            kind=settings.reduction,
            num_tokens=minibatch.num_tokens,
            num_sequences=minibatch.num_sequences,
            constant_length=settings.constant_length,
        )
        micro_batches = minibatch.micro_batches_by_rank[engine.dims.data_parallel_rank]
        parts: list[MetricSums] = []
        step_rows: Any = rows if prepare is None else prepare(minibatch)
        for index, micro_batch in enumerate(micro_batches):
            loss, metrics = loss_of([step_rows[row] for row in micro_batch], reduction)
            engine.backward(loss, is_last=index == len(micro_batches) - 1)
            # Parts of one optimiser step's loss add up; their shares add up to 1 a step. So the
            # quotient of the sums is the mean loss of a step, also where several ranks work on the
            # same rows.
            total = loss.detach().double()
            share = 1.0 / (len(micro_batches) * engine.dims.data_parallel_size)
            sums = torch.stack([total, torch.full_like(total, share)])
            parts.append({**metrics, "loss": Metric(kind="mean", sums=sums)})
        result = engine.step()
        results.append(result)
        most_skipped_in_a_row = max(most_skipped_in_a_row, engine.num_skipped_in_a_row)
        if result.applied:
            applied_parts += parts
        elif engine.dims.is_first_of_part:
            own = [rows[row] for micro_batch in micro_batches for row in micro_batch]
            rank = engine.dims.data_parallel_rank
            _write_for_replay(own, settings.replay_folder, rank=rank)
    norms = [result.grad_norm for result in results if result.applied]
    return {
        **_over_ranks(applied_parts),
        **({"grad_norm": fmean(norms)} if norms else {}),
        "lr": results[-1].lr,
        "skipped_steps": float(sum(not result.applied for result in results)),
        "skipped_in_a_row": float(most_skipped_in_a_row),
    }


def _over_ranks(parts: Sequence[MetricSums]) -> dict[str, float]:
    def reduced(operation: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def reduce(sums: torch.Tensor) -> torch.Tensor:
            sums = sums.clone()
            dist.all_reduce(sums, op=operation)
            return sums

        return reduce

    return metric_sums.values(
        metric_sums.across_ranks(
            metric_sums.merge(parts),
            sum_ranks=reduced(dist.ReduceOp.SUM),
            max_ranks=reduced(dist.ReduceOp.MAX),
        )
    )


def _write_for_replay(own: Sequence[Any], folder: str, *, rank: int) -> None:
    """Each rank writes its own rows: nobody has all of them."""
    if not folder or not own:
        return
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    number = len(list(target.glob(f"skipped_*_rank{rank:04d}.pkl")))
    (target / f"skipped_{number:04d}_rank{rank:04d}.pkl").write_bytes(pickle.dumps(own))
