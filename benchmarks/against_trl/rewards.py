"""A score that costs nothing, of a form that both sides call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def share_of_even_words(completions: Sequence[str], **_: Any) -> list[float]:
    """How many words of a completion end with an even digit."""
    words = [completion.split() for completion in completions]
    return [sum(word[-1] in "02468" for word in each) / max(len(each), 1) for each in words]
