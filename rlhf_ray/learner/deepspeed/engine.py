"""DeepSpeed around one module: micro-batches in, optimiser steps out, or passes alone.

DeepSpeed averages gradients over data parallelism; `backward` undoes that, so that losses add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch

from rlhf_ray.config.learners import ForwardConfig, LearnerConfig
from rlhf_ray.learner.deepspeed.drive import DriveFolder, load_states, own_folder, save_states
from rlhf_ray.learner.deepspeed.residency import HostResidency
from rlhf_ray.learner.deepspeed.settings import adamw, deepspeed_config, effective_stage
from rlhf_ray.learner.engine import (
    ParallelDims,
    Residency,
    StepResult,
    random_state,
    set_random_state,
)
from rlhf_ray.learner.optim import MovementCheck, learning_rate
from rlhf_ray.models import sharding
from rlhf_ray.models.logits import LogprobsHead
from rlhf_ray.models.modes import resolve_dtype

TAG = "state"

if not torch.cuda.is_available():
    # DeepSpeed would compile an operation for inference at the first start: a minute, and a lock
    # file that a process which is killed meanwhile leaves for all later ones to wait for.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class FrozenEngine:
    """One module that is read: as it is, or spread over ranks by ZeRO-3; see `InferenceEngine`."""

    def __init__(
        self, module: torch.nn.Module, config: ForwardConfig, *, device: torch.device
    ) -> None:
        """Take the module out of training mode."""
        self.module: torch.nn.Module = module.eval()
        self.dims = ParallelDims.of_world()
        self.engine: deepspeed.DeepSpeedEngine | None = None
        if config.zero.stage == 3:
            _declare_borrowed(module)
            bf16 = next(module.parameters()).dtype is torch.bfloat16
            self.engine, *_ = deepspeed.initialize(
                model=module,
                config=deepspeed_config(config.zero, bf16=bf16, max_grad_norm=0.0),
                dist_init_required=False,
            )
        self.residency: Residency = HostResidency(self, device)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Forward pass."""
        held = self.module if self.engine is None else self.engine
        return held(*arguments, **keywords)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Passes without gradients."""
        with torch.no_grad():
            yield

    def close(self) -> None:
        """Release DeepSpeed's hooks, where it holds the model."""
        if self.engine is not None:
            _take_apart(self.engine)


class ZeroEngine:
    """One module under training; see `TrainingEngine`."""

    def __init__(
        self,
        module: torch.nn.Module,
        config: LearnerConfig,
        *,
        total_steps: int,
        device: torch.device,
    ) -> None:
        """Hand the module to DeepSpeed; `total_steps` are those of the schedule."""
        self.config, self.total_steps, self.dims = config, total_steps, ParallelDims.of_world()
        self.num_steps = self.num_skipped_in_a_row = 0
        if config.zero.stage == 3:
            _declare_borrowed(module)
        trained = [p for p in module.parameters() if p.requires_grad]
        # One is enough: families with experts keep a router in float32 beside weights in bfloat16,
        # and these need the optimiser's float32 copies.
        bf16 = any(p.dtype is torch.bfloat16 for p in trained)
        stage = effective_stage(config.zero, bf16=bf16)
        # DeepSpeed makes all weights bfloat16; frozen ones, a router say, stay as they were loaded.
        frozen = [p for p in module.parameters() if not p.requires_grad]
        exact = [(p, p.data) for p in frozen if p.dtype is torch.float32 and stage < 3]
        self._own_clipping = stage == 0
        self._states_on_drive = config.zero.offload_optimizer == "nvme"
        # Stage 1 sends the gradients that a rank has, but in bfloat16 on the device. What no token
        # came to on one rank, an expert say, must have one of 0 there, or ranks would wait for
        # different sums.
        offloads = config.zero.offload_optimizer != "none"
        self._reduces_what_is_there = stage == 1 and (offloads or not bf16)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module,
            optimizer=adamw(module, config),
            config=deepspeed_config(
                config.zero,
                bf16=bf16,
                max_grad_norm=0.0 if self._own_clipping else config.optim.max_grad_norm,
            ),
            dist_init_required=False,
        )
        for parameter, value in exact:
            parameter.data = value
        self.module = module
        self._movement = MovementCheck(self._named_trained(), _master_part, device)
        self.residency: Residency = HostResidency(self, device)

    def _named_trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Forward pass."""
        return self.engine(*args, **keywords)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Passes without gradients and without dropout."""
        self.engine.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.engine.train()

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add one micro-batch's gradient; `is_last` closes the optimiser step's accumulation."""
        # What is not finite makes every gradient NaN on every rank, so that all ranks skip the
        # step together. The host reads nothing of it: it would wait for the pass.
        is_finite = torch.isfinite(loss.detach())
        loss = loss * torch.where(is_finite, 1.0, math.nan)
        if is_last and self._reduces_what_is_there:
            self._fill_gradients()
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(loss * self.dims.data_parallel_size, scale_wrt_gas=False)

    def _fill_gradients(self) -> None:
        in_float32 = getattr(self.optimizer, "use_grad_accum_attribute", False)
        name, dtype = ("grad_accum", torch.float32) if in_float32 else ("grad", None)
        for _, parameter in self._named_trained():
            if getattr(parameter, name, None) is None:
                setattr(parameter, name, torch.zeros_like(parameter, dtype=dtype))

    def step(self) -> StepResult:
        """Clip, update, check that parameters move; skipped where the gradient is not finite."""
        lr = learning_rate(self.num_steps, optim=self.config.optim, total_steps=self.total_steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        grad_norm, applied = self._clip_and_step()
        self.num_steps += 1
        self.num_skipped_in_a_row = 0 if applied else self.num_skipped_in_a_row + 1
        if applied and grad_norm > 0:
            self._movement.after_step(lr)
        return StepResult(grad_norm=grad_norm, lr=lr, applied=applied)

    def _clip_and_step(self) -> tuple[float, bool]:
        if self._own_clipping:
            # Without ZeRO and in float32 DeepSpeed applies a gradient that is not finite.
            parameters = [p for p in self.module.parameters() if p.grad is not None]
            norm = float(
                torch.nn.utils.clip_grad_norm_(parameters, self.config.optim.max_grad_norm)
            )
            if not math.isfinite(norm):
                self.engine.zero_grad()
                return norm, False
            self.engine.step()
            return norm, True
        # Stage 1 in bfloat16 leaves out of the norm, and does not clip, what had no gradient on
        # this rank, though other ranks' gradients of it have come.
        for has_gradients in getattr(self.engine.optimizer, "fp32_groups_has_gradients", ()):
            has_gradients[:] = [True] * len(has_gradients)
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        return norm, bool(self.engine.was_step_applied())

    def save(self, folder: Path) -> None:
        """Write weights, optimiser and random state; every rank calls it."""
        counters = {
            "num_steps": self.num_steps,
            "num_skipped_in_a_row": self.num_skipped_in_a_row,
        }
        if self._states_on_drive:
            save_states(self.engine.optimizer, folder / TAG, counters)
        else:
            self.engine.save_checkpoint(
                str(folder),
                tag=TAG,
                save_latest=False,
                client_state=counters,
                exclude_frozen_parameters=True,
            )
        torch.save(random_state(), folder / f"random_rank{self.dims.world_rank}.pt")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, on as many ranks; the optimiser's settings stay the own ones.

        Its states may have been kept on the device and now be offloaded, or the other way round.

        Raises:
            ValueError: Nothing was saved there.
        """
        if not (folder / TAG).is_dir():
            raise ValueError(f"no DeepSpeed checkpoint in {folder}")
        settings = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.engine.optimizer.param_groups
        ]
        if self._states_on_drive:
            counters = load_states(self.engine.optimizer, folder / TAG)
        else:
            _, counters = self.engine.load_checkpoint(
                str(folder), tag=TAG, load_lr_scheduler_states=False, load_module_strict=False
            )
        for group, own in zip(self.engine.optimizer.param_groups, settings, strict=True):
            group.update(own)
        self.num_steps = int(counters["num_steps"])
        self.num_skipped_in_a_row = int(counters["num_skipped_in_a_row"])
        set_random_state(
            torch.load(folder / f"random_rank{self.dims.world_rank}.pt", weights_only=True)
        )

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers, so that the process can host another model."""
        _take_apart(self.engine)


def _take_apart(engine: Any) -> None:
    """End an engine, and leave none of its parts a way to the others.

    Under ZeRO-3 they refer to each other by way of autograd, where Python's collector does not
    look: weights, gradients and states of a model that nobody has any more would stay for good.
    """
    engine.destroy()
    optimizers = (engine.optimizer, getattr(engine, "basic_optimizer", None))
    engine.optimizer = engine.basic_optimizer = engine.lr_scheduler = None
    for parameter in engine.module.parameters():
        if hasattr(parameter, "ds_id"):  # else it is whole, and another may read it as it is
            vars(parameter).clear()
            parameter.data = torch.empty(0, dtype=parameter.dtype)
    for optimizer in optimizers:
        if optimizer is not None:
            vars(optimizer).clear()


def _master_part(parameter: Any) -> torch.Tensor:
    """What this rank's optimiser steps on, where that is kept; nothing, if it is all of others."""
    part: torch.Tensor
    if hasattr(parameter, "ds_id"):
        # DeepSpeed's public way copies what is offloaded to the device, whole.
        part, _ = parameter._z3_optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=True
        )
    elif hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        part = torch.empty(0) if mapping is None else mapping.hp_fragment
    else:
        part = parameter.flatten()
    return part.detach()


def _declare_borrowed(model: torch.nn.Module) -> None:
    """Tell ZeRO-3, before its start, what modules read that belongs to others.

    It would find out at the first read, with an order of gathers on record in which that is not.
    """
    for module in model.modules():
        if isinstance(module, LogprobsHead):
            for parameter in module.borrowed():
                deepspeed.zero.register_external_parameter(module, parameter)


class DeepSpeedBuilder:
    """See `EngineBuilder`.

    Attributes:
        config: What the model is held by; where that is a drive, in a folder of its own.
    """

    def __init__(self, config: ForwardConfig, device: torch.device) -> None:
        """Make room on the drive, where the model is offloaded to one.

        Raises:
            ConfigError: What DeepSpeed needs for it is not there.
        """
        self.device, self.shards_weights = device, config.zero.stage == 3
        self._folder: DriveFolder | None
        self.config, self._folder = own_folder(config)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Under ZeRO-3 each rank keeps its part of a weight from the moment it is read."""
        if not self.shards_weights:
            yield
            return
        from transformers.integrations import HfDeepSpeedConfig

        # DeepSpeed makes every weight float32 unless its own settings say bfloat16.
        bf16 = resolve_dtype(self.config.model.dtype, self.device) is torch.bfloat16
        # transformers holds it by a weak reference: it works for as long as this variable lives.
        active = HfDeepSpeedConfig(deepspeed_config(self.config.zero, bf16=bf16, max_grad_norm=0.0))
        try:
            yield
        finally:
            del active

    def train(self, module: torch.nn.Module, *, total_steps: int) -> ZeroEngine:
        """Train it."""
        assert isinstance(self.config, LearnerConfig)
        return ZeroEngine(module, self.config, total_steps=total_steps, device=self.device)

    def freeze(self, module: torch.nn.Module) -> FrozenEngine:
        """Only read it."""
        return FrozenEngine(module, self.config, device=self.device)

    def close(self) -> None:
        """Remove the folder on the drive."""
        if self._folder is not None:
            self._folder.close()


class Zero3Sharding:
    """Parameters as ZeRO-3 leaves them: each rank has a part, and the whole's size is on record."""

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether ZeRO-3 has taken it over."""
        return hasattr(tensor, "ds_id")

    def shape(self, tensor: Any) -> tuple[int, ...]:
        """Of the whole."""
        return tuple(tensor.ds_shape)

    def gathered(self, tensors: Sequence[torch.Tensor]) -> AbstractContextManager[Any]:
        """Whole on every rank while it is open."""
        context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(list(tensors))
        return context

    def is_hook(self, hook: Callable[..., Any]) -> bool:
        """DeepSpeed's own functions."""
        return hook.__module__.startswith("deepspeed.")


sharding.register(Zero3Sharding())
