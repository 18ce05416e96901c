"""The memory behind an object: storages of all tensors that it holds, wherever it keeps them."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch

# What leads from any object to the whole program; and values, of which there are many.
_LEADS_AWAY = (
    type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType,
    str, bytes, int, float, bool, type(None), torch.dtype, torch.device, torch.Size,
)  # fmt: skip

Storages = dict[int, torch.UntypedStorage]


def storages_of(
    root: object,
    device: torch.device,
    *,
    stop: tuple[type, ...] = (),
    gradients: bool = True,
) -> Storages:
    """What the tensors under `root` lie in, each storage once, by an identity of its own.

    Args:
        root: Its attributes and the elements of its containers are looked through, and theirs; no
            closures.
        device: Tensors elsewhere are passed over.
        stop: Objects of these types are not entered.
        gradients: Whether a tensor's gradient belongs to it.
    """
    found = {}
    for tensor in _tensors_of(root, stop, gradients):
        if tensor.device == device and tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            if storage.nbytes():
                found[storage._cdata] = storage
    return found


def _tensors_of(root: object, stop: tuple[type, ...], gradients: bool) -> Iterator[torch.Tensor]:
    ahead, seen = [root], {id(root): root}
    while ahead:
        current = ahead.pop()
        if isinstance(current, torch.Tensor):
            yield current
        for child in _children(current, gradients):
            if isinstance(child, (*_LEADS_AWAY, *stop)) or id(child) in seen:
                continue
            seen[id(child)] = child  # held, so that no other object gets its id meanwhile
            ahead.append(child)


def _children(parent: Any, gradients: bool) -> Iterable[Any]:
    if isinstance(parent, torch.Tensor):
        if gradients and parent.is_leaf and parent.grad is not None:
            yield parent.grad
    elif isinstance(parent, dict):
        yield from parent.values()
    elif isinstance(parent, (list, tuple, set, frozenset)):
        yield from parent
    yield from getattr(parent, "__dict__", {}).values()
