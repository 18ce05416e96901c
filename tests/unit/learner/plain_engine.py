"""A second engine, of PyTorch alone: one process, float32, nothing spread and nothing offloaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from rlhf_ray.learner.engine import ParallelDims, StepResult, random_state, set_random_state
from rlhf_ray.learner.optim import adamw_settings, learning_rate, parameter_groups


class Stays:
    """A residency of what never leaves its device."""

    has_weights = has_states = True
    host_bytes = 0

    def offload(self, *, keep_weights=False):
        raise NotImplementedError

    def reload(self, *, weights_only=False):
        """It is there."""


class PlainEngine:
    def __init__(self, module, config=None, *, total_steps=0):
        self.module, self.config, self.total_steps = module, config, total_steps
        self.dims, self.residency = ParallelDims.of_world(), Stays()
        self.num_steps = self.num_skipped_in_a_row = 0
        if config is not None:
            groups = parameter_groups(module, weight_decay=config.optim.weight_decay)
            self.optimizer = torch.optim.AdamW(groups, **adamw_settings(config.optim))

    def __call__(self, *arguments, **keywords):
        return self.module(*arguments, **keywords)

    @contextmanager
    def inference(self) -> Iterator[None]:
        self.module.eval()
        with torch.no_grad():
            yield
        self.module.train(self.config is not None)

    def backward(self, loss, *, is_last):
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

    def save(self, folder):
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        counters = {"steps": self.num_steps, "skipped": self.num_skipped_in_a_row}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({**state, **counters, "random": random_state()}, folder / "state.pt")

    def load(self, folder):
        state = torch.load(folder / "state.pt", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_steps, self.num_skipped_in_a_row = state["steps"], state["skipped"]
        set_random_state(state["random"])

    def close(self):
        """Nothing is held elsewhere."""


class PlainBuilder:
    shards_weights = False

    def __init__(self, config, device):
        self.config, self.device = config, device

    def loading(self):
        return nullcontext()

    def train(self, module, *, total_steps):
        return PlainEngine(module, self.config, total_steps=total_steps)

    def freeze(self, module):
        return PlainEngine(module.eval())

    def close(self):
        """Nothing lies outside of the process."""
