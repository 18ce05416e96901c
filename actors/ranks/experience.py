"""The helper that turns a step's rollouts and scores into experience, off the controller."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from actors.cluster.role_handle import RoleHandle
from actors.ranks.rank import Rank
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.metrics.spans import recorded
from rlhf_ray.own_rows import dealt
from rlhf_ray.packing import UpdatePlan
from rlhf_ray.roles.groups import Ref, SampleArrays, SampleId, ScoredGroup
from rlhf_ray.roles.reports import Metrics
from rlhf_ray.types import Score

if TYPE_CHECKING:
    from rlhf_ray.specs import ExperienceSpec


class ExperienceRank(Rank):
    """One process without a GPU; it keeps nothing between calls."""

    def import_libraries(self) -> None:
        """What `build` needs, before it is called."""
        importlib.import_module("rlhf_ray.experience.build")

    @recorded
    def build(
        self,
        refs: Sequence[Ref],
        scores: dict[SampleId, Score],
        old: SampleArrays | None,
        reference: SampleArrays | None,
        values: SampleArrays | None,
        kl_coefficient: float,
        spec: ExperienceSpec,
        plans: Sequence[UpdatePlan],
    ) -> tuple[Metrics, *tuple[Any, ...]]:
        """Metrics for the controller, and for each rank of each plan what it trains on.

        Each is an object of its own: a rank fetches no other's.
        """
        from rlhf_ray.experience.build import build_experience

        rollouts, samples_B = self.fetch(refs), list(scores)
        built = build_experience(
            [rollouts[sample] for sample in samples_B],
            list(scores.values()),
            old_logprobs_B=old and self.look_up(old, samples_B),
            reference_logprobs_B=reference and self.look_up(reference, samples_B),
            values_B=values and self.look_up(values, samples_B),
            kl_coefficient=kl_coefficient,
            spec=spec,
        )
        return built.metrics, *chain.from_iterable(
            dealt(built.experience_B, plan) for plan in plans
        )


@dataclass(eq=False)
class ExperienceGroup:
    """The experience role: built in the helper actor."""

    actors: RoleHandle[ExperienceRank]
    spec: ExperienceSpec
    timeouts: TimeoutConfig

    async def build(
        self,
        groups: Sequence[ScoredGroup],
        *,
        old: SampleArrays | None,
        reference: SampleArrays | None,
        values: SampleArrays | None,
        kl_coefficient: float,
        plans: Sequence[UpdatePlan],
    ) -> tuple[list[Sequence[Ref]], Metrics]:
        """For each plan a reference to what each of its ranks trains on, and metrics."""
        scores = {
            sample: score
            for scored in groups
            for sample, score in zip(scored.group.samples_G, scored.scores_G, strict=True)
        }
        refs = [scored.group.rollouts for scored in groups]
        different = list(dict.fromkeys(plans))  # of policy and critic they are often the same
        build = self.actors.call_in_parts(
            ExperienceRank.build,
            timeout_s=self.timeouts.call_s,
            num_parts=1 + sum(plan.num_ranks for plan in different),
        )
        [(metrics, *parts)] = await build(
            refs, scores, old, reference, values, kl_coefficient, self.spec, different
        )
        left = iter(parts)
        by_plan = {plan: list(islice(left, plan.num_ranks)) for plan in different}
        return [by_plan[plan] for plan in plans], metrics
