"""Gradients of every learner, however a step is cut, against plain autograd.

    python -m benchmarks.gradients
    python -m benchmarks.gradients --learners policy reward --stages 0 3
    python -m benchmarks.gradients --offload

A step of each learner (policy, value, SFT, DPO, KTO, reward) in float32 and bfloat16, under ZeRO
0 to 3, with and without gradient checkpointing and adapters, is cut into 1, 2 and 8 micro-batches.
What Adam is given (its first moment, with beta1 = 0) is compared with PyTorch's own gradient of the
same loss on the whole step in one pass, by a float32 model with the same weights. Clipping is on,
so that a wrong norm shows as well. The learning rate is too small to change a weight.

Prints the worst case of each learner, dtype and stage: `relative` is the distance as a share of the
gradient's norm, `1-cosine` that of the angle, `norm` the relative error of the norm that is
reported. Ends with status 1 where one exceeds its limit. One process without a GPU; takes minutes.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_optimizer_state
from transformers.utils.logging import disable_progress_bar

from benchmarks.gradient_steps import (
    CPU,
    LEARNERS,
    learner_of,
    save_model,
    step_of,
    whole_weights,
)

SPLITS = (1, 2, 8)
MAX_GRAD_NORM = 1e-3  # below every norm here
# Of the relative distance, and of the relative error of the norm; and for the cosine.
LIMITS = {"float32": (1e-5, 1.0 - 1e-9), "bfloat16": (0.08, 0.995)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A learner as it is configured."""

    learner: str
    dtype: str
    stage: int
    checkpointing: bool = False
    lora: bool = False
    offload: bool = False
    compiled: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Of the learner, without the model's path."""
        return {
            "model": {
                "dtype": self.dtype,
                "gradient_checkpointing": self.checkpointing,
                "lora": {"rank": 3 * self.lora, "alpha": 6.0},
            },
            "compile": self.compiled,
            "optim": {"lr": 1e-12, "betas": (0.0, 0.95), "max_grad_norm": MAX_GRAD_NORM},
            "zero": {
                "stage": self.stage,
                "offload_optimizer": "cpu" if self.offload else "none",
            },
        }


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near a step came to the oracle's."""

    relative: float
    cosine: float
    norm: float

    @property
    def figures(self) -> tuple[float, float, float]:
        """Each the worse the larger; what is no number is the worst."""
        figures = (self.relative, 1.0 - self.cosine, self.norm)
        a, b, c = (math.inf if math.isnan(figure) else figure for figure in figures)
        return a, b, c

    def is_within(self, dtype: str) -> bool:
        """Whether rounding explains the difference."""
        limits = limits_of(dtype)
        return all(figure <= limit for figure, limit in zip(self.figures, limits, strict=True))


def limits_of(dtype: str) -> tuple[float, float, float]:
    """Of an agreement's figures, in their order."""
    distance, cosine = LIMITS[dtype]
    return distance, 1.0 - cosine, distance


def main() -> int:
    """Run the cases and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=LEARNERS)
    parser.add_argument("--dtypes", nargs="+", choices=tuple(LIMITS), default=tuple(LIMITS))
    parser.add_argument("--stages", nargs="+", type=int, choices=range(4), default=range(4))
    parser.add_argument("--offload", action="store_true", help="Adam on the CPU; not at stage 0")
    arguments = parser.parse_args()
    stages = [stage for stage in arguments.stages if stage or not arguments.offload]
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    print(f"{'learner':<8} {'dtype':<9} ZeRO  {'relative':>9} {'1-cosine':>9} {'norm':>9}")
    num_steps, all_within = 0, True
    with tempfile.TemporaryDirectory() as folder, process_group():
        path = save_model(Path(folder))
        for learner, dtype, stage in itertools.product(
            arguments.learners, arguments.dtypes, stages
        ):
            found: list[Agreement] = []
            for checkpointing, lora in itertools.product((False, True), repeat=2):
                case = Case(
                    learner=learner,
                    dtype=dtype,
                    stage=stage,
                    checkpointing=checkpointing,
                    lora=lora,
                    offload=arguments.offload,
                )
                found += agreements(case, path).values()
            num_steps += len(found)
            all_within &= all(agreement.is_within(dtype) for agreement in found)
            worst = [max(figures) for figures in zip(*(f.figures for f in found), strict=True)]
            columns = " ".join(f"{figure:9.1e}" for figure in worst)
            print(f"{learner:<8} {dtype:<9} {stage:>4}  {columns}", flush=True)
    print(f"{num_steps} steps, {'all' if all_within else 'not all'} within {LIMITS}")
    return 0 if all_within else 1


@contextmanager
def process_group(
    device: torch.device = CPU, *, rank: int = 0, num_ranks: int = 1, port: int = 0
) -> Iterator[None]:
    """Of this process, and of as many as there are ranks; rank 0 keeps the store at `port`."""
    deadline = timedelta(seconds=60)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", port, is_master=rank == 0, wait_for_workers=False, timeout=deadline
    )
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(num_ranks), **address}
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=num_ranks,
        timeout=deadline,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def agreements(
    case: Case,
    path: Path,
    num_micro_batches: Sequence[int] = SPLITS,
    *,
    device: torch.device = CPU,
) -> dict[int, Agreement]:
    """One step for each number of micro-batches of each rank, each against the oracle's.

    Args:
        case: The learner.
        path: Of its model.
        num_micro_batches: Into which a rank's share is cut.
        device: Of learner and oracle; of this process alone.
    """
    settings = case.settings
    oracle = learner_of(case.learner, _plain(settings, path), plain=True, device=device)
    settings["model"]["path"] = str(path)
    learner = learner_of(case.learner, settings, device=device)
    try:
        with torch.no_grad():
            weights = whole_weights(learner)
            for name, parameter in oracle.engine.module.named_parameters():
                parameter.copy_(weights[name])
        step = step_of(case.learner, oracle)
        norm = step.update(oracle, 1)["grad_norm"]
        clipped = MAX_GRAD_NORM / (norm + 1e-6)  # as torch and DeepSpeed write it
        wanted = {name: clipped * g for name, g in oracle.engine.gradients.items()}
        found = {}
        for num in num_micro_batches:
            reported = step.update(learner, num, by_rank=True)["grad_norm"]
            found[num] = _agreement(first_moments(learner.engine), wanted, abs(reported / norm - 1))
        return found
    finally:
        learner.close()


def first_moments(engine: Any) -> dict[str, torch.Tensor]:
    """Adam's, whole, by the names of the parameters: float32 of each parameter's shape.

    Args:
        engine: A `TrainingEngine` that has taken a step. All ranks call it alike.
    """
    optimizer = engine.engine.optimizer
    is_spread = any(hasattr(p, "_hp_mapping") or hasattr(p, "ds_id") for _, p in _trained(engine))
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        # DeepSpeed does this after the step of the first group, when the others have no state yet.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()

    def moment(parameter: torch.nn.Parameter) -> torch.Tensor:
        if is_spread:
            whole: torch.Tensor = safe_get_full_optimizer_state(parameter, "exp_avg")
            return whole
        moment: torch.Tensor = optimizer.state[parameter]["exp_avg"]
        return moment

    return {name: moment(parameter) for name, parameter in _trained(engine)}


def _trained(engine: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]


def _plain(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """The oracle's: float32, without checkpoints and ZeRO."""
    model = {"path": str(path), "dtype": "float32", "gradient_checkpointing": False}
    return {"model": {**settings["model"], **model}, "optim": settings["optim"]}


def _agreement(
    ours: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], norm: float
) -> Agreement:
    assert ours.keys() == wanted.keys()

    def flat(of: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([of[name].double().cpu().view(-1) for name in wanted])

    a, b = flat(ours), flat(wanted)
    return Agreement(
        relative=float((a - b).norm() / b.norm()),
        cosine=float(a @ b / (a.norm() * b.norm())),
        norm=norm,
    )


if __name__ == "__main__":
    sys.exit(main())
