"""The model below an adapter, which is the reference of a policy that trains one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_adapter(lm: Any) -> Iterator[None]:
    """While this is open, a model of peft computes as if it had no adapter.

    peft would train all of the adapter afterwards, with what was taken out of training
    (`settle_unreached`).
    """
    frozen = [parameter for parameter in lm.parameters() if not parameter.requires_grad]
    with lm.disable_adapter():
        yield
    for parameter in frozen:
        parameter.requires_grad_(False)
