"""Inference passes of a rank group over rollout groups, which stay in the object store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import ray

from actors.cluster.actor_set import ActorSet
from rlhf_ray.config.base import ForwardConfig
from rlhf_ray.packing import RankedMicroBatches, plan_forward
from rlhf_ray.roles import Ref, RolloutGroup, SampleArrays, SampleId
from rlhf_ray.types import Rollout

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass over B samples, as every rank of a group is told of it.

    Attributes:
        refs: Of the groups' rollouts.
        samples_B: The rows of the plan.
        plan: Rank -> micro-batch -> row.
    """

    refs: tuple[Ref, ...]
    samples_B: tuple[SampleId, ...]
    plan: RankedMicroBatches

    @classmethod
    def over(
        cls,
        groups: Sequence[RolloutGroup],
        *,
        num_ranks: int,
        max_tokens_per_micro_batch: int,
        padded: bool,
    ) -> Pass:
        """A pass over all samples of groups, by their lengths."""
        summaries_B = [summary for group in groups for summary in group.summaries_G]
        return cls(
            refs=tuple(group.rollouts for group in groups),
            samples_B=tuple(sample for group in groups for sample in group.samples_G),
            plan=plan_forward(
                [summary.num_tokens for summary in summaries_B],
                num_ranks=num_ranks,
                max_tokens_per_micro_batch=max_tokens_per_micro_batch,
                padded=padded,
            ),
        )

    def rows(self, rollouts: Mapping[SampleId, Rollout]) -> list[Rollout]:
        """All rows of the plan."""
        return [rollouts[sample] for sample in self.samples_B]

    def by_sample(self, rank: int, scored: Sequence[T]) -> dict[SampleId, T]:
        """What a rank says of its rows, in the order in which the plan names them."""
        samples = [self.samples_B[row] for row in rows_of(self.plan[rank])]
        return dict(zip(samples, scored, strict=True))


async def forward(
    actors: ActorSet,
    method: str,
    groups: Sequence[RolloutGroup],
    config: ForwardConfig,
    *,
    timeout_s: float,
) -> SampleArrays:
    """An inference pass over groups; each rank leaves what it says in the object store."""
    told = Pass.over(
        groups,
        num_ranks=len(actors),
        max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
        padded=config.padded,
    )
    async with actors.turn(timeout_s=timeout_s):
        ref = ray.put(told)
        # Two objects a call: the first says that the second is there, which stays where it is.
        calls = [
            getattr(actor, method).options(num_returns=2).remote(ref) for actor in actors.actors
        ]
        await actors.answers([done for done, _ in calls], method, timeout_s=timeout_s)
    return [said for _, said in calls]


def rows_of(micro_batches: Iterable[Sequence[int]]) -> list[int]:
    """The rows of a rank in the order in which it works on them."""
    return list(chain.from_iterable(micro_batches))


def by_row(plan: RankedMicroBatches, answers: Sequence[Sequence[Any]]) -> list[Any]:
    """What each rank said of its rows, in the order of all rows."""
    of_row: dict[int, Any] = {}
    for micro_batches, of_rank in zip(plan, answers, strict=True):
        of_row.update(zip(rows_of(micro_batches), of_rank, strict=True))
    return [of_row[row] for row in range(len(of_row))]
