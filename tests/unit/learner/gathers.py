"""How often ZeRO-3 gathers a head's weight in passes with many numbers of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from learning import gradients_of, hosted, learner_config

from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.packing import MinibatchPlan, UpdatePlan
from rlhf_ray.specs import SupervisedSpec
from rlhf_ray.types import SftExample

LENGTHS = (30, 4, 17, 23, 2, 9, 28, 6)
# Rows of each pass on each of two ranks, in chunks of 4 tokens: 13 and 2 of them, 6 and 1, and in
# the last pass a rank has no rows at all.
PASSES = (((0, 1, 2), (5,)), ((3,), (4,)), ((), (6, 7)))
# Every weight is spread, however small.
ZERO_3 = {"stage": 3, "extra": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}


@dataclass(frozen=True, kw_only=True)
class HeadTask:
    """A model's folder, the settings of it, and of ZeRO."""

    path: Path
    model: dict[str, Any]
    zero: dict[str, Any] = field(default_factory=lambda: ZERO_3)


@dataclass(kw_only=True)
class Gathers:
    """Of one weight, forward and backward in each pass.

    Attributes:
        invalidated: Passes, counted from 1, in which ZeRO-3 gave up the order that it knew.
    """

    forward: list[int] = field(default_factory=list)
    backward: list[int] = field(default_factory=list)
    invalidated: list[int] = field(default_factory=list)


def step_of(task: HeadTask, num_ranks: int) -> tuple[dict[str, torch.Tensor], Gathers]:
    """The first step's gradient, and the gathers of all passes of four steps and an evaluation."""
    config = learner_config(
        task.path,
        {
            "model": dict(task.model),
            "zero": task.zero,
            "logits_chunk_tokens": 4,
            "max_tokens_per_micro_batch": 512,
            "optim": {"max_grad_norm": 1e9},
        },
    )
    job = SftConfig.model_validate({"data": {"path": "unused"}, "policy": config})
    spec = SupervisedSpec(job=job, total_steps=10, replay_folder="")
    learner = hosted(spec)
    rows, plan = _rows(), _plan(num_ranks)
    try:
        with counted(learner) as found:
            learner.update(rows, plan)
            gradients = gradients_of(learner)
            learner.evaluate(rows, plan.minibatches[0].micro_batches_by_rank)
            for _ in range(3):
                learner.update(rows, plan)
        return gradients, found
    finally:
        learner.close()


@contextmanager
def counted(learner: Any) -> Iterator[Gathers]:
    """Counts while this is open, of the weight that makes logits."""
    found, weight = Gathers(), learner.lm.get_output_embeddings().weight
    backward, phase = learner.engine.engine.backward, found.forward
    invalidate = PartitionedParameterCoordinator._invalidate_trace

    def new_pass(*_: Any) -> None:
        nonlocal phase
        found.forward.append(0)
        found.backward.append(0)
        phase = found.forward

    def going_back(*arguments: Any, **keywords: Any) -> Any:
        nonlocal phase
        phase = found.backward
        return backward(*arguments, **keywords)

    def noted(gather: Callable[..., Any], own: torch.nn.Parameter) -> Callable[..., Any]:
        def gathering(params: Any = None, **keywords: Any) -> Any:
            some = [own] if params is None else params
            if found.forward and any(param is weight for param in some):
                phase[-1] += weight.ds_status == ZeroParamStatus.NOT_AVAILABLE
            return gather(params, **keywords)

        return gathering

    def invalidating(self: Any) -> None:
        found.invalidated.append(len(found.forward))
        invalidate(self)

    learner.model.register_forward_pre_hook(new_pass, prepend=True)
    for parameter in learner.model.parameters():
        for name in ("all_gather", "all_gather_coalesced"):
            if hasattr(parameter, name):
                setattr(parameter, name, noted(getattr(parameter, name), parameter))
    with (
        mock.patch.object(PartitionedParameterCoordinator, "_invalidate_trace", invalidating),
        mock.patch.object(learner.engine.engine, "backward", going_back),
    ):
        yield found


def _rows() -> list[SftExample]:
    generator = np.random.default_rng(4)
    return [
        SftExample(
            example_id=str(number),
            token_ids_T=generator.integers(3, 61, size=length).astype(np.int32),
            trained_T=np.arange(length) > 0,
        )
        for number, length in enumerate(LENGTHS)
    ]


def _plan(num_ranks: int) -> UpdatePlan:
    by_rank: tuple[tuple[tuple[int, ...], ...], ...] = tuple(zip(*PASSES, strict=True))
    if num_ranks == 1:
        by_rank = (tuple(sum(passes, ()) for passes in PASSES),)
    minibatch = MinibatchPlan(
        micro_batches_by_rank=by_rank,
        num_tokens=sum(LENGTHS) - len(LENGTHS),
        num_sequences=len(LENGTHS),
    )
    return UpdatePlan(minibatches=(minibatch,))
