"""What learners ask of the engine that holds their model; `rlhf_ray.learner.deepspeed` is one.

An engine is made in three steps, which an `EngineBuilder` goes through for one model: the model is
loaded as the engine wants it, wrapped (`train` or `freeze`), and released (`close`). Which builder
a role gets is said in one place, `rlhf_ray.learner.build`. What an engine that spreads weights over
ranks tells those who read them is in `rlhf_ray.models.sharding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class ParallelDims:
    """How the ranks of a role divide its work.

    Rows are dealt out over data parallelism: a plan has one entry for each data-parallel rank, and
    shares and means divide by how many there are. Collectives go over the world, which is larger
    where an engine splits sequences or layers: then several ranks work on the same rows.

    Attributes:
        world_size: Ranks of the process group.
        world_rank: This one.
        data_parallel_size: Parts into which rows are dealt out.
        data_parallel_rank: Whose rows this rank works on.
    """

    world_size: int
    world_rank: int
    data_parallel_size: int
    data_parallel_rank: int

    @classmethod
    def of_world(cls, *, ranks_per_part: int = 1) -> ParallelDims:
        """Of this process' group, or of a process without one; neighbours work on the same rows.

        Raises:
            ValueError: The world is no multiple of `ranks_per_part`.
        """
        is_grouped = dist.is_initialized()
        size, rank = (dist.get_world_size(), dist.get_rank()) if is_grouped else (1, 0)
        if size % ranks_per_part:
            raise ValueError(
                f"ranks must be a multiple of the {ranks_per_part} that share rows, got {size}"
            )
        return cls(
            world_size=size,
            world_rank=rank,
            data_parallel_size=size // ranks_per_part,
            data_parallel_rank=rank // ranks_per_part,
        )

    @property
    def is_first_of_part(self) -> bool:
        """Whether this rank speaks for those that work on the same rows."""
        return self.world_rank % (self.world_size // self.data_parallel_size) == 0


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One optimiser step.

    Attributes:
        grad_norm: Before clipping; not finite where the step was skipped.
        lr: Learning rate of the step.
        applied: False where loss or gradient was not finite.
    """

    grad_norm: float
    lr: float
    applied: bool


class Residency(Protocol):
    """Where a rank's model is: on its device, or on the host while others need the device.

    *Weights* are what a pass without gradients reads, *states* what training has beside. Numbers
    are the same after a way out and back.
    """

    @property
    def has_weights(self) -> bool:
        """Whether they are on the device."""

    @property
    def has_states(self) -> bool:
        """Whether these are; never without the weights."""

    @property
    def host_bytes(self) -> int:
        """That wait on the host at the moment."""

    def offload(self, *, keep_weights: bool = False) -> None:
        """Leave the device; with `keep_weights` the model can still be read there.

        Raises:
            RunError: The host has no memory for it.
        """

    def reload(self, *, weights_only: bool = False) -> None:
        """Come back to the device; with `weights_only` to be read there."""


class InferenceEngine(Protocol):
    """A model that is only read, on one rank of its group.

    Attributes:
        module: The model; also its parameters' names.
        dims: How the ranks divide its work.
        residency: Where it is.
    """

    module: Any
    dims: ParallelDims
    residency: Residency

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Forward pass; all ranks take part in as many."""

    def inference(self) -> AbstractContextManager[None]:
        """Passes without gradients and without dropout."""

    def close(self) -> None:
        """Let go of the model, so that the process can host another."""


class TrainingEngine(InferenceEngine, Protocol):
    """A model under training.

    Losses arrive divided by the whole step's denominators, so that micro-batches and ranks add up:
    gradients are sums over both, in float32, and clipped by the norm of all of them.

    Attributes:
        num_steps: Optimiser steps so far, the skipped ones included.
        num_skipped_in_a_row: Of the last ones.
    """

    num_steps: int
    num_skipped_in_a_row: int

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add one micro-batch's gradient; `is_last` closes the optimiser step's accumulation.

        A loss that is not finite on one rank makes all ranks skip the step.
        """

    def step(self) -> StepResult:
        """Clip and update at the schedule's rate; skipped where the gradient is not finite.

        Raises:
            RunError: A parameter that should train does not move.
        """

    def save(self, folder: Path) -> None:
        """Write weights, optimiser and random state; every rank calls it."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, on as many ranks; the optimiser's settings stay the own ones.

        Raises:
            ValueError: Nothing was saved there.
        """


class EngineBuilder(Protocol):
    """One model's way into an engine, on one rank.

    Attributes:
        device: Where the model computes.
        shards_weights: Whether ranks hold parts of weights from the moment they are loaded.
    """

    device: torch.device
    shards_weights: bool

    def loading(self) -> AbstractContextManager[None]:
        """While this is open, a model is loaded as the engine holds it."""

    def train(self, module: torch.nn.Module, *, total_steps: int) -> TrainingEngine:
        """Train the parameters that require a gradient; `total_steps` are the schedule's."""

    def freeze(self, module: torch.nn.Module) -> InferenceEngine:
        """Only read the model."""

    def close(self) -> None:
        """Remove what lies outside of the process; once more does nothing.

        It also works while a pass runs, of a process that is ended next.
        """


def random_state() -> dict[str, torch.Tensor]:
    """Of this process, as a part of a checkpoint."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """Go on from what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
