"""DeepSpeed's ZeRO: what it splits and offloads, and which of its settings are not the user's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from rlhf_ray.config.base import Config, LocalPath

# What DeepSpeed's settings decide a gradient's value, and what to set instead. A learner's gradient
# is the sum over its micro-batches and ranks, in float32, clipped by the norm that is reported; in
# which buckets and with what overlap DeepSpeed gets there is open.
_ABSENT = object()
_TAKEN_SETTINGS = {
    "set model.dtype": "bf16 bfloat16 fp16 amp torch_autocast",
    "gradients are summed over micro-batches and ranks in float32": (
        "data_types communication_data_type prescale_gradients gradient_predivide_factor "
        "gradient_allreduce_op sparse_gradients managed_gradient_accumulation "
        "zero_optimization.zenflow zero_optimization.zero_quantized_gradients"
    ),
    "set max_tokens_per_micro_batch": (
        "gradient_accumulation_steps train_batch_size train_micro_batch_size_per_gpu"
    ),
    "set optim.max_grad_norm": "gradient_clipping",
    "set optim": "optimizer",
    "set optim.schedule": "scheduler",
    "set zero.stage": "zero_optimization.stage",
    "set zero.offload_optimizer": (
        "zero_optimization.cpu_offload zero_optimization.offload_optimizer.device"
    ),
    "set zero.nvme_path": (
        "zero_optimization.offload_optimizer.nvme_path zero_optimization.offload_param.nvme_path"
    ),
    "set zero.offload_param": "zero_optimization.offload_param.device",
    "the norm is always reported": "zero_optimization.compute_grad_norm",
}


def taken_settings(extra: Mapping[str, Any]) -> Iterator[str]:
    """What stands in `extra` and must not, each with what to do instead."""
    for instead, paths in _TAKEN_SETTINGS.items():
        for path in paths.split():
            value: Any = extra
            for key in path.split("."):
                value = value.get(key, _ABSENT) if isinstance(value, Mapping) else _ABSENT
            if value is not _ABSENT:
                yield f"{path}: {instead}"


class ZeroConfig(Config):
    """DeepSpeed's ZeRO stage and offloading.

    Attributes:
        nvme_path: Folder on a drive of each node; every rank has one of its own below it.
        extra: Merged into DeepSpeed's own settings: sizes of buckets, overlap and the like. What
            decides a gradient's value has keys of its own, or is fixed.
    """

    stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    offload_param: Literal["none", "cpu", "nvme"] = "none"
    nvme_path: LocalPath = ""
    extra: dict[str, Any] = {}

    def _faults(self) -> Iterator[str]:
        if self.offload_param != "none" and self.stage != 3:
            yield f"offload_param needs stage 3, got stage {self.stage}"
        if self.offload_optimizer != "none" and self.stage == 0:
            yield "offload_optimizer needs stage 1, 2 or 3, got stage 0"
        if self.offloads_to_nvme and self.stage != 3:
            # DeepSpeed's stages 1 and 2 take "nvme" and leave everything where it is.
            yield f"offloading to nvme needs stage 3, got stage {self.stage}"
        if self.offloads_to_nvme and not self.nvme_path:
            yield "offloading to nvme needs nvme_path, a folder on the drive"
        for problem in taken_settings(self.extra):
            yield f"extra must not set DeepSpeed's {problem}"

    @property
    def offloads_to_nvme(self) -> bool:
        """Whether anything lies on a drive."""
        return "nvme" in (self.offload_optimizer, self.offload_param)
