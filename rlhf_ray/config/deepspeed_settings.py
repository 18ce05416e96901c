"""Which of DeepSpeed's settings are not the user's to set: those that decide a gradient's value.

A learner's gradient is the sum over its micro-batches and ranks, in float32, clipped by the norm
that is reported. How DeepSpeed gets there, in which buckets and with what overlap, is open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SUM = "gradients are summed over micro-batches and ranks in float32"
# DeepSpeed's key, and what to do instead.
_TAKEN = {
    "bf16": "set model.dtype",
    "bfloat16": "set model.dtype",
    "fp16": "set model.dtype",
    "amp": "set model.dtype",
    "torch_autocast": "set model.dtype",
    "data_types": _SUM,
    "communication_data_type": _SUM,
    "prescale_gradients": _SUM,
    "gradient_predivide_factor": _SUM,
    "gradient_allreduce_op": _SUM,
    "sparse_gradients": _SUM,
    "managed_gradient_accumulation": _SUM,
    "gradient_accumulation_steps": "set max_tokens_per_micro_batch",
    "train_batch_size": "set max_tokens_per_micro_batch",
    "train_micro_batch_size_per_gpu": "set max_tokens_per_micro_batch",
    "gradient_clipping": "set optim.max_grad_norm",
    "optimizer": "set optim",
    "scheduler": "set optim.schedule",
    "zero_optimization.stage": "set zero.stage",
    "zero_optimization.cpu_offload": "set zero.offload_optimizer",
    "zero_optimization.offload_optimizer.device": "set zero.offload_optimizer",
    "zero_optimization.offload_optimizer.nvme_path": "set zero.nvme_path",
    "zero_optimization.offload_param.device": "set zero.offload_param",
    "zero_optimization.offload_param.nvme_path": "set zero.nvme_path",
    "zero_optimization.compute_grad_norm": "the norm is always reported",
    "zero_optimization.zenflow": _SUM,
    "zero_optimization.zero_quantized_gradients": _SUM,
}


def taken_settings(extra: Mapping[str, Any]) -> Iterator[str]:
    """What stands in `extra` and must not, each with what to do instead."""
    for path, instead in _TAKEN.items():
        value: Any = extra
        for key in path.split("."):
            if not isinstance(value, Mapping) or key not in value:
                break
            value = value[key]
        else:
            yield f"{path}: {instead}"
