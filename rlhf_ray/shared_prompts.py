"""What sequences cost that begin with one prompt, which a pass computes once. No NumPy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

# Where a prompt is computed once, attention has a copy of its keys and values for each sequence: so
# many tokens' take at most the memory of one token's pass, in a layer without grouped heads and
# without gradients; otherwise it is two or more times as many.
COPIES_PER_TOKEN = 6


@dataclass(frozen=True, kw_only=True)
class PromptShare:
    """What a row begins with.

    Attributes:
        prompt: Rows of one number begin alike.
        num_tokens: Of the prompt.
    """

    prompt: int
    num_tokens: int


def shared_cost(num_prompt_tokens: int, num_sequences: int, num_tokens: int) -> int:
    """Tokens that a pass counts for sequences which begin with one prompt.

    It computes the prompt once where that saves: see `COPIES_PER_TOKEN`.

    Args:
        num_prompt_tokens: Of the prompt.
        num_sequences: That begin with it.
        num_tokens: Of all of them, each with the prompt.
    """
    once = num_tokens - (num_sequences - 1) * num_prompt_tokens
    return min(num_tokens, once + -(-num_tokens // COPIES_PER_TOKEN))


class AnsweredRow(Protocol):
    """A row of sequences that begin with one prompt.

    Attributes:
        num_prompt_tokens: Of the prompt.
        lengths_K: Tokens of each sequence, with the prompt.
    """

    @property
    def num_prompt_tokens(self) -> int: ...  # noqa: D102
    @property
    def lengths_K(self) -> tuple[int, ...]: ...  # noqa: D102


def planned_tokens(rows_B: Iterable[AnsweredRow], *, shares_prompts: bool) -> list[int]:
    """Lengths of rows for a plan, each row's prompt counted once or for each of its sequences."""
    return [
        shared_cost(row.num_prompt_tokens, len(row.lengths_K), sum(row.lengths_K))
        if shares_prompts
        else sum(row.lengths_K)
        for row in rows_B
    ]
