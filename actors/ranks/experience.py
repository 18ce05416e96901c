"""The helper that turns a step's rollouts and scores into experience, off the controller."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actors.cluster.role import RoleHandle
from actors.ranks.rank import Rank, collect
from rlhf_ray.config.base import TimeoutConfig
from rlhf_ray.roles import Metrics, Ref, RolloutBatch, Shard

if TYPE_CHECKING:
    from rlhf_ray.specs import AssemblySpec
    from rlhf_ray.types import Rollout, Score


class ExperienceBuilder(Rank):
    """One process without a GPU; it keeps nothing between calls."""

    def import_libraries(self) -> None:
        """What `build` needs, before it is called."""
        importlib.import_module("rlhf_ray.loops.assembly")

    def build(
        self,
        batch: RolloutBatch,
        scores_B: Sequence[Score],
        old: Sequence[Shard],
        reference: Sequence[Shard] | None,
        values: Sequence[Shard] | None,
        kl_coefficient: float,
        spec: AssemblySpec,
    ) -> tuple[Metrics, Any]:
        """Metrics for the controller and the experience itself, as two objects."""
        from rlhf_ray.loops.assembly import assemble

        num_rows = len(batch.summaries_B)

        def arrays(shards: Sequence[Shard] | None) -> Any:
            return None if shards is None else collect(shards, num_rows, self.fetch_timeout_s)

        assembly = assemble(
            self.rows(batch),
            scores_B,
            old_logprobs_B=arrays(old),
            reference_logprobs_B=arrays(reference),
            values_B=arrays(values),
            kl_coefficient=kl_coefficient,
            spec=spec,
        )
        return assembly.metrics, assembly.experience_B

    def pick(self, batch: RolloutBatch, rows: Sequence[int]) -> list[Rollout]:
        """Some rows of a batch."""
        rollouts = self.rows(batch)
        return [rollouts[row] for row in rows]


class Assembler:
    """Builds experience in the helper actor."""

    def __init__(
        self, actors: RoleHandle[Any], spec: AssemblySpec, timeouts: TimeoutConfig
    ) -> None:
        """Wrap the started helper."""
        self.actors, self.spec, self.timeouts = actors, spec, timeouts

    async def build(
        self,
        batch: RolloutBatch,
        scores_B: Sequence[Score],
        *,
        old: Sequence[Shard],
        reference: Sequence[Shard] | None,
        values: Sequence[Shard] | None,
        kl_coefficient: float,
    ) -> tuple[Ref, Metrics]:
        """A reference to the step's experience, and metrics."""
        builder = self.actors.actors[0].build.options(num_returns=2)
        metrics, experience = builder.remote(
            batch, scores_B, old, reference, values, kl_coefficient, self.spec
        )
        [values_of] = await self.actors.answers([metrics], "build", timeout_s=self.timeouts.call_s)
        return experience, values_of

    async def texts(self, batch: RolloutBatch, rows: Sequence[int]) -> list[Rollout]:
        """A few rollouts in full, to be shown."""
        rollouts: list[Rollout] = await self.actors.call_one(
            0, "pick", batch, rows, timeout_s=self.timeouts.call_s
        )
        return rollouts
