"""What happens to sequences that are too long: one policy for prompts and for examples."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from rlhf_ray.data.formats import DataError

logger = logging.getLogger(__name__)

OverLength = Literal["error", "drop", "truncate"]


@dataclass(kw_only=True)
class LengthPolicy:
    """Applies `over_length` to one data set and counts what it did.

    Attributes:
        what: `prompts` or `examples`, for messages.
        limit: Most tokens of one.
        limit_name: The setting that the limit comes from.
        over_length: As in `DataConfig`.
    """

    what: str
    limit: int
    limit_name: str
    over_length: OverLength
    num_seen: int = 0
    num_dropped: int = 0
    num_truncated: int = 0

    def __post_init__(self) -> None:
        """Check the limit.

        Raises:
            ValueError: No room for a single token.
        """
        if self.limit < 1:
            raise ValueError(f"{self.limit_name} must leave at least 1 token, got {self.limit}")

    def decide(self, num_tokens: int, where: str) -> Literal["keep", "drop", "truncate"]:
        """What to do with one sequence.

        Raises:
            DataError: It is too long and the policy is `error`.
        """
        self.num_seen += 1
        if num_tokens <= self.limit:
            return "keep"
        if self.over_length == "error":
            raise DataError(
                f"{where}: {num_tokens} tokens, but {self.limit_name} allows {self.limit}; "
                "set over_length to drop or truncate"
            )
        if self.over_length == "drop":
            self.num_dropped += 1
        else:
            self.num_truncated += 1
        return self.over_length

    def nothing_left(self) -> None:
        """Count a truncated sequence as dropped: nothing to train is within the limit."""
        self.num_truncated -= 1
        self.num_dropped += 1

    def report(self, path: str) -> None:
        """Log one line where anything was dropped or truncated.

        Raises:
            DataError: Nothing is left.
        """
        if self.num_dropped == self.num_seen:
            raise DataError(
                f"{path}: all {self.num_seen} {self.what} are longer than "
                f"{self.limit_name} allows ({self.limit} tokens)"
            )
        if self.num_dropped or self.num_truncated:
            logger.warning(
                "%s: of %d %s, %d dropped and %d truncated to %d tokens (%s)",
                path,
                self.num_seen,
                self.what,
                self.num_dropped,
                self.num_truncated,
                self.limit,
                self.limit_name,
            )
