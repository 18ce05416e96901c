"""Reward functions of the cluster tests, loaded by path as a user's would be."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def share_of_e(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """Different for almost every response, so that every group has a spread."""
    return [text.count("e") / max(1, len(text)) for text in completions]


def breaks_down(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    calls: str,
    at_call: int,
    **columns: Any,
) -> list[float]:
    """As `share_of_e`, but call number `at_call` fails; the file `calls` counts them."""
    with Path(calls).open("a") as file:
        file.write("x")
    if Path(calls).stat().st_size == at_call:
        raise OSError("the scorer went away")
    return share_of_e(prompts, completions)


def raises(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    raise LookupError("no such word")


def one_too_few(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    return [1.0] * (len(completions) - 1)


def not_a_number(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    return [*[1.0] * (len(completions) - 1), float("nan")]


def never_returns(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> None:
    threading.Event().wait()


def says_was(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """The same for all answers of many groups, which dynamic sampling replaces."""
    return [float("was" in text) for text in completions]


def alike_at_times(
    prompts: Sequence[str], completions: Sequence[str], **columns: Any
) -> list[float]:
    """As `share_of_e`, but the same for all answers of every third group or so."""
    if sum(map(len, completions)) % 3 == 0:
        return [1.0] * len(completions)
    return share_of_e(prompts, completions)
