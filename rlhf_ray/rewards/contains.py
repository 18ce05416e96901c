"""Rewards for stories, which need neither a model nor an answer: a wanted word, a wanted length."""

from __future__ import annotations

import re
from typing import Any

from rlhf_ray.rewards.batch import Messages, completion_text


def contains_word(completions: list[str | Messages], *, word: str, **_: Any) -> list[float]:
    """1 where the completion has `word` as a whole word, in upper or lower case, else 0."""
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
    return [float(bool(pattern.search(completion_text(text)))) for text in completions]


def near_length(completions: list[str | Messages], *, num_words: int, **_: Any) -> list[float]:
    """1 at `num_words` words, falling in a straight line to 0 at none and at twice as many."""
    counts = [len(completion_text(text).split()) for text in completions]
    return [max(0.0, 1 - abs(count - num_words) / num_words) for count in counts]
