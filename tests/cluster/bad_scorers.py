"""Rewards that hang, end their process or raise at some samples, always at the same ones."""

import os
import threading
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np

ACTS = ("hung", "crashed", "raised")


def act_of(text: str, one_in: int) -> str:
    """What is done at a text: of so many one of each; empty for most."""
    number = crc32(text.encode()) % one_in
    return ACTS[number] if number < len(ACTS) else ""


def acts_by_text(completions: Sequence[str], *, one_in: int, **_: Any) -> list[float]:
    """Each completion's own number, and what is drawn behind the group's seed."""
    for text in completions:
        _act(act_of(text, one_in))
    return [len(text) + np.random.rand() for text in completions]


def acts_by_prompt(
    prompts: Sequence[str], completions: Sequence[str], *, one_in: int, **_: Any
) -> list[float]:
    """The share of e; what it does follows from the prompt, which a test knows beforehand."""
    _act(act_of(prompts[0], one_in))
    return [text.count("e") / max(1, len(text)) for text in completions]


async def acts_beside_others(completions: Sequence[str], *, one_in: int, **_: Any) -> list[float]:
    """The same for several groups at a time."""
    for text in completions:
        act = act_of(text, one_in)
        # An async function that blocks is no other than a plain one.
        _act("raised" if act == "hung" else act)
    return [float(len(text)) for text in completions]


def _act(act: str) -> None:
    match act:
        case "hung":
            threading.Event().wait()
        case "crashed":
            os._exit(1)
        case "raised":
            raise LookupError("no such word")
