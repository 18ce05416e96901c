"""What any engine's AdamW steps by, rates and decay, and whether it moves what should train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf_ray.config.learners import OptimConfig
from rlhf_ray.errors import RunError

# Low-rank adapters and fresh heads need a second step: the factor that starts at 0 hides the other.
STEPS_TO_MOVE = 3
# A change of less than this share of a float32 number may be lost when it is added.
FLOAT32_STEP = torch.finfo(torch.float32).eps
# Values that are looked at together: they and their squares take 64 MiB in float64, where those of
# a whole head of 8 B would take 8 GiB.
PIECE = 2**22


def learning_rate(step: int, *, optim: OptimConfig, total_steps: int) -> float:
    """The rate of optimiser step `step`, counted from 0; nothing of a schedule needs saving.

    Warm-up rises linearly and is above 0 from the first step; then the schedule runs from `lr` to
    `lr * min_lr_share` over the rest.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / (optim.warmup_steps + 1)
    rest = max(1, total_steps - optim.warmup_steps)
    progress = min(1.0, (step - optim.warmup_steps) / rest)
    if optim.schedule == "constant":
        share = 1.0
    elif optim.schedule == "linear":
        share = 1.0 - progress
    else:
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return optim.lr * (optim.min_lr_share + (1.0 - optim.min_lr_share) * share)


def adamw_settings(optim: OptimConfig) -> dict[str, Any]:
    """What AdamW takes beside its groups."""
    return {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps}


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """What decays, and what does not: the weights of norms, and biases. No group is empty.

    The groups are the same for every `weight_decay`, 0 included, so that a checkpoint fits.
    """
    spared = {
        f"{owner_name}.{name}" if owner_name else name
        for owner_name, owner in module.named_modules()
        for name, _ in owner.named_parameters(recurse=False)
        if "norm" in type(owner).__name__.lower() or "bias" in name
    }
    trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in trained if n not in spared], "weight_decay": weight_decay},
        {"params": [p for n, p in trained if n in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@dataclass(kw_only=True)
class _Still:
    """A parameter that has not moved yet.

    Attributes:
        start: Sum, and sum of squares, of the values that this rank's part of it began with.
        size: Root mean square of its values, on all ranks.
        num_steps: Steps that should have moved it.
    """

    name: str
    parameter: torch.nn.Parameter
    start: tuple[float, float]
    size: float
    num_steps: int = 0


class MovementCheck:
    """Compares each parameter's float32 master copy with its start over the first steps.

    Each rank looks at the part whose optimiser it holds, piece by piece; no weight is gathered.
    A step counts for a parameter only where its rate could change values of the parameter's usual
    size: Adam moves a value by about the rate, and 1.0 + 1e-8 is 1.0 in float32.

    Raises (from `after_step`):
        RunError: After three such steps with a gradient some parameters have not moved; it names
            them.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, torch.nn.Parameter]],
        master_part: Callable[[torch.nn.Parameter], Tensor],
        device: torch.device,
    ) -> None:
        """Take the sums; all ranks call it alike.

        `master_part` gives the part of a parameter that this rank's optimiser steps on.
        """
        self._master_part, self._device = master_part, device
        parts = [master_part(parameter) for _, parameter in named]
        starts = [_sums(part) for part in parts]
        squares, counts = self._over_ranks(
            [[square for _, square in starts], [part.numel() for part in parts]],
            dist.ReduceOp.SUM,
        )
        self._still = [
            _Still(name=name, parameter=parameter, start=start, size=(square / count) ** 0.5)
            for (name, parameter), start, square, count in zip(
                named, starts, squares, counts, strict=True
            )
        ]

    def after_step(self, lr: float) -> None:
        """Look again, after a step of rate `lr` whose gradient was not zero; all ranks alike."""
        if not self._still:
            return
        changed = [
            _sums(self._master_part(still.parameter)) != still.start for still in self._still
        ]
        [moved] = self._over_ranks([changed], dist.ReduceOp.MAX)
        self._still = [still for still, has in zip(self._still, moved, strict=True) if not has]
        for still in self._still:
            still.num_steps += lr >= FLOAT32_STEP * still.size
        names = [still.name for still in self._still if still.num_steps >= STEPS_TO_MOVE]
        if names:
            raise RunError(
                f"{len(names)} parameters should train and have not moved in {STEPS_TO_MOVE} "
                f"optimiser steps: {', '.join(names[:10])}"
            )

    def _over_ranks(self, rows: Sequence[Sequence[float]], operation: Any) -> list[list[float]]:
        table = torch.tensor(rows, dtype=torch.float64, device=self._device)
        dist.all_reduce(table, op=operation)
        reduced: list[list[float]] = table.tolist()
        return reduced


def _sums(values: Tensor) -> tuple[float, float]:
    """Of values and of their squares."""
    total = torch.zeros(2, dtype=torch.float64, device=values.device)
    for piece in values.split(PIECE):
        exact = piece.double()
        total += torch.stack([exact.sum(), exact.square().sum()])
    summed, squares = total.tolist()
    return summed, squares
