"""What each of two ranks runs: `python two_ranks.py RANK PORT FOLDER`, tasks and answers there."""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from gathers import HeadTask, step_of
from learning import gradients_of, hosted, plan_evaluation, plan_rows

from benchmarks.gradients import first_moments
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.learner.deepspeed.engine import ZeroEngine

CPU = torch.device("cpu")
# Micro-batches' gradients of each rank: numbers of one bit each, whose sum needs twelve. bfloat16
# keeps eight, so a sum that is rounded anywhere on its way is another number.
SUMMANDS = ((1.0, 2.0**-9, 2.0**-11), (2.0**-10, 0.0, 2.0**-8))
MAX_GRAD_NORM = 0.25
# Stages, whether one rank has weights alone, where states are. Stages 2 and 3 reduce a pass's
# gradients as they come, on all ranks alike; at stage 0 nothing is offloaded.
SUMS = (
    *((stage, False, "none") for stage in range(4)),
    *((stage, True, "none") for stage in range(2)),
    *((stage, False, "cpu") for stage in range(1, 4)),
    (1, True, "cpu"),
)


@dataclass(frozen=True, kw_only=True)
class Product:
    """What a module may answer: DeepSpeed does not look into a dataclass for tensors."""

    sum: torch.Tensor


class Scales(torch.nn.Module):
    """Weights whose gradient is what they are called with; the second only where asked for."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.ones(33, dtype=dtype))
        self.second = torch.nn.Parameter(torch.ones(7, dtype=dtype))

    def forward(self, slope: float, *, with_second: bool) -> Product:
        total = (self.first * slope).sum()
        if with_second:
            total = total + (self.second * slope).sum()
        return Product(sum=total)


def sum_of(dtype: torch.dtype, stage: int, *, alone: bool, offload: str) -> dict[str, Any]:
    """One step on numbers that must add up exactly; `alone`, one rank uses the second weights."""
    config = LearnerConfig.model_validate(
        {
            "zero": {"stage": stage, "offload_optimizer": offload},
            "optim": {"lr": 1e-12, "betas": (0.0, 0.95), "max_grad_norm": MAX_GRAD_NORM},
        }
    )
    engine = ZeroEngine(Scales(dtype), config, total_steps=10, device=CPU)
    try:
        slopes = SUMMANDS[dist.get_rank()]
        for number, slope in enumerate(slopes):
            product = engine(slope, with_second=not alone or dist.get_rank() == 0)
            engine.backward(product.sum.float(), is_last=number == len(slopes) - 1)
        result = engine.step()
        return {"grad_norm": result.grad_norm, "moments": first_moments(engine)}
    finally:
        engine.close()


def sums() -> dict[str, Any]:
    """By dtype, stage and offloading, and whether one rank has weights alone."""
    return {
        f"{dtype} {stage} {alone} {offload}": sum_of(dtype, stage, alone=alone, offload=offload)
        for dtype in (torch.float32, torch.bfloat16)
        for stage, alone, offload in SUMS
    }


def steps_of(dtype: torch.dtype, stage: int, *, moves: bool) -> dict[str, torch.Tensor]:
    """Weights and moments after some steps; with `moves`, ranks leave and come back before each."""
    config = LearnerConfig.model_validate({"zero": {"stage": stage}, "optim": {"lr": 1e-2}})
    engine = ZeroEngine(Scales(dtype), config, total_steps=10, device=CPU)
    residency = engine.residency
    try:
        for number in range(4):
            if moves:
                residency.offload(keep_weights=True)
                residency.offload()
                residency.reload(weights_only=True)
                residency.reload()
            product = engine(SUMMANDS[dist.get_rank()][number % 3], with_second=True)
            engine.backward(product.sum.float(), is_last=True)
            engine.step()
        weights = dict(engine.module.named_parameters())
        with deepspeed.zero.GatheredParameters(list(weights.values())):
            whole = {name: weight.detach().clone() for name, weight in weights.items()}
        moments = first_moments(engine)
        return whole | {f"moment of {name}": moment.clone() for name, moment in moments.items()}
    finally:
        engine.close()


def steps() -> dict[str, Any]:
    """By dtype and stage, and whether ranks moved."""
    return {
        f"{dtype} {stage} {moves}": steps_of(dtype, stage, moves=moves)
        for dtype in (torch.float32, torch.bfloat16)
        for stage in range(4)
        for moves in (False, True)
    }


def answer_of(task: dict[str, Any], num_ranks: int) -> dict[str, Any]:
    """One step and one evaluation."""
    rows = task["rows"]
    planned = [getattr(row, "row", row) for row in rows]
    learner = hosted(task["spec"])
    try:
        evaluated = learner.evaluate(rows, plan_evaluation(planned, num_ranks=num_ranks))
        written = []
        if hasattr(learner, "continuations"):
            written = learner.continuations([[5, 6], [7]], max_new_tokens=4, end_ids=[9])
        metrics = learner.update(rows, plan_rows(planned, num_ranks=num_ranks))
        return {
            "metrics": metrics,
            "gradients": gradients_of(learner),
            "evaluated": evaluated,
            "written": written,
        }
    finally:
        learner.close()


def main(rank: int, port: int, folder: Path) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    deadline = timedelta(seconds=60)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", port, is_master=False, timeout=deadline
    )
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=deadline)
    tasks = pickle.loads((folder / "tasks.pkl").read_bytes())
    answers = {
        name: (step_of if isinstance(task, HeadTask) else answer_of)(task, num_ranks=2)
        for name, task in tasks.items()
    }
    answers |= sums()
    answers["steps"] = steps()
    (folder / f"rank{rank}.pkl").write_bytes(pickle.dumps(answers))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
