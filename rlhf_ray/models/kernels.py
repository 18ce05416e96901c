"""Faster kernels of a transformers model's layers, by option: compiled ones, and Liger's.

Liger (https://arxiv.org/abs/2410.10989) has norms and gated products as one kernel each, forward
and backward. It exchanges them in the model and, for all models to come, in the family's code: this
undoes the latter, as others of the process are not to change. So its rotary embeddings, which the
code finds there, are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from rlhf_ray.errors import ConfigError

LIGER = "liger_kernel"
# What it may exchange; each family takes those that it has.
_LIGER_PARTS = {
    "rms_norm": True, "layer_norm": True, "swiglu": True, "geglu": True,
    "rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False,
}  # fmt: skip


def use_liger(model: Any, device: torch.device) -> None:
    """Exchange the norms and gated products of a loaded model, adapters not yet on.

    Raises:
        ConfigError: The package or a GPU is missing, or it does not know the family.
    """
    if find_spec(LIGER) is None:
        raise ConfigError(
            "model.kernels is liger, which needs the package liger-kernel; install it, or set torch"
        )
    if device.type == "cpu":
        raise ConfigError("model.kernels liger needs a GPU; on a CPU set torch")
    from liger_kernel.transformers import monkey_patch

    family = model.config.model_type
    known = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN
    if family not in known:
        raise ConfigError(
            f"model.kernels liger does not know {family}, but {', '.join(sorted(known))}; set torch"
        )
    with _unchanged(sys.modules[type(model).__module__]):
        monkey_patch._apply_liger_kernel_to_instance(model=model, **_LIGER_PARTS)


@contextmanager
def _unchanged(module: Any) -> Iterator[None]:
    """What `module` has under its names when this closes is what it had before."""
    before = dict(vars(module))
    try:
        yield
    finally:
        vars(module).update(before)


def compile_layers(model: torch.nn.Module) -> None:
    """Compile each decoder layer at its first pass, for any number of tokens.

    Layers are alike, so that one compilation serves all. Attention stays as it is: its kernels are
    compiled already, and what they are given differs from pass to pass.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(dynamic=True)
