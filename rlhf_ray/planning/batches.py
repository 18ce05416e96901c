"""The arithmetic of batches, at the longest that rows may be."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Batches:
    """One step of a job.

    Attributes:
        rows: Of one step: rollouts, or rows of the data set.
        row_tokens: Most tokens of a row, all its answers together.
        optimizer_steps: Of the trained role in one step; 0 where nothing is trained.
        rows_per_optimizer_step: On all ranks.
        micro_batches: Of one rank in one optimiser step.
        rows_per_micro_batch: That fit the token budget.
    """

    rows: int
    row_tokens: int
    optimizer_steps: int = 0
    rows_per_optimizer_step: int = 0
    micro_batches: int = 0
    rows_per_micro_batch: int = 0

    @property
    def tokens(self) -> int:
        """Most tokens of one step."""
        return self.rows * self.row_tokens


def batches_of(
    *, rows: int, row_tokens: int, minibatches: int, epochs: int, ranks: int, budget: int
) -> Batches:
    """One step of so many rows, minibatches and epochs over them, on the trained role's ranks."""
    per_step = math.ceil(rows / minibatches)
    per_micro_batch = max(1, budget // row_tokens)
    return Batches(
        rows=rows,
        row_tokens=row_tokens,
        optimizer_steps=minibatches * epochs,
        rows_per_optimizer_step=per_step,
        micro_batches=math.ceil(math.ceil(per_step / ranks) / per_micro_batch),
        rows_per_micro_batch=per_micro_batch,
    )
