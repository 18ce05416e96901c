"""A second engine, of PyTorch alone: one process, float32, nothing spread and nothing offloaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.learner.engine import (
    EngineBuilder,
    InferenceEngine,
    ParallelDims,
    Residency,
    StepResult,
    TrainingEngine,
    random_state,
    set_random_state,
)
from rlhf_ray.learner.optim import adamw_settings, learning_rate, parameter_groups


class Stays:
    """A residency of what never leaves its device."""

    has_weights = has_states = True
    host_bytes = 0

    def offload(self, *, keep_weights: bool = False) -> None:
        raise NotImplementedError

    def reload(self, *, weights_only: bool = False) -> None:
        """It is there."""


class FrozenEngine:
    """Only reads its model."""

    trains = False

    def __init__(self, module: Any) -> None:
        self.module = module
        self.dims = ParallelDims.of_world()
        self.residency: Residency = Stays()

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.module(*arguments, **keywords)

    @contextmanager
    def inference(self) -> Iterator[None]:
        self.module.eval()
        with torch.no_grad():
            yield
        self.module.train(self.trains)

    def close(self) -> None:
        """Nothing is held elsewhere."""


class PlainEngine(FrozenEngine):
    """Trains it."""

    trains = True

    def __init__(self, module: Any, config: LearnerConfig, *, total_steps: int) -> None:
        super().__init__(module)
        self.config, self.total_steps = config, total_steps
        self.num_steps = self.num_skipped_in_a_row = 0
        groups = parameter_groups(module, weight_decay=config.optim.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, **adamw_settings(config.optim))

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        loss.backward()

    def step(self) -> StepResult:
        lr = learning_rate(self.num_steps, optim=self.config.optim, total_steps=self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        trained = [p for p in self.module.parameters() if p.requires_grad]
        norm = float(torch.nn.utils.clip_grad_norm_(trained, self.config.optim.max_grad_norm))
        if applied := math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_steps += 1
        self.num_skipped_in_a_row = 0 if applied else self.num_skipped_in_a_row + 1
        return StepResult(grad_norm=norm, lr=lr, applied=applied)

    def save(self, folder: Path) -> None:
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        counters = {"steps": self.num_steps, "skipped": self.num_skipped_in_a_row}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({**state, **counters, "random": random_state()}, folder / "state.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_steps, self.num_skipped_in_a_row = state["steps"], state["skipped"]
        set_random_state(state["random"])


class PlainBuilder:
    shards_weights = False

    def __init__(self, config: LearnerConfig, device: torch.device) -> None:
        self.config, self.device = config, device

    def loading(self) -> AbstractContextManager[None]:
        return nullcontext()

    def train(self, module: torch.nn.Module, *, total_steps: int) -> PlainEngine:
        return PlainEngine(module, self.config, total_steps=total_steps)

    def freeze(self, module: torch.nn.Module) -> FrozenEngine:
        return FrozenEngine(module.eval())

    def close(self) -> None:
        """Nothing lies outside of the process."""


def _(fake: Stays) -> Residency:
    return fake


def _(fake: FrozenEngine) -> InferenceEngine:
    return fake


def _(fake: PlainEngine) -> TrainingEngine:
    return fake


def _(fake: PlainBuilder) -> EngineBuilder:
    return fake
