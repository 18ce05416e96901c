"""A model that a job left in the actors' memory: its weights in Ray's object store, rank by rank.

Each rank owns the buckets that it put there, so that they are good for as long as the group lives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

# Objects of this size move between nodes in parallel and are freed one by one.
BUCKET_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class HeldModel:
    """Where a model's weights are.

    Attributes:
        path: Folder of its configuration and tokenizer, by which jobs name it; its weights may be
            nowhere but in memory.
        role: Whose ranks own the buckets.
        bucket_refs: References to `Bucket`s, those of all ranks.
    """

    path: str
    role: str
    bucket_refs: tuple[Any, ...]


def put_share(lm: Any, *, rank: int, num_ranks: int) -> list[Any]:
    """Put this rank's share of the weights into the object store: every `num_ranks`-th one.

    All ranks call it together: under ZeRO-3 each weight is gathered from all of them.
    """
    from actors.weights.bucket import pack
    from rlhf_ray.learner.weights import named_weights

    mine = (weight for index, weight in enumerate(named_weights(lm)) if index % num_ranks == rank)
    return [ray.put(bucket) for bucket in pack(mine, bucket_bytes=BUCKET_BYTES)]


@contextmanager
def in_reach(models: Sequence[HeldModel], *, timeout_s: float) -> Iterator[None]:
    """While this is open, whatever loads one of these models in this process gets its weights."""
    from actors.weights.bucket import unpack
    from rlhf_ray.models import memory

    for model in models:
        buckets = ray.get(list(model.bucket_refs), timeout=timeout_s)
        # Copied one by one: transformers makes parameters of these very tensors.
        weights = {name: w.clone() for bucket in buckets for name, w in unpack(bucket)}
        memory.provide(model.path, weights)
    try:
        yield
    finally:
        for model in models:
            memory.forget(model.path)
