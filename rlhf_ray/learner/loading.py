"""Loading under ZeRO-3: each rank keeps its part of a weight from the moment it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_ray.config.base import ZeroConfig
from rlhf_ray.learner.engine import deepspeed_config


@contextmanager
def zero3_loading(zero: ZeroConfig) -> Iterator[None]:
    """While this is open, transformers loads straight into ZeRO-3 partitions, if stage 3 is on."""
    if zero.stage != 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    # transformers holds it by a weak reference: it works for as long as this variable lives.
    active = HfDeepSpeedConfig(deepspeed_config(zero, bf16=False, max_grad_norm=0.0))
    try:
        yield
    finally:
        del active
