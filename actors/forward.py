"""Inference passes of a rank group: rows stay in the object store."""

from __future__ import annotations

from actors.actor_set import ActorSet
from rlhf_ray.config.base import ForwardConfig
from rlhf_ray.data.packing import plan_forward
from rlhf_ray.roles import RolloutBatch, Shard


async def forward(
    actors: ActorSet,
    method: str,
    batch: RolloutBatch,
    config: ForwardConfig,
    *,
    timeout_s: float,
) -> list[Shard]:
    """An inference pass over a batch; each rank leaves its rows in the object store."""
    lengths = [s.num_prompt_tokens + s.num_response_tokens for s in batch.summaries_B]
    plan = plan_forward(
        lengths,
        num_ranks=len(actors),
        max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
        padded=config.padded,
    )
    # Two objects a call: the first says that the second is there, which stays where it is.
    calls = [
        getattr(actor, method).options(num_returns=2).remote(batch, plan) for actor in actors.actors
    ]
    await actors.answers([done for done, _ in calls], method, timeout_s=timeout_s)
    return [
        Shard(ref=ref, rows=tuple(row for rows in ranks for row in rows))
        for (_, ref), ranks in zip(calls, plan, strict=True)
    ]
