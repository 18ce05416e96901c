"""Inference passes of a rank group over rollout groups, which stay in the object store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Concatenate, TypeVar

import numpy as np
import numpy.typing as npt

from actors.cluster.role_handle import RoleHandle, each_own, put
from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.own_rows import OwnRows
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
        lengths_B: Tokens of the rows of the plan.
        plan: Rank -> micro-batch -> row.
    """

    lengths_B: npt.NDArray[np.int32]
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
        lengths_B = [summary.num_tokens for group in groups for summary in group.summaries_G]
        return cls(
            lengths_B=np.array(lengths_B, dtype=np.int32),
            plan=plan_forward(
                lengths_B,
                data_parallel_size=data_parallel_size,
                max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
                padded=config.padded,
                prompts_B=[share for group in groups for share in group.prompts_G]
                if config.shares_prompts
                else None,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class OwnSamples:
    """What one rank works on in a pass.

    It is given no reference that it does not fetch: Ray copies what is small into each reference,
    and brings what is large to each node that asks.

    Attributes:
        samples: By their rows in the plan, in the order in which the rank works on them.
        refs: Of the rollouts of their groups.
    """

    samples: Mapping[int, SampleId]
    refs: tuple[Ref, ...]

    @classmethod
    def dealt(cls, groups: Sequence[RolloutGroup], plan: RankedMicroBatches) -> list[OwnSamples]:
        """Those of each rank, by a plan over all samples of groups."""
        samples_B = [sample for group in groups for sample in group.samples_G]
        group_B = [number for number, group in enumerate(groups) for _ in group.samples_G]
        return [
            cls(
                samples={row: samples_B[row] for row in rows},
                refs=tuple(
                    groups[number].rollouts for number in sorted({group_B[r] for r in rows})
                ),
            )
            for rows in map(rows_of, plan)
        ]

    def rows(self, rollouts: Mapping[SampleId, Rollout], work: Pass) -> OwnRows[Rollout]:
        """All rows of the plan, as this rank has them."""
        own = {row: rollouts[sample] for row, sample in self.samples.items()}
        return OwnRows(own=own, lengths_B=work.lengths_B)

    def answers(self, scored: Sequence[T]) -> dict[SampleId, T]:
        """The rank's answers about its rows, which come in their order."""
        return dict(zip(self.samples.values(), scored, strict=True))


async def forward(
    ranks: RoleHandle[A],
    method: Callable[Concatenate[A, Pass, OwnSamples, ...], tuple[int, *tuple[Any, ...]]],
    groups: Sequence[RolloutGroup],
    config: ForwardConfig,
    *arguments: Any,
    timeout_s: float,
    num_arrays: int = 1,
) -> list[SampleArrays]:
    """An inference pass over groups; each rank leaves its arrays in the object store.

    `method` takes the pass, the rank's samples, `arguments`, and gives `num_arrays` of them, each
    by sample.
    """
    work = Pass.over(groups, config, data_parallel_size=len(ranks))
    own = each_own(OwnSamples.dealt(groups, work.plan))
    async with ranks.turn(timeout_s=timeout_s):
        # How many rows there are says that the arrays are there, which stay where they are.
        passed = ranks.call_in_parts(method, timeout_s=timeout_s, num_parts=1 + num_arrays)
        answers = await passed(put(work), own, *arguments)
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
