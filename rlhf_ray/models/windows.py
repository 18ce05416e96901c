"""Whether attention is told of the windows that a model's masks would have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def lost_windows(name: str) -> Iterator[set[int]]:
    """While this is open, collect windows that masks were asked to have and attention never got.

    Attention that is given no mask knows of a window by the keyword `sliding_window` alone. Some
    families (Phi-3.5-MoE, Qwen2-MoE) leave it to the mask, and would see everything without.

    Args:
        name: transformers' name of the attention function that the passes in between use.

    Yields:
        Filled when it closes: the windows, in tokens.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    masks, functions = AttentionMaskInterface._global_mapping, AttentionInterface._global_mapping
    if name not in functions:  # eager, which every family has its own of and gives a mask
        yield set()
        return
    make_mask, attend = masks.get(name), functions[name]
    asked: set[int | None] = set()
    given: set[int | None] = set()
    lost: set[int] = set()

    def asking(*arguments: Any, local_size: int | None = None, **keywords: Any) -> Any:
        asked.add(local_size)
        if make_mask is None:
            return None
        return make_mask(*arguments, local_size=local_size, **keywords)

    def attending(*arguments: Any, sliding_window: int | None = None, **keywords: Any) -> Any:
        given.add(sliding_window)
        return attend(*arguments, sliding_window=sliding_window, **keywords)

    AttentionMaskInterface.register(name, asking)
    AttentionInterface.register(name, attending)
    try:
        yield lost
    finally:
        AttentionInterface.register(name, attend)
        if make_mask is None:
            del masks[name]
        else:
            AttentionMaskInterface.register(name, make_mask)
        if given:  # else no layer attends
            lost.update(size for size in asked - given if size is not None)
