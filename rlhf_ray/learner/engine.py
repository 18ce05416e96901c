"""DeepSpeed around one module: micro-batches in, optimiser steps out.

Losses arrive already divided by the whole step's denominators, so micro-batches and ranks add up.
DeepSpeed averages gradients over ranks; `backward` undoes that by the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from rlhf_ray.config.base import LearnerConfig, ZeroConfig
from rlhf_ray.learner.adamw import adamw
from rlhf_ray.learner.movement import MovementCheck
from rlhf_ray.learner.nvme_states import load_states, save_states
from rlhf_ray.learner.schedule import learning_rate

TAG = "state"

if not torch.cuda.is_available():
    # DeepSpeed would compile an operation for inference at the first start: a minute, and a lock
    # file that a process which is killed meanwhile leaves for all later ones to wait for.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


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


def deepspeed_config(
    zero: ZeroConfig, *, bf16: bool, max_grad_norm: float, micro_batch_size: int = 1
) -> dict[str, Any]:
    """DeepSpeed's own configuration; `zero.extra`, which leaves all of this alone, comes last."""
    optimization: dict[str, Any] = {"stage": effective_stage(zero, bf16=bf16)}
    for name in ("optimizer", "param"):
        device = getattr(zero, f"offload_{name}")
        if device != "none":
            optimization[f"offload_{name}"] = {"device": device, "pin_memory": True}
            if device == "nvme":
                optimization[f"offload_{name}"]["nvme_path"] = zero.nvme_path
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": bf16},
        "zero_optimization": optimization,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }
    if bf16:
        # Micro-batches and ranks add up in float32, or the split of a batch would change its
        # gradient; DeepSpeed sends bfloat16 by default, whatever it adds up in.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
        # Each gradient joins the float32 sum, and is dropped, when autograd has it. Without,
        # stage 1 adds all up after each pass and clears them before the next by hooks on the
        # tensors that `forward` returned. It finds those in tuples, lists and dicts, in no
        # dataclass, and then adds the first micro-batch again with every later one.
        config["bf16"]["immediate_grad_update"] = True
    return merged(config, zero.extra)


def effective_stage(zero: ZeroConfig, *, bf16: bool) -> int:
    """ZeRO's stage as it runs: bfloat16 weights need the float32 copies that stage 1 keeps."""
    return zero.stage or int(bf16)


def merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`base` with `extra` laid over it, key by key."""
    result = dict(base)
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


class TrainingEngine:
    """One module under training, on one rank of its group.

    Attributes:
        num_steps: Optimiser steps so far, the skipped ones included.
        num_skipped_in_a_row: Of the last ones.
    """

    def __init__(self, module: torch.nn.Module, config: LearnerConfig, *, total_steps: int) -> None:
        """Hand the module to DeepSpeed.

        Args:
            module: Its parameters that require a gradient are trained.
            config: Optimiser, ZeRO stage.
            total_steps: Optimiser steps of the whole run, for the schedule.
        """
        self.config, self.total_steps = config, total_steps
        self.num_steps = self.num_skipped_in_a_row = 0
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
        self._movement = MovementCheck(self._named_trained())

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
        if not torch.isfinite(loss):
            # Makes every gradient NaN on every rank, so that all ranks skip the step together.
            loss = loss * math.nan
        if is_last and self._reduces_what_is_there:
            self._fill_gradients()
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(loss * dist.get_world_size(), scale_wrt_gas=False)

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
        torch.save(_random_state(), folder / f"random_rank{dist.get_rank()}.pt")

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
        _set_random_state(
            torch.load(folder / f"random_rank{dist.get_rank()}.pt", weights_only=True)
        )

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers, so that the process can host another model."""
        self.engine.destroy()


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
