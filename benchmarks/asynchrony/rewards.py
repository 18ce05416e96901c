"""A score that a run of a minute can learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def share_of_letter(completions: Sequence[str], *, letter: str, **_: Any) -> list[float]:
    """How many of the letters of a completion are `letter`, in either case; 0 without any."""
    counts = [(text.lower().count(letter), sum(map(str.isalpha, text))) for text in completions]
    return [count / letters if letters else 0.0 for count, letters in counts]
