"""Bytes of one process by part, on a GPU or on the CPU: what plans count in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes by part.

    Attributes:
        process: What a process has without a model.
        weights: As they are held, gathered parts left out.
        optimizer: Adam's states and float32 copies of the weights.
        kv_cache: Of an engine.
        buckets: Of gradients and of publication, where they stay between passes.
        activations: From here on what exists during a pass only.
        logits: And what is made of them.
        buffers: Gathered weights of ZeRO-3, gradients and weights on their way.
    """

    process: int = 0
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    kv_cache: int = 0
    buckets: int = 0
    activations: int = 0
    logits: int = 0
    buffers: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Every part by name."""
        return asdict(self)

    @property
    def at_rest(self) -> Memory:
        """What stays between passes."""
        return replace(self, activations=0, logits=0, buffers=0)

    @property
    def loaded(self) -> Memory:
        """The process with its weights alone."""
        return Memory(process=self.process, weights=self.weights)

    @property
    def bare(self) -> Memory:
        """The process without its model."""
        return Memory(process=self.process)

    @property
    def total(self) -> int:
        """The most that is there at a time."""
        return sum(self.parts.values())


def largest(memories: Iterable[Memory]) -> Memory:
    """The one with the largest sum."""
    return max(memories, key=lambda memory: memory.total)


def dtype_bytes(dtype: str, *, on_gpu: bool) -> int:
    """Bytes of a number; `auto` is bfloat16 on a GPU and float32 on the CPU."""
    return 2 if dtype == "bfloat16" or (dtype == "auto" and on_gpu) else 4
