"""A learner whose states lie on a drive trains and resumes as one whose states lie in memory.

DeepSpeed's own operation takes minutes to compile and needs libaio; here plain files stand for it.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from deepspeed.runtime.swap_tensor import partitioned_optimizer_swapper, partitioned_param_swapper
from learning import largest_gap, plan_of

from rlhf_ray.learner.deepspeed import drive as drive_module
from rlhf_ray.learner.deepspeed import engine
from rlhf_ray.learner.weights import named_weights


class PlainFiles:
    """What DeepSpeed asks of its operation: reads and writes of tensors, done at once."""

    def __init__(self, *arguments, **keywords):
        self.done, self.pinned = 0, []

    def async_pread(self, tensor, path, offset):
        self.done += 1
        read = np.fromfile(path, dtype=np.uint8)
        tensor.view(torch.uint8)[: len(read)] = torch.from_numpy(read)
        return 0

    def async_pwrite(self, tensor, path, offset):
        self.done += 1
        tensor.detach().view(torch.uint8).numpy().tofile(path)
        return 0

    def wait(self):
        done, self.done = self.done, 0
        return done

    def new_cpu_locked_tensor(self, numel, like):
        # Gigabytes by DeepSpeed's defaults, most of which nobody writes: no zeros, they would.
        self.pinned.append(torch.empty(numel, dtype=like.dtype))
        return self.pinned[-1]

    def free_cpu_locked_tensor(self, tensor):
        return True

    def is_pinned(self, tensor):
        return any(
            0 <= tensor.data_ptr() - whole.data_ptr() < whole.nbytes for whole in self.pinned
        )


class PlainAdam(torch.optim.Optimizer):
    """Adam whose step is a number, as DeepSpeed's; torch's is a tensor, and would be offloaded."""

    def __init__(self, module, config):
        parameters = [p for p in module.parameters() if p.requires_grad]
        settings = {"lr": config.optim.lr, "betas": config.optim.betas}
        super().__init__(parameters, {**settings, "eps": 1e-8, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                state["exp_avg"].lerp_(parameter.grad, 1 - first)
                state["exp_avg_sq"].lerp_(parameter.grad.square(), 1 - second)
                mean = state["exp_avg"] / (1 - first ** state["step"])
                size = (state["exp_avg_sq"] / (1 - second ** state["step"])).sqrt()
                parameter -= group["lr"] * mean / (size + group["eps"])


@pytest.fixture(autouse=True)
def drive(monkeypatch):
    built = SimpleNamespace(aio_handle=PlainFiles)
    builder = lambda: SimpleNamespace(load=lambda **keywords: built)  # noqa: E731
    for module in (partitioned_optimizer_swapper, partitioned_param_swapper):
        monkeypatch.setattr(module, "AsyncIOBuilder", builder)
    monkeypatch.setattr(drive_module, "libaio_fault", lambda: None)
    monkeypatch.setattr(engine, "adamw", PlainAdam)  # DeepSpeed's would be compiled as well


@pytest.fixture
def on_drive(make_model, make_policy, tmp_path):
    """`on_drive(**zero)`: a policy of which some parts are large enough for the drive."""
    path = make_model("llama", hidden_size=256, intermediate_size=512, head_dim=64)

    def make(**zero):
        zero = {"stage": 3, "nvme_path": str(tmp_path / "drive"), **zero}
        # Parts of the states that go through memory one by one; the last are too small to go.
        extra = {"zero_optimization": {"sub_group_size": 300_000}}
        extra["zero_force_ds_cpu_optimizer"] = False
        return make_policy(path=path, zero={**zero, "extra": extra})

    return make


def weights(learner):
    return {name: weight.detach().clone() for name, weight in named_weights(learner.lm)}


def on_files(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*.swp"))


@pytest.mark.parametrize("param", ["none", "nvme"])
def test_states_on_a_drive_train_and_resume_as_in_memory(on_drive, rows, tmp_path, param):
    plan = plan_of(rows)
    in_memory = on_drive()
    learner = on_drive(offload_optimizer="nvme", offload_param=param)
    for each in (in_memory, learner):
        each.update(rows, plan, 0.0)
    assert on_files(tmp_path / "drive") > 2**20
    saved = weights(learner)
    assert largest_gap(saved, weights(in_memory)) < 1e-6
    learner.save(tmp_path / "checkpoint")
    learner.update(rows, plan, 0.0)
    assert largest_gap(weights(learner), saved) > 1e-3, "it goes on learning"

    resumed = on_drive(offload_optimizer="nvme", offload_param=param)
    assert largest_gap(weights(resumed), saved) > 1e-3
    resumed.load(tmp_path / "checkpoint")
    assert largest_gap(weights(resumed), saved) == 0.0
    resumed.update(rows, plan, 0.0)
    assert largest_gap(weights(resumed), weights(learner)) == 0.0
