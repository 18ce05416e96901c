"""Taking rows from batches and joining batches, by reference: the data stays where it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlhf_ray.roles import RolloutBatch, Shard
from rlhf_ray.types import RolloutSummary


def select(batch: RolloutBatch, rows: Sequence[int]) -> RolloutBatch:
    """The given rows, in the given order."""
    return RolloutBatch(
        summaries_B=tuple(batch.summaries_B[row] for row in rows),
        shards=select_shards(batch.shards, rows),
    )


def select_shards(shards: Iterable[Shard], rows: Sequence[int]) -> tuple[Shard, ...]:
    """The same of what a role said of a batch's rows."""
    new_row = {row: index for index, row in enumerate(rows)}
    return tuple(
        Shard(ref=shard.ref, rows=tuple(new_row.get(row, -1) for row in shard.rows))
        for shard in shards
    )


def join(batches: Iterable[RolloutBatch]) -> RolloutBatch:
    """All rows of all batches, one batch after the other."""
    summaries: list[RolloutSummary] = []
    shards: list[Shard] = []
    for batch in batches:
        offset = len(summaries)
        summaries += batch.summaries_B
        shards += [
            Shard(ref=s.ref, rows=tuple(row + offset if row >= 0 else -1 for row in s.rows))
            for s in batch.shards
        ]
    return RolloutBatch(summaries_B=tuple(summaries), shards=tuple(shards))
