"""Parameters that an engine spreads over ranks: how large they are, and all of them for a while.

An engine that spreads weights registers how; who reads weights asks here, and knows no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch


class Sharding(Protocol):
    """How one engine spreads parameters."""

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is one of those."""

    def shape(self, tensor: torch.Tensor) -> tuple[int, ...]:
        """Of the whole, in place of this rank's part."""

    def gathered(self, tensors: Sequence[torch.Tensor]) -> AbstractContextManager[Any]:
        """While this is open, they are whole on every rank; all ranks call it alike."""

    def is_hook(self, hook: Callable[..., Any]) -> bool:
        """Whether the engine put a hook on a module, to gather and release its parameters."""


_shardings: list[Sharding] = []


def register(sharding: Sharding) -> None:
    """Make an engine's parameters known."""
    _shardings.append(sharding)


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether ranks hold parts of it."""
    return any(sharding.holds(tensor) for sharding in _shardings)


def whole_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Of all ranks' parts together."""
    held_by = (sharding for sharding in _shardings if sharding.holds(tensor))
    return next((sharding.shape(tensor) for sharding in held_by), tuple(tensor.shape))


@contextmanager
def gathered(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """While this is open, all of them are whole; nothing happens to those that are so anyway."""
    with ExitStack() as stack:
        for sharding in _shardings:
            if spread := [tensor for tensor in tensors if sharding.holds(tensor)]:
                stack.enter_context(sharding.gathered(spread))
        yield


def is_engine_hook(hook: Callable[..., Any]) -> bool:
    """Whether a module's hook is an engine's."""
    return any(sharding.is_hook(hook) for sharding in _shardings)
