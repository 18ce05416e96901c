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

Rows of a minibatch that begin with one prompt go to one micro-batch, where that leaves the
fullest rank with less: a pass computes the prompt once for all of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import TypeAlias

import numpy as np

from rlhf_ray.shared_prompts import PromptShare, shared_cost

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

    @property
    def num_ranks(self) -> int:
        """Into how many parts the rows are dealt out."""
        return len(self.minibatches[0].micro_batches_by_rank)


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
    prompts_B: Sequence[PromptShare] | None = None,
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
        prompts_B: What rows may share; None for nothing. Rectangles share nothing.

    Raises:
        ValueError: No rows, a row without tokens, more tokens of loss or prompt than tokens, or a
            count below 1.
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

    sizes = _Sizes.of(lengths_B, prompts_B, padded=padded)
    minibatches = []
    for epoch in range(num_epochs):
        generator = np.random.Generator(np.random.PCG64([seed, epoch]))
        order_B = generator.permutation(len(lengths_B))
        for part in np.array_split(order_B, min(num_minibatches, len(order_B))):
            rows = [int(row) for row in part]
            minibatches.append(
                MinibatchPlan(
                    micro_batches_by_rank=_spread(
                        rows, sizes, data_parallel_size, max_tokens_per_micro_batch
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
    prompts_B: Sequence[PromptShare] | None = None,
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
    sizes = _Sizes.of(lengths_B, prompts_B, padded=padded)
    rows = range(len(lengths_B))
    return _spread(rows, sizes, data_parallel_size, max_tokens_per_micro_batch)


def cut(
    plan: RankedMicroBatches,
    lengths_B: Sequence[int],
    *,
    max_tokens_per_micro_batch: int,
    padded: bool,
) -> RankedMicroBatches:
    """Cut micro-batches that are above the budget as rectangles, or with a prompt for each row.

    For a plan that was made for packed rows or shared prompts, and a model that turned out to be
    unable to. Each rank keeps its rows in their order, and all ranks keep as many micro-batches as
    one another.
    """
    sizes = _Sizes.of(lengths_B, None, padded=padded)
    pieces_by_rank: list[list[Rows]] = [[] for _ in plan]
    for of_ranks in zip(*plan, strict=True):
        cut_by_rank = [sizes.packed(rows, max_tokens_per_micro_batch) for rows in of_ranks]
        num_pieces = max(1, *(len(pieces) for pieces in cut_by_rank))
        for micro_batches, pieces in zip(pieces_by_rank, cut_by_rank, strict=True):
            empty: list[list[int]] = [[]] * (num_pieces - len(pieces))
            micro_batches += [tuple(piece) for piece in pieces + empty]
    return tuple(tuple(micro_batches) for micro_batches in pieces_by_rank)


def cost_of(
    rows: Sequence[int],
    lengths_B: Sequence[int],
    *,
    padded: bool,
    prompts_B: Sequence[PromptShare] | None = None,
) -> int:
    """Tokens that one micro-batch counts; arguments as in `plan_update`."""
    return _Sizes.of(lengths_B, prompts_B, padded=padded).cost(rows)


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What rows cost together.

    Attributes:
        lengths_B: Tokens of each.
        prompts_B: What each begins with.
        padded: Whether passes are rectangles.
    """

    lengths_B: Sequence[int]
    prompts_B: Sequence[PromptShare]
    padded: bool

    @classmethod
    def of(
        cls,
        lengths_B: Sequence[int],
        prompts_B: Sequence[PromptShare] | None,
        *,
        padded: bool,
    ) -> _Sizes:
        """In rectangles nothing is shared."""
        if prompts_B is not None:
            _check_prompts(prompts_B, lengths_B)
        if prompts_B is None or padded:
            prompts_B = [PromptShare(prompt=row, num_tokens=0) for row in range(len(lengths_B))]
        return cls(lengths_B=lengths_B, prompts_B=prompts_B, padded=padded)

    def cost(self, rows: Sequence[int]) -> int:
        """Tokens that one micro-batch computes, padding and copies of keys included."""
        if self.padded:
            return len(rows) * max((int(self.lengths_B[row]) for row in rows), default=0)
        return sum(self._group_cost(group) for group in self.grouped(rows))

    def cost_of_piece(self, rows: Sequence[int]) -> int:
        """The same of rows of one prompt, the longest first."""
        return self.cost(rows) if self.padded else self._group_cost(rows)

    def _group_cost(self, rows: Sequence[int]) -> int:
        num_tokens = sum(int(self.lengths_B[row]) for row in rows)
        return shared_cost(self.prompts_B[rows[0]].num_tokens, len(rows), num_tokens)

    def grouped(self, rows: Iterable[int]) -> list[list[int]]:
        """Rows of one prompt together, the longest first; the dearest first of the groups."""
        groups: dict[int, list[int]] = {}
        for row in sorted(rows, key=lambda row: (-self.lengths_B[row], row)):
            groups.setdefault(self.prompts_B[row].prompt, []).append(row)
        return sorted(groups.values(), key=lambda group: (-self._group_cost(group), group[0]))

    def packed(self, rows: Iterable[int], budget: int) -> list[list[int]]:
        """Fill one micro-batch after the other with rows in their order.

        Those of one prompt are expected together. Longer ones come before shorter ones, so that
        those of a micro-batch are of like length: little is padded, also inside `packed_sdpa`,
        which works on rectangles whatever the layout.
        """
        micro_batches: list[list[int]] = []
        longest = closed = opened = num_rows = num_tokens = 0  # of the last; of its last prompt
        prompt: int | None = None
        for row in rows:
            length, share = int(self.lengths_B[row]), self.prompts_B[row]
            if share.prompt != prompt:
                prompt, closed, num_rows, num_tokens = share.prompt, closed + opened, 0, 0
            cost = closed + shared_cost(share.num_tokens, num_rows + 1, num_tokens + length)
            if self.padded and micro_batches:
                cost = (len(micro_batches[-1]) + 1) * max(longest, length)
            if not micro_batches or cost > budget:
                micro_batches.append([])
                longest = closed = num_rows = num_tokens = 0
            micro_batches[-1].append(row)
            longest, num_rows, num_tokens = max(longest, length), num_rows + 1, num_tokens + length
            opened = shared_cost(share.num_tokens, num_rows, num_tokens)
        return micro_batches


def _spread(
    rows: Sequence[int], sizes: _Sizes, data_parallel_size: int, budget: int
) -> RankedMicroBatches:
    """Balance rows over ranks, pack them, and give all ranks the same number of micro-batches."""
    by_rank = [
        sizes.packed(chain.from_iterable(sizes.grouped(rank_rows)), budget)
        for rank_rows in _balance(sizes.grouped(rows), sizes, data_parallel_size)
    ]
    num_micro_batches = max(len(micro_batches) for micro_batches in by_rank)
    for micro_batches in by_rank:
        _grow(micro_batches, num_micro_batches)
        # Ranks wait for one another at each pass: passes of like cost should meet. The dearest
        # comes first, so that a lack of memory shows at once.
        micro_batches.sort(key=lambda batch: (-sizes.cost(batch), batch))
    return tuple(tuple(tuple(batch) for batch in micro_batches) for micro_batches in by_rank)


def _balance(
    groups: Sequence[Sequence[int]], sizes: _Sizes, data_parallel_size: int
) -> list[list[int]]:
    """Give groups to ranks, whole or in as few pieces as leave the fullest rank with the least."""
    largest = max((len(group) for group in groups), default=1)
    most_pieces = largest if data_parallel_size > 1 else 1
    splits = [
        _balanced(_in_pieces(groups, 2**power), sizes, data_parallel_size)
        for power in range((most_pieces - 1).bit_length() + 1)
    ]
    return min(splits, key=itemgetter(1))[0]


def _in_pieces(groups: Sequence[Sequence[int]], num: int) -> list[Sequence[int]]:
    """Each group cut into so many, or into its rows."""
    return [group[first::num] for group in groups for first in range(min(num, len(group)))]


def _balanced(
    pieces: Sequence[Sequence[int]], sizes: _Sizes, data_parallel_size: int
) -> tuple[list[list[int]], int]:
    """Each piece to the rank with the fewest tokens; ranks then differ by one piece at most.

    Graham's longest-processing-time rule (1969, "Bounds on multiprocessing timing anomalies").

    Returns:
        The rows of each rank, and the tokens of the fullest.
    """
    rows_by_rank: list[list[int]] = [[] for _ in range(data_parallel_size)]
    # Tokens and number of each rank: of those with equally few the first one is next.
    ranks = [(0, rank) for rank in range(data_parallel_size)]
    costs = [sizes.cost_of_piece(piece) for piece in pieces]
    for index in sorted(range(len(pieces)), key=lambda index: -costs[index]):
        tokens, rank = ranks[0]
        rows_by_rank[rank] += pieces[index]
        heapq.heapreplace(ranks, (tokens + costs[index], rank))
    return rows_by_rank, max(tokens for tokens, _ in ranks)


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


def _check_prompts(prompts_B: Sequence[PromptShare], lengths_B: Sequence[int]) -> None:
    if len(prompts_B) != len(lengths_B):
        raise ValueError(f"prompts_B must have {len(lengths_B)} entries, got {len(prompts_B)}")
    for row, (share, length) in enumerate(zip(prompts_B, lengths_B, strict=True)):
        if not 0 <= share.num_tokens <= length:
            raise ValueError(
                f"row {row}: a prompt must have 0 to {length} tokens, got {share.num_tokens}"
            )


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
