"""The helper that turns a step's rollouts and scores into experience, off the controller."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.cluster.role_handle import RoleHandle
from actors.ranks.rank import Rank
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.metrics.spans import recorded
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
    ) -> tuple[Metrics, Any]:
        """Metrics for the controller and the experience itself, as two objects."""
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
        return built.metrics, built.experience_B


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
    ) -> tuple[Ref, Metrics]:
        """A reference to the step's experience, and metrics."""
        scores = {
            sample: score
            for scored in groups
            for sample, score in zip(scored.group.samples_G, scored.scores_G, strict=True)
        }
        refs = [scored.group.rollouts for scored in groups]
        build = self.actors.call_in_parts(ExperienceRank.build, timeout_s=self.timeouts.call_s)
        [(metrics, experience)] = await build(
            refs, scores, old, reference, values, kl_coefficient, self.spec
        )
        return experience, metrics
