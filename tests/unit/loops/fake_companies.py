"""Companies some of whose roles do more, or worse, than those of most tests."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any

from fakes import Company, Scoring, resolve

from rlhf_ray.config.algorithm_table import ScoredModel
from rlhf_ray.config.online import PpoConfig
from rlhf_ray.packing import UpdatePlan
from rlhf_ray.roles.groups import GenerationRequest, Ref, RolloutGroup, SampleArrays, ScoredGroup
from rlhf_ray.roles.reports import Metrics
from rlhf_ray.types import Rollout


class ReadableCompany(Company):
    """Passes hand back the rows themselves, so that the builder sees what it is given."""

    async def logprobs(
        self, groups: Sequence[RolloutGroup], models: Sequence[ScoredModel]
    ) -> Sequence[SampleArrays]:
        return [[{(r.draw, r.sample): r for r in resolve(groups)}] for _ in models]

    async def build(
        self, groups: Sequence[ScoredGroup], *, old: SampleArrays | None, **others: Any
    ) -> tuple[Sequence[Ref], Metrics]:
        rollouts = resolve([scored.group for scored in groups])
        assert old is not None
        assert [old[0][r.draw, r.sample] for r in rollouts] == rollouts
        self.built = [(r.prompt.prompt_id, r.sample) for r in rollouts]
        scores = [score.total for scored in groups for score in scored.scores_G]
        assert scores == [self.scoring(*row) for row in self.built]
        return await super().build(groups, old=old, **others)


class CutCompany(Company):
    """Every other of its rollouts is cut off, in some steps all; it keeps the updates' plans."""

    def __init__(
        self, config: PpoConfig, scoring: Scoring, *, all_in_steps: Sequence[int] = ()
    ) -> None:
        super().__init__(config, scoring)
        self.all_in_steps = all_in_steps
        self.plans: list[UpdatePlan] = []
        self.lens: list[int] = []

    async def generate(
        self, requests: Sequence[GenerationRequest], *, together: bool = True
    ) -> list[Awaitable[RolloutGroup]]:
        self.lens = []
        return await super().generate(requests, together=together)

    def sampled(self, request: GenerationRequest) -> list[Rollout]:
        rollouts = super().sampled(request)
        self.lens += [len(rollout.response_ids_T) for rollout in rollouts]
        cuts_all = self.version + 1 in self.all_in_steps
        return [
            replace(rollout, finish_reason="length" if rollout.sample % 2 or cuts_all else "stop")
            for rollout in rollouts
        ]

    async def update(self, experience: Ref, plan: UpdatePlan, kl_coefficient: float) -> Metrics:
        self.plans.append(plan)
        return await super().update(experience, plan, kl_coefficient)


class HurriedCompany(Company):
    """Its second answers are cut off."""

    async def fetch(self, groups: Sequence[RolloutGroup]) -> list[list[Rollout]]:
        return [
            [replace(r, finish_reason="length") if r.sample else r for r in rollouts_G]
            for rollouts_G in await super().fetch(groups)
        ]


class HashedCompany(Company):
    """Its weights are a hash of all that it was trained on; groups are done in any order."""

    weights = ""

    def __init__(
        self, config: PpoConfig, scoring: Scoring, *, delays: random.Random | None = None
    ) -> None:
        super().__init__(config, scoring)
        self.delays = delays

    async def generate(
        self, requests: Sequence[GenerationRequest], *, together: bool = True
    ) -> list[Awaitable[RolloutGroup]]:
        return [self.late(answer) for answer in await super().generate(requests, together=together)]

    async def late(self, answer: Awaitable[RolloutGroup]) -> RolloutGroup:
        group = await answer
        if self.delays is not None:
            await asyncio.sleep(self.delays.random() / 1000)
        return group

    async def build(
        self, groups: Sequence[ScoredGroup], **others: Any
    ) -> tuple[Sequence[Ref], Metrics]:
        await super().build(groups, **others)
        rows = [
            (sample, score.total)
            for scored in groups
            for sample, score in zip(scored.group.samples_G, scored.scores_G, strict=True)
        ]
        return [repr((rows, others["kl_coefficient"]))] * len(others["plans"]), {}

    async def update(self, experience: Ref, plan: UpdatePlan, kl_coefficient: float) -> Metrics:
        self.said("policy.update")
        told = f"{self.weights}{self.version}{experience}{kl_coefficient}"
        self.weights = hashlib.sha256(told.encode()).hexdigest()
        return {}
