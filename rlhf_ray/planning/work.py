"""What each role has to hold and to pass at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_ray.config.base import GroupConfig, ModelConfig, ZeroConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.planning.model_shape import Head, ModelShape

# What is done with a model: it learns; it is made ready to learn, but its weights are only passed
# on; or it is read alone.
Use = Literal["train", "publish", "read"]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One micro-batch through a model.

    Attributes:
        logits_tokens: Rows of logits that exist at a time; 0 without a vocabulary product.
        backward: Whether gradients follow.
    """

    tokens: int
    logits_tokens: int
    backward: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelWork:
    """A rank group with a model.

    Attributes:
        section: Where the configuration describes it: `policy`, `reward.model`.
        reading: The largest pass that scores or evaluates.
        training: The largest that trains.
        probe: That which compares each rank with the engines after a publication.
        publishes_mb: Weights go to the engines in buckets of about this size; 0 for not at all.
        leaves: Whether it is gone before another role's model is loaded.
        offloads: Whether it lives on the engines' GPUs, and waits in the node's memory while
            others work there.
    """

    role: str
    section: str
    group: GroupConfig
    shape: ModelShape
    model: ModelConfig
    zero: ZeroConfig
    head: Head
    use: Use
    reading: Pass | None = None
    training: Pass | None = None
    probe: Pass | None = None
    publishes_mb: int = 0
    leaves: bool = False
    offloads: bool = False

    @property
    def passes(self) -> list[Pass]:
        """All kinds that there are."""
        return [one for one in (self.reading, self.training, self.probe) if one is not None]

    @property
    def trains(self) -> bool:
        """Whether it takes steps."""
        return self.use == "train"

    @property
    def on_gpu(self) -> bool:
        """Whether its ranks have GPUs."""
        return bool(self.group.gpus_per_rank)

    @property
    def bytes_each(self) -> int:
        """Of a weight that is not quantized, and of an activation."""
        return dtype_bytes(self.model.dtype, on_gpu=self.on_gpu)

    @property
    def in_rectangles(self) -> bool:
        """Whether attention works on copies of its states: `packed_sdpa`, by name or for want."""
        in_half_on_gpu = self.on_gpu and self.bytes_each == 2
        return self.model.attention == "packed_sdpa" or not in_half_on_gpu


@dataclass(frozen=True, kw_only=True)
class EngineWork:
    """Rollout engines.

    Attributes:
        max_model_len: Prompt and response tokens together.
        sleeps: Whether they give their GPUs to other roles between rollouts.
        bucket_mb: Weights come in buckets of about this size.
    """

    group: GroupConfig
    shape: ModelShape
    rollout: RolloutConfig
    max_model_len: int
    sleeps: bool
    bucket_mb: int

    role = section = "rollout"


@dataclass(frozen=True, kw_only=True)
class BareWork:
    """A rank group without a model: reward functions, or a remote scorer."""

    role: str
    section: str
    group: GroupConfig


Work = ModelWork | EngineWork | BareWork


def dtype_bytes(dtype: str, *, on_gpu: bool) -> int:
    """Bytes of a number; `auto` is bfloat16 on a GPU and float32 on the CPU."""
    return 2 if dtype == "bfloat16" or (dtype == "auto" and on_gpu) else 4
