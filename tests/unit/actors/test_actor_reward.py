"""The reward role: functions in a process of their own, a model on ranks, and their sum."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from actors.cluster.role_handle import RoleHandle
from actors.ranks.group import RankGroup
from actors.ranks.reward import RewardGroup
from actors.ranks.reward_worker import RewardWorker
from rlhf_ray.config.base import TimeoutConfig
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.learner.reward_scorer import ModelScore
from rlhf_ray.roles import RolloutGroup
from rlhf_ray.specs import RewardSpec
from rlhf_ray.types import Prompt, Rollout, RolloutSummary, Score

SCORERS = """
import random
def length(completions, **_):
    return [float(len(text)) for text in completions]
def drawn(completions, **_):
    return [random.random() for _ in completions]
"""
PROMPT = Prompt(prompt_id="p", token_ids_T=(1, 2), text="?")


def rollout(sample: int, text: str) -> Rollout:
    return Rollout(
        prompt=PROMPT,
        draw=4,
        sample=sample,
        response_ids_T=np.zeros(3, dtype=np.int32),
        logprobs_T=np.zeros(3, dtype=np.float32),
        versions_T=np.zeros(3, dtype=np.int32),
        action_mask_T=np.ones(3, dtype=np.bool_),
        finish_reason="stop",
        text=text,
    )


def group() -> RolloutGroup:
    summaries_G = tuple(
        RolloutSummary(
            sample=sample,
            num_prompt_tokens=2,
            num_response_tokens=3,
            num_action_tokens=3,
            finish_reason="stop",
            version_min=0,
            version_max=0,
            version_sum=0,
        )
        for sample in range(2)
    )
    rollouts = [rollout(0, "ab"), rollout(1, "abcd")]
    return RolloutGroup(prompt=PROMPT, draw=4, summaries_G=summaries_G, rollouts=rollouts)


def actor(**methods: Any) -> Any:
    """What answers at once, with Ray's `.remote`."""

    def asked(method: Any) -> Any:
        async def remote(*arguments: Any) -> Any:
            return await asyncio.get_running_loop().run_in_executor(None, method, *arguments)

        return SimpleNamespace(remote=remote)

    return SimpleNamespace(**{name: asked(method) for name, method in methods.items()})


@pytest.fixture
def config(tmp_path) -> Any:
    (tmp_path / "scorers.py").write_text(SCORERS)

    def make(*functions: str, model: Mapping[str, Any] | None = None) -> RewardConfig:
        paths = [{"path": f"{tmp_path}/scorers.py:{name}", "weight": 2.0} for name in functions]
        return RewardConfig.model_validate({"functions": paths, "model": model or {}})

    return make


@pytest.fixture
def reward(monkeypatch) -> Any:
    """`await reward(config)`: the role with its scorers loaded, on actors of this process."""
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "get", lambda refs, timeout: refs)

    async def make(config: RewardConfig) -> RewardGroup:
        process = RewardWorker.__new__(RewardWorker)
        process.fetch_timeout_s = 5.0
        worker = RoleHandle("reward_worker", {"w": actor(load=process.load, score=process.score)})
        ranks = [
            actor(score_with_model=lambda work: [ModelScore(value=1.0, is_cut=False)]),
            actor(score_with_model=lambda work: [ModelScore(value=3.0, is_cut=True)]),
        ]
        handle = RoleHandle("reward", {f"r/{n}": rank for n, rank in enumerate(ranks)})
        group = RewardGroup(
            config,
            TimeoutConfig(),
            model=RankGroup(actors=handle, timeouts=TimeoutConfig()) if config.model.path else None,
            worker=worker if config.functions else None,
        )
        await group.load(
            RewardSpec(reward=config, timeout_s=5.0, vocabulary="", end_token_ids=(0,))
        )
        return group

    return make


async def test_functions_need_no_ranks(config, reward):
    role = await reward(config("length"))
    assert await role.score([group()]) == [
        (Score(total=4.0, parts={"length": 2.0}), Score(total=8.0, parts={"length": 4.0}))
    ]
    await role.offload()


async def test_a_model_needs_no_worker(config, reward):
    role = await reward(config(model={"path": "rm"}))
    [scores_G] = await role.score([group()])
    assert sorted(score.total for score in scores_G) == [1.0, 3.0]
    assert {score.total: score.is_cut for score in scores_G} == {1.0: False, 3.0: True}


async def test_both_are_summed_by_weight(config, reward):
    role = await reward(config("length", model={"path": "rm", "weight": 10.0}))
    assert role.weights == {"length": 2.0, "model": 10.0}
    [scores_G] = await role.score([group()])
    assert {score.total - 2 * score.parts["length"] for score in scores_G} == {10.0, 30.0}


async def test_functions_that_draw_numbers_draw_the_same_for_the_same_group(config, reward):
    role = await reward(config("drawn"))
    assert await role.score([group()]) == await role.score([group()])
