"""Log-probabilities of a step's rollouts before its update, by passes of whoever has the models.

No pass is made for what is known otherwise: `OnlineConfig.old_logprobs` and `.scored_models`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.config.algorithm_table import ScoredModel
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.roles import Policy, Reference, RolloutGroup, SampleArrays


@dataclass(frozen=True, kw_only=True)
class Logprobs:
    """What a step's rollouts got; None where nobody was asked.

    Attributes:
        old: Of the policy.
        reference: Of the reference, on ranks of its own or below the policy's adapter.
    """

    old: SampleArrays | None = None
    reference: SampleArrays | None = None


async def logprobs_of(
    groups: Sequence[RolloutGroup],
    *,
    policy: Policy,
    models: Sequence[ScoredModel],
    reference: Reference | None,
) -> Logprobs:
    """Pass groups through `models` of the policy's ranks and the reference, side by side."""

    async def by_policy() -> dict[ScoredModel, SampleArrays]:
        arrays = await policy.logprobs(groups, models) if models else []
        return dict(zip(models, arrays, strict=True))

    async def by_reference() -> SampleArrays | None:
        return None if reference is None else await reference.logprobs(groups)

    of_policy, of_reference = await side_by_side([by_policy(), by_reference()])
    return Logprobs(
        old=of_policy.get("policy"),
        reference=of_policy.get("base") if reference is None else of_reference,
    )
