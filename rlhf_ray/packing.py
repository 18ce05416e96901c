"""Which rows go into which micro-batch of which rank: pure planning, no tensors.

A rank here is a data-parallel one: rows are dealt out to `data_parallel_size` of them. Where an
engine has several processes work on the same rows, a role has more ranks than its plans.

Three properties that the learner rests on:

* Every rank runs the same number of micro-batches in a minibatch. Under ZeRO-3 each forward and
  backward pass is a collective, so that a rank with one pass fewer would hang the others. A rank
  that has no rows left gets an empty micro-batch.
* The rows of a minibatch depend on the seed alone: not on the number of ranks, the token budget or
  the layout. The same optimiser steps are taken on one GPU as on sixty-four.
* A plan carries its minibatch's denominators, summed over all ranks, so that no loss ever divides
  by a count that depends on the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Rows: TypeAlias = tuple[int, ...]
RankedMicroBatches: TypeAlias = tuple[tuple[Rows, ...], ...]


@dataclass(frozen=True, kw_only=True)
class MinibatchPlan:
    """One optimiser step.

    Example with two ranks: `MinibatchPlan(micro_batches_by_rank=(((4, 1), (0,)), ((2,), (3,))),
    num_tokens=70, num_sequences=5)`.

    Attributes:
        micro_batches_by_rank: Rank -> micro-batch -> row. All ranks have equally many
            micro-batches; an empty tuple is an empty micro-batch.
        num_tokens: Tokens of all rows on all ranks that enter the loss.
        num_sequences: Rows with at least one such token, on all ranks.
    """

    micro_batches_by_rank: RankedMicroBatches
    num_tokens: int
    num_sequences: int


@dataclass(frozen=True, kw_only=True)
class UpdatePlan:
    """Every optimiser step of one update, in order: epochs times minibatches."""

    minibatches: tuple[MinibatchPlan, ...]


def plan_update(
    lengths_B: Sequence[int],
    loss_tokens_B: Sequence[int],
    *,
    data_parallel_size: int,
    max_tokens_per_micro_batch: int,
    num_minibatches: int,
    num_epochs: int,
    seed: int,
    padded: bool,
) -> UpdatePlan:
    """Plan epochs of minibatches over B rows.

    In each epoch the rows are shuffled and cut into `num_minibatches` nearly equal parts (as many
    as there are rows, if there are fewer); each part is balanced over the ranks and packed.

    Args:
        lengths_B: Prompt and response tokens of each row.
        loss_tokens_B: Tokens of each row that enter the loss.
        data_parallel_size: Data-parallel ranks of the role that is updated.
        max_tokens_per_micro_batch: Budget of one pass on one rank; a longer row goes alone.
        num_minibatches: Optimiser steps an epoch.
        num_epochs: Passes over all rows.
        seed: Of the shuffle; the plan is a function of the arguments.
        padded: Whether a micro-batch costs rows x longest row, or the sum of its lengths.

    Raises:
        ValueError: No rows, a row without tokens, more loss tokens than tokens, or a count below 1.
    """
    _check(
        lengths_B,
        data_parallel_size=data_parallel_size,
        max_tokens_per_micro_batch=max_tokens_per_micro_batch,
    )
    _at_least_one(num_minibatches=num_minibatches, num_epochs=num_epochs, rows=len(lengths_B))
    if len(loss_tokens_B) != len(lengths_B):
        raise ValueError(
            f"loss_tokens_B must have {len(lengths_B)} entries, got {len(loss_tokens_B)}"
        )
    for row, (num, length) in enumerate(zip(loss_tokens_B, lengths_B, strict=True)):
        if not 0 <= num <= length:
            raise ValueError(f"row {row}: loss tokens must be 0 to its length {length}, got {num}")

    minibatches = []
    for epoch in range(num_epochs):
        generator = np.random.Generator(np.random.PCG64([seed, epoch]))
        order_B = generator.permutation(len(lengths_B))
        for part in np.array_split(order_B, min(num_minibatches, len(order_B))):
            rows = [int(row) for row in part]
            minibatches.append(
                MinibatchPlan(
                    micro_batches_by_rank=_spread(
                        rows, lengths_B, data_parallel_size, max_tokens_per_micro_batch, padded
                    ),
                    num_tokens=sum(int(loss_tokens_B[row]) for row in rows),
                    num_sequences=sum(loss_tokens_B[row] > 0 for row in rows),
                )
            )
    return UpdatePlan(minibatches=tuple(minibatches))


def plan_forward(
    lengths_B: Sequence[int],
    *,
    data_parallel_size: int,
    max_tokens_per_micro_batch: int,
    padded: bool,
) -> RankedMicroBatches:
    """Plan one inference pass over B rows: rank -> micro-batch -> row, each row once.

    Arguments as in `plan_update`. Without rows no rank has a micro-batch.

    Raises:
        ValueError: A row without tokens, or a count below 1.
    """
    _check(
        lengths_B,
        data_parallel_size=data_parallel_size,
        max_tokens_per_micro_batch=max_tokens_per_micro_batch,
    )
    rows = range(len(lengths_B))
    return _spread(rows, lengths_B, data_parallel_size, max_tokens_per_micro_batch, padded)


def cut_to_rectangles(
    plan: RankedMicroBatches, lengths_B: Sequence[int], *, max_tokens_per_micro_batch: int
) -> RankedMicroBatches:
    """Cut micro-batches whose rectangle, padding included, is above the budget.

    For a plan that was made for packed rows, and a model that turned out to need padded ones. Each
    rank keeps its rows in their order, and all ranks keep as many micro-batches as one another.
    """
    cut: list[list[Rows]] = [[] for _ in plan]
    for of_ranks in zip(*plan, strict=True):
        pieces_by_rank = [
            _pack(rows, lengths_B, max_tokens_per_micro_batch, padded=True) for rows in of_ranks
        ]
        num_pieces = max(1, *(len(pieces) for pieces in pieces_by_rank))
        for micro_batches, pieces in zip(cut, pieces_by_rank, strict=True):
            empty: list[list[int]] = [[]] * (num_pieces - len(pieces))
            micro_batches += [tuple(piece) for piece in pieces + empty]
    return tuple(tuple(micro_batches) for micro_batches in cut)


def cost_of(rows: Sequence[int], lengths_B: Sequence[int], *, padded: bool) -> int:
    """Tokens that one micro-batch computes, padding included."""
    lengths = [int(lengths_B[row]) for row in rows]
    if not lengths:
        return 0
    return len(lengths) * max(lengths) if padded else sum(lengths)


def _spread(
    rows: Sequence[int],
    lengths_B: Sequence[int],
    data_parallel_size: int,
    budget: int,
    padded: bool,
) -> RankedMicroBatches:
    """Balance rows over ranks, pack them, and give all ranks the same number of micro-batches."""
    longest_first = sorted(rows, key=lambda row: (-lengths_B[row], row))
    by_rank = [
        _pack(rank_rows, lengths_B, budget, padded)
        for rank_rows in _balance(longest_first, lengths_B, data_parallel_size)
    ]
    num_micro_batches = max(len(micro_batches) for micro_batches in by_rank)
    for micro_batches in by_rank:
        _grow(micro_batches, num_micro_batches)
        # Ranks wait for one another at each pass: passes of like cost should meet. The dearest
        # comes first, so that a lack of memory shows at once.
        micro_batches.sort(key=lambda batch: (-cost_of(batch, lengths_B, padded=padded), batch))
    return tuple(tuple(tuple(batch) for batch in micro_batches) for micro_batches in by_rank)


def _balance(
    longest_first: Sequence[int], lengths_B: Sequence[int], data_parallel_size: int
) -> list[list[int]]:
    """Give each row to the rank with the fewest tokens; loads then differ by one row at most.

    Graham's longest-processing-time rule (1969, "Bounds on multiprocessing timing anomalies").
    """
    rows_by_rank: list[list[int]] = [[] for _ in range(data_parallel_size)]
    tokens_by_rank = [0] * data_parallel_size
    for row in longest_first:
        rank = min(range(data_parallel_size), key=tokens_by_rank.__getitem__)
        rows_by_rank[rank].append(row)
        tokens_by_rank[rank] += int(lengths_B[row])
    return rows_by_rank


def _pack(
    longest_first: Sequence[int], lengths_B: Sequence[int], budget: int, padded: bool
) -> list[list[int]]:
    """Fill one micro-batch after the other.

    Rows come longest first, so those of a micro-batch are of like length: little is padded, also
    inside `packed_sdpa`, which works on a rectangle whatever the layout.
    """
    micro_batches: list[list[int]] = []
    cost = 0
    for row in longest_first:
        length = int(lengths_B[row])
        added = int(lengths_B[micro_batches[-1][0]]) if padded and micro_batches else length
        if micro_batches and cost + added <= budget:
            micro_batches[-1].append(row)
            cost += added
        else:
            micro_batches.append([row])
            cost = length
    return micro_batches


def _grow(micro_batches: list[list[int]], num_micro_batches: int) -> None:
    """Split micro-batches in two until there are enough; empty ones come where rows run out."""
    while len(micro_batches) < num_micro_batches:
        fullest = max(micro_batches, key=len, default=[])
        half = (len(fullest) + 1) // 2
        micro_batches.append(fullest[half:])
        del fullest[half:]


def _check(
    lengths_B: Sequence[int], *, data_parallel_size: int, max_tokens_per_micro_batch: int
) -> None:
    _at_least_one(
        data_parallel_size=data_parallel_size, max_tokens_per_micro_batch=max_tokens_per_micro_batch
    )
    for row, length in enumerate(lengths_B):
        if length < 1:
            raise ValueError(f"row {row}: a length must be at least 1 token, got {length}")


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
