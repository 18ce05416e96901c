"""Models that are in this process's memory: what loads a model by its path asks here first.

A stage of a pipeline leaves its result in the actors' memory; the folder of that path then holds
configuration and tokenizer, but not always weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_weights: dict[str, Mapping[str, Tensor]] = {}


def provide(path: str, weights: Mapping[str, Tensor]) -> None:
    """From now on the model at `path` has these weights, by their checkpoint names."""
    _weights[path] = weights


def weights_of(path: str) -> Mapping[str, Tensor] | None:
    """Its weights, or None where only the folder has them."""
    return _weights.get(path)


def forget(path: str) -> None:
    """The folder speaks for itself again; the memory is free."""
    _weights.pop(path, None)
