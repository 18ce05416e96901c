"""Inference passes of a rank group: rows stay in the object store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, TypeVar

from actors.cluster.role import RoleHandle
from rlhf_ray.config.base import ForwardConfig
from rlhf_ray.packing import RankedMicroBatches, plan_forward
from rlhf_ray.roles import RolloutBatch, Shard

T = TypeVar("T")


async def forward(
    actors: RoleHandle[Any],
    method: str,
    batch: RolloutBatch,
    config: ForwardConfig,
    *,
    timeout_s: float,
) -> list[Shard]:
    """An inference pass over a batch; each rank leaves its rows in the object store."""
    plan = plan_forward(
        lengths_of(batch),
        num_ranks=len(actors),
        max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
        padded=config.padded,
    )
    async with actors.turn(timeout_s=timeout_s):
        # Two objects a call: the first says that the second is there, which stays where it is.
        calls = [
            getattr(actor, method).options(num_returns=2).remote(batch, plan)
            for actor in actors.actors
        ]
        await actors.answers([done for done, _ in calls], method, timeout_s=timeout_s)
    return [
        Shard(ref=ref, rows=tuple(rows_of(micro_batches)))
        for (_, ref), micro_batches in zip(calls, plan, strict=True)
    ]


def lengths_of(batch: RolloutBatch) -> list[int]:
    """Prompt and response tokens of each row."""
    return [s.num_prompt_tokens + s.num_response_tokens for s in batch.summaries_B]


def rows_of(micro_batches: Iterable[Sequence[int]]) -> list[int]:
    """The rows of a rank in the order in which it works on them."""
    return list(chain.from_iterable(micro_batches))


def by_row(plan: RankedMicroBatches, answers: Sequence[Sequence[T]]) -> list[T]:
    """What each rank said of its rows, in the order of all rows."""
    of_row: dict[int, T] = {}
    for micro_batches, of_rank in zip(plan, answers, strict=True):
        of_row.update(zip(rows_of(micro_batches), of_rank, strict=True))
    return [of_row[row] for row in range(len(of_row))]
