"""Roles that stand behind the loops' Protocols in one process; a reference is the value itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.config.algorithm_table import ScoredModel
from rlhf_ray.config.online import PpoConfig
from rlhf_ray.metrics.usage import UpdateFlops, Usage, Used
from rlhf_ray.packing import UpdatePlan
from rlhf_ray.roles.groups import GenerationRequest, Ref, RolloutGroup, SampleArrays, ScoredGroup
from rlhf_ray.roles.protocols import (
    EnginePart,
    ExperienceBuilder,
    Policy,
    Reference,
    Reward,
    Roles,
    RolloutEngine,
    RolloutStore,
    SleepLevel,
    Value,
)
from rlhf_ray.roles.reports import Hardware, Metrics, Publication
from rlhf_ray.types import Prompt, Rollout, RolloutSummary, Score

COSTS = UpdateFlops(per_token=6e9, per_scored_token=2e9, per_pair={None: 3e8, 2: 1e8})
Scoring = Callable[[str, int], float | None]


def make_config(run_dir: Path, **settings: Any) -> PpoConfig:
    return PpoConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "total_steps": 3,
            "prompts_per_step": 4,
            "samples_per_prompt": 2,
            "data": {"path": "prompts.jsonl"},
            "policy": {"model": {"path": "model"}},
            "reward": {"functions": [{"path": "scorers:score"}]},
            **settings,
            # Every pass that there may be; `test_loop_logprobs` has the others.
            "algorithm": {"old_logprobs": "trainer", **settings.get("algorithm", {})},
        }
    )


def make_prompts(count: int) -> list[Prompt]:
    return [
        Prompt(prompt_id=f"p{n}", token_ids_T=(1, *range(3, 4 + n % 3)), text=f"prompt {n}")
        for n in range(count)
    ]


def make_rollout(
    prompt: Prompt, sample: int, num_tokens: int = 5, version: int = 0, *, draw: int = 0
) -> Rollout:
    return Rollout(
        prompt=prompt,
        draw=draw,
        sample=sample,
        response_ids_T=np.arange(num_tokens, dtype=np.int32),
        logprobs_T=np.full(num_tokens, -1.0, dtype=np.float32),
        versions_T=np.full(num_tokens, version, dtype=np.int32),
        action_mask_T=np.ones(num_tokens, dtype=np.bool_),
        finish_reason="stop",
        text=f"answer {sample} to {prompt.prompt_id}",
    )


def groups_of(rollouts: Sequence[Rollout]) -> list[RolloutGroup]:
    """One a draw, in the order of their first rollouts; a reference is the value itself."""
    by_draw: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        by_draw.setdefault(rollout.draw, []).append(rollout)
    return [
        RolloutGroup(
            prompt=rollouts_G[0].prompt,
            draw=draw,
            summaries_G=tuple(RolloutSummary.of(rollout) for rollout in rollouts_G),
            rollouts=rollouts_G,
        )
        for draw, rollouts_G in by_draw.items()
    ]


def resolve(groups: Sequence[RolloutGroup]) -> list[Rollout]:
    """The samples of groups in order, as the actors would look them up."""
    found = {(r.draw, r.sample): r for group in groups for r in group.rollouts or ()}
    return [found[sample] for group in groups for sample in group.samples_G]


async def answer(rollouts: Sequence[Rollout]) -> RolloutGroup:
    [group] = groups_of(rollouts)
    return group


class Company:
    """All roles of a job. `calls` holds what was asked of whom, in order.

    `skipped` is how many optimiser steps in a row each update reports as skipped, then 0.
    """

    def __init__(self, config: PpoConfig, scoring: Scoring, skipped: Sequence[float] = ()) -> None:
        self.config, self.scoring, self.skipped = config, scoring, list(skipped)
        self.calls: list[str] = []
        self.version = -1
        self.requests: list[GenerationRequest] = []
        self.num_updates = 0
        self.asleep = False

    def roles(self, *, value: bool = True, reference: bool = True) -> Roles:
        return Roles(
            rollout=self, policy=self, reward=self, experience=self, store=self,
            reference=FakeReference(self) if reference else None,
            value=FakeValue(self) if value else None,
        )  # fmt: skip

    def said(self, call: str) -> None:
        self.calls.append(call)

    async def generate(
        self, requests: Sequence[GenerationRequest], *, together: bool = True
    ) -> list[Awaitable[RolloutGroup]]:
        self.said(f"rollout.generate@{self.version}")
        self.asleep = False
        self.requests += requests
        return [answer(self.sampled(request)) for request in requests]

    def sampled(self, request: GenerationRequest) -> list[Rollout]:
        return [
            make_rollout(request.prompt, sample, 3 + seed % 4, self.version, draw=request.draw)
            for sample, seed in enumerate(request.seeds_G)
        ]

    async def joining(self) -> None:
        await asyncio.Event().wait()

    async def sleep(self, level: SleepLevel) -> None:
        self.said(f"rollout.sleep@{level}")
        self.asleep = True

    async def wake_up(self, part: EnginePart | None = None) -> None:
        self.said(f"rollout.wake_up({part})")
        self.asleep = False

    async def offload(self) -> None:
        pass

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
        self.said("reward.score")
        return tuple(
            Score(total=self.scoring(group.prompt.prompt_id, s.sample), parts={})
            for s in group.summaries_G
        )

    async def hardware(self) -> Hardware:
        return Hardware(flops=COSTS, device_name="cpu", num_devices=1)

    async def logprobs(
        self, groups: Sequence[RolloutGroup], models: Sequence[ScoredModel]
    ) -> Sequence[SampleArrays]:
        self.said("policy.logprobs")
        self.models = list(models)
        return [[f"by {model}"] for model in models]

    async def build(
        self,
        groups: Sequence[ScoredGroup],
        *,
        old: SampleArrays | None,
        reference: SampleArrays | None,
        values: SampleArrays | None,
        kl_coefficient: float,
        plans: Sequence[UpdatePlan],
    ) -> tuple[Sequence[Ref], Metrics]:
        self.said("experience.build")
        self.old, self.reference = old, reference
        rollouts = resolve([scored.group for scored in groups])
        assert len(rollouts) == sum(len(scored.scores_G) for scored in groups)
        self.num_built = sum(self.config.algorithm.trains(r.finish_reason) for r in rollouts)
        return ["experience"] * len(plans), {} if old is None else {"policy/kl_ref": 0.2}

    def put(self, rollouts: Sequence[Rollout]) -> Ref:
        return list(rollouts)

    async def fetch(self, groups: Sequence[RolloutGroup]) -> list[list[Rollout]]:
        return [resolve([group]) for group in groups]

    async def update(self, experience: Ref, plan: UpdatePlan, kl_coefficient: float) -> Metrics:
        self.said("policy.update")
        rows = sorted(
            row
            for minibatch in plan.minibatches
            for micro_batches in minibatch.micro_batches_by_rank
            for micro_batch in micro_batches
            for row in micro_batch
        )
        assert rows == sorted([*range(self.num_built)] * self.config.algorithm.epochs)
        self.num_updates += 1
        skipped = self.skipped.pop(0) if self.skipped else 0.0
        return {"loss": 0.5, "skipped_in_a_row": skipped, "lr": kl_coefficient}

    async def publish(self, version: int, *, exactly: bool = False) -> None:
        assert not self.asleep, "an engine that sleeps takes no weights"
        self.said(f"policy.publish@{version}")
        self.version = version

    async def compare(self) -> Publication:
        self.said("policy.compare")
        return Publication(
            version=self.version,
            seconds=0.1,
            num_bytes=10,
            logprob_abs_max=1e-6,
            logprob_abs_p99=1e-6,
            logprob_abs_mean=1e-7,
        )

    async def save(self, folder: str) -> None:
        self.said("policy.save")
        Path(folder).mkdir(parents=True)
        (Path(folder) / "weights").write_text(str(self.num_updates))

    async def restore(self, folder: str) -> None:
        self.said("policy.restore")
        self.num_updates = int((Path(folder) / "weights").read_text())


class CountedUsage:
    """Of the first call 1, of the second 2, ..."""

    def __init__(self) -> None:
        self.num_calls = 0

    async def __call__(self) -> Used:
        self.num_calls += 1
        return Used(metrics={"wait/policy": float(self.num_calls)})


class FakeReference:
    def __init__(self, company: Company) -> None:
        self.company = company

    async def logprobs(self, groups: Sequence[RolloutGroup]) -> SampleArrays:
        self.company.said("reference.logprobs")
        return []

    async def offload(self) -> None:
        pass


class FakeValue:
    def __init__(self, company: Company) -> None:
        self.company = company

    async def values(self, groups: Sequence[RolloutGroup]) -> SampleArrays:
        self.company.said("value.values")
        return []

    async def update(self, experience: Ref, plan: UpdatePlan) -> Metrics:
        self.company.said("value.update")
        await asyncio.sleep(0)
        return {"loss": 0.1, "skipped_in_a_row": 0.0}

    async def offload(self) -> None:
        pass

    async def save(self, folder: str) -> None:
        self.company.said("value.save")
        Path(folder).mkdir(parents=True)
        (Path(folder) / "weights").write_text("v")

    async def restore(self, folder: str) -> None:
        self.company.said("value.restore")


def _(fake: Company) -> RolloutEngine:
    return fake


def _(fake: Company) -> Policy:
    return fake


def _(fake: Company) -> Reward:
    return fake


def _(fake: Company) -> ExperienceBuilder:
    return fake


def _(fake: Company) -> RolloutStore:
    return fake


def _(fake: FakeReference) -> Reference:
    return fake


def _(fake: FakeValue) -> Value:
    return fake


def _(fake: CountedUsage) -> Usage:
    return fake
