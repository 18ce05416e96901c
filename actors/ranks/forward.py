"""Inference passes of a rank group over rollout groups, which stay in the object store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Concatenate, TypeVar

from actors.cluster.role_handle import RoleHandle, put
from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.packing import RankedMicroBatches, plan_forward
from rlhf_ray.roles.groups import Ref, RolloutGroup, SampleArrays, SampleId
from rlhf_ray.shared_prompts import planned_tokens
from rlhf_ray.types import Rollout

A = TypeVar("A")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass over B samples, as every rank of a group gets it.

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
        config: ForwardConfig,
        *,
        data_parallel_size: int,
    ) -> Pass:
        """A pass over all samples of groups, by their lengths."""
        summaries_B = [summary for group in groups for summary in group.summaries_G]
        return cls(
            refs=tuple(group.rollouts for group in groups),
            samples_B=tuple(sample for group in groups for sample in group.samples_G),
            plan=plan_forward(
                [summary.num_tokens for summary in summaries_B],
                data_parallel_size=data_parallel_size,
                max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
                padded=config.padded,
                prompts_B=[share for group in groups for share in group.prompts_G]
                if config.shares_prompts
                else None,
            ),
        )

    def rows(self, rollouts: Mapping[SampleId, Rollout]) -> list[Rollout]:
        """All rows of the plan."""
        return [rollouts[sample] for sample in self.samples_B]

    def by_sample(self, rank: int, scored: Sequence[T]) -> dict[SampleId, T]:
        """A rank's answers about its rows, in the order in which the plan names them."""
        samples = [self.samples_B[row] for row in rows_of(self.plan[rank])]
        return dict(zip(samples, scored, strict=True))


async def forward(
    ranks: RoleHandle[A],
    method: Callable[Concatenate[A, Pass, ...], tuple[int, *tuple[Any, ...]]],
    groups: Sequence[RolloutGroup],
    config: ForwardConfig,
    *arguments: Any,
    timeout_s: float,
    num_arrays: int = 1,
) -> list[SampleArrays]:
    """An inference pass over groups; each rank leaves its arrays in the object store.

    `method` takes the pass, `arguments`, and gives `num_arrays` of them, each by sample.
    """
    work = Pass.over(groups, config, data_parallel_size=len(ranks))
    async with ranks.turn(timeout_s=timeout_s):
        # How many rows there are says that the arrays are there, which stay where they are.
        passed = ranks.call_in_parts(method, timeout_s=timeout_s, num_parts=1 + num_arrays)
        answers = await passed(put(work), *arguments)
    return [[arrays[index] for _, *arrays in answers] for index in range(num_arrays)]


async def over_rows(
    ranks: RoleHandle[A],
    method: Callable[[A, Sequence[Any], RankedMicroBatches], T],
    rows: Sequence[Any],
    config: ForwardConfig,
    *,
    timeout_s: float,
) -> tuple[RankedMicroBatches, list[T]]:
    """An inference pass over rows of a data set: its plan, and each rank's answer."""
    plan = plan_forward(
        planned_tokens(rows, shares_prompts=config.shares_prompts),
        data_parallel_size=len(ranks),
        max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
        padded=config.padded,
    )
    async with ranks.turn(timeout_s=timeout_s):
        answers = await ranks.call(method, timeout_s=timeout_s)(put(list(rows)), put(plan))
    return plan, answers


def rows_of(micro_batches: Iterable[Sequence[int]]) -> list[int]:
    """The rows of a rank in the order in which it works on them."""
    return list(chain.from_iterable(micro_batches))


def by_row(plan: RankedMicroBatches, answers: Sequence[Sequence[Any]]) -> list[Any]:
    """Each rank's answers about its rows, in the order of all rows."""
    of_row: dict[int, Any] = {}
    for micro_batches, of_rank in zip(plan, answers, strict=True):
        of_row.update(zip(rows_of(micro_batches), of_rank, strict=True))
    return [of_row[row] for row in range(len(of_row))]
