"""What of a learner is on its device, as Python's garbage collector sees it."""

from __future__ import annotations

import gc
import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Smaller tensors than the smallest matrix of a tiny model are of no interest.
SMALL_BYTES = 256


@contextmanager
def only_what_comes() -> Iterator[None]:
    """Objects that are there already are looked through by nobody: there are millions.

    Nor is what of them is garbage collected before: that alone takes longer than a test.
    """
    gc.freeze()
    yield
    gc.unfreeze()


def on_device(holder: Any) -> dict[int, str]:
    """A digest of each storage that tensors of Python's, and their gradients, lie in.

    Those that a learner's residency has on the host are left out.
    """
    residency = holder.engine.residency
    chunks = [*residency._weights._chunks, *residency._states._chunks]
    host = {chunk.untyped_storage()._cdata for chunk in chunks}
    return {
        key: _digest(storage)
        for key, storage in _storages().items()
        if key not in host and storage.nbytes() > SMALL_BYTES
    }


def _storages() -> dict[int, torch.UntypedStorage]:
    gc.collect()
    with warnings.catch_warnings(action="ignore"):  # of modules that only stand for others
        tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    tensors += [one.grad for one in tensors if one.is_leaf and one.grad is not None]
    here = (one.untyped_storage() for one in tensors if one.device.type == "cpu")
    return {storage._cdata: storage for storage in here}


def _digest(storage: torch.UntypedStorage) -> str:
    # A copy: what NumPy has seen of a tensor, PyTorch does not resize any more.
    data = torch.empty(0, dtype=torch.uint8).set_(storage).clone()
    return hashlib.blake2b(data.numpy().data, digest_size=16).hexdigest()
