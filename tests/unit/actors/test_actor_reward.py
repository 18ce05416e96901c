"""The reward role: functions in a process of their own, a model on ranks, and their sum."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from actors.cluster.role_handle import RoleHandle
from actors.ranks.group import RankGroup
from actors.ranks.reward import RewardGroup
from actors.ranks.reward_worker import SIDE_BY_SIDE, RewardWorker
from actors.ranks.reward_workers import RewardWorkers
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.rewards import JudgeConfig, RewardConfig
from rlhf_ray.errors import ActorDied, GroupFailed, RunError
from rlhf_ray.learner.reward_scorer import ModelScore
from rlhf_ray.roles.groups import RolloutGroup
from rlhf_ray.specs import RewardSpec
from rlhf_ray.types import Prompt, Rollout, RolloutSummary, Score

SCORERS = """
import asyncio
import random
import threading
import time

import numpy as np
import torch

seen, inside, most_inside, lock = [], 0, 0, threading.Lock()

def begins(sleep_s):
    global inside, most_inside
    with lock:
        inside += 1
        most_inside = max(most_inside, inside)
    time.sleep(sleep_s)
    with lock:
        inside -= 1

def length(completions, **_):
    return [float(len(text)) for text in completions]

def drawn(completions, number, **_):
    random.random()
    time.sleep(0.002 * (number[0] % 3))
    return [random.random() + np.random.rand() + torch.rand(()).item() for _ in completions]

drawn_again = drawn

def plain(completions, number, sleep_s=0.01, fails_at=None, **_):
    seen.append(number[0])
    begins(sleep_s)
    if number[0] == fails_at:
        raise KeyError("label")
    return [float(number[0])] * len(completions)

async def waits(completions, number, sleep_s=0.05, **_):
    seen.append(number[0])
    begins(sleep_s)
    return [float(number[0])] * len(completions)

def loaded(completions, **_):
    return [float(most_inside)] * len(completions)
"""
PATIENT = TimeoutConfig()


def rollout(draw: int, sample: int, text: str, version: int) -> Rollout:
    return Rollout(
        prompt=prompt(draw),
        draw=draw,
        sample=sample,
        response_ids_T=np.zeros(3, dtype=np.int32),
        logprobs_T=np.zeros(3, dtype=np.float32),
        versions_T=np.full(3, version, dtype=np.int32),
        action_mask_T=np.ones(3, dtype=np.bool_),
        finish_reason="stop",
        text=text,
    )


def prompt(draw: int) -> Prompt:
    return Prompt(prompt_id=f"p{draw}", token_ids_T=(1, 2), text="?", columns={"number": draw})


def group(draw: int = 4, *, version: int = 0) -> RolloutGroup:
    rollouts = [rollout(draw, 0, "ab", version), rollout(draw, 1, "abcd", version)]
    summaries_G = tuple(map(RolloutSummary.of, rollouts))
    return RolloutGroup(prompt=prompt(draw), draw=draw, summaries_G=summaries_G, rollouts=rollouts)


def actor(**methods: Any) -> Any:
    """What answers each call in a thread, with Ray's `.remote`."""

    def asked(method: Any) -> Any:
        async def remote(*arguments: Any) -> Any:
            return await asyncio.to_thread(method, *arguments)

        return SimpleNamespace(remote=remote)

    return SimpleNamespace(**{name: asked(method) for name, method in methods.items()})


class ScoringRank:
    """A rank whose passes take a while; it scores a sample by its draw and number.

    Attributes:
        draws: Of the groups it was asked about, in order.
        fails_at: A draw at which it raises.
    """

    def __init__(self, pass_s: float = 0.0) -> None:
        self.pass_s, self.fails_at, self.draws = pass_s, -1, list[int]()
        self.most_at_a_time = self.num_at_a_time = 0

    def score_with_model(self, refs: Any, samples_G: Any) -> list[ModelScore]:
        self.num_at_a_time += 1
        self.most_at_a_time = max(self.most_at_a_time, self.num_at_a_time)
        self.draws.append(samples_G[0][0])
        time.sleep(self.pass_s)
        self.num_at_a_time -= 1
        if self.fails_at in self.draws:
            raise ValueError("no such model")
        return [
            ModelScore(value=10.0 * draw + sample, is_cut=bool(sample))
            for draw, sample in samples_G
        ]


def replaced(workers: RoleHandle[Any]) -> Callable[[ActorDied], Any]:
    """A restart in which the same process stands for the new one."""

    async def restart(died: ActorDied) -> None:
        names = workers.names
        workers.give_way_to(
            workers.successor(
                {names[died.index]: SimpleNamespace(**vars(workers.actors[died.index]))}
            )
        )

    return restart


@pytest.fixture
def config(tmp_path) -> Any:
    (tmp_path / "scorers.py").write_text(SCORERS)

    def make(
        *names: str, model: Mapping[str, Any] | None = None, weight: float = 2.0, **arguments: Any
    ) -> RewardConfig:
        functions = [
            {"path": f"{tmp_path}/scorers.py:{name}", "weight": weight, "arguments": arguments}
            for name in names
        ]
        return RewardConfig.model_validate({"functions": functions, "model": model or {}})

    return make


Make = Callable[..., Any]


@pytest.fixture
def reward(monkeypatch) -> Make:
    """`await reward(config)`: the role with its scorers loaded, on actors of this process."""
    monkeypatch.setattr(ray, "get", lambda refs, timeout: refs)

    async def make(
        config: RewardConfig,
        *,
        ranks: tuple[ScoringRank, ...] = (ScoringRank(), ScoringRank()),
        timeouts: TimeoutConfig = PATIENT,
        reward_s: float = 5.0,
    ) -> RewardGroup:
        process = make.process = RewardWorker.__new__(RewardWorker)
        process.fetch_timeout_s = 5.0
        worker = RoleHandle("reward_worker", {"w": actor(load=process.load, score=process.score)})
        handle: RoleHandle[Any] = RoleHandle(
            "reward",
            {f"r/{n}": actor(score_with_model=r.score_with_model) for n, r in enumerate(ranks)},
        )
        spec = RewardSpec(
            reward=config, timeout_s=reward_s, vocabulary="", end_token_ids=(0,), seed=7
        )
        [functions] = await worker.call(RewardWorker.load, timeout_s=60.0)(spec)
        asked = RewardWorkers(
            worker, functions, reward=config, timeouts=timeouts, restart=replaced(worker)
        )
        return RewardGroup(
            config,
            timeouts,
            model=RankGroup(actors=handle, timeouts=timeouts) if config.model.path else None,
            workers=asked if config.functions else None,
        )

    return make


async def score_all(role: RewardGroup, draws: range) -> list[tuple[Score, ...]]:
    return await asyncio.gather(*(role.score(group(draw)) for draw in draws))


async def test_functions_need_no_ranks(config, reward):
    role = await reward(config("length"))
    assert await role.score(group()) == (
        Score(total=4.0, parts={"length": 2.0}), Score(total=8.0, parts={"length": 4.0})
    )  # fmt: skip
    await role.offload()


async def test_what_an_environment_gave_is_one_reward_more(config, reward):
    role = await reward(config("length"))
    alone = group()
    summaries_G = tuple(
        dataclasses.replace(summary, num_turns=2, environment_reward=0.5 * summary.sample)
        for summary in alone.summaries_G
    )
    acted = dataclasses.replace(alone, summaries_G=summaries_G)
    assert await role.score(acted) == (
        Score(total=4.0, parts={"length": 2.0, "environment": 0.0}),
        Score(total=8.5, parts={"length": 4.0, "environment": 0.5}),
    )


async def test_an_environment_that_gave_no_reward_has_no_part_in_the_score(config, reward):
    scored, alone = await reward(config("length")), await reward(config())
    by_length = group()
    summaries_G = tuple(
        dataclasses.replace(RolloutSummary.of(rollout), num_turns=2)
        for rollout in by_length.rollouts
    )
    acted = dataclasses.replace(by_length, summaries_G=summaries_G)
    assert await scored.score(acted) == (
        Score(total=4.0, parts={"length": 2.0, "environment": None}),
        Score(total=8.0, parts={"length": 4.0, "environment": None}),
    )
    untrained = Score(total=None, parts={"environment": None})
    assert await alone.score(acted) == (untrained, untrained)


async def test_a_model_needs_no_worker(config, reward):
    role = await reward(config(model={"path": "rm"}))
    scores_G = await role.score(group(1))
    assert [(score.total, score.is_cut) for score in scores_G] == [(10.0, False), (11.0, True)]


async def test_both_are_summed_by_weight_in_the_order_of_the_configuration(config, reward):
    """Async functions are asked apart from plain ones, and the sum does not show it."""
    role = await reward(config("waits", "length", model={"path": "rm", "weight": 10.0}, sleep_s=0))
    assert role.weights == {"waits": 2.0, "length": 2.0, "model": 10.0}
    scores_G = await role.score(group(1))
    assert [score.parts for score in scores_G] == [
        {"waits": 1.0, "length": 2.0, "model": 10.0}, {"waits": 1.0, "length": 4.0, "model": 11.0}
    ]  # fmt: skip
    assert [list(score.parts) for score in scores_G] == [["waits", "length", "model"]] * 2
    assert [score.total for score in scores_G] == [106.0, 120.0]


async def test_a_rank_scores_one_group_at_a_time_and_all_of_it(config, reward):
    ranks = tuple(ScoringRank(pass_s=0.02) for _ in range(3))
    role = await reward(config(model={"path": "rm"}), ranks=ranks)
    scores = await score_all(role, range(12))
    assert [[score.total for score in scores_G] for scores_G in scores] == [
        [10.0 * draw, 10.0 * draw + 1] for draw in range(12)
    ]
    assert [rank.most_at_a_time for rank in ranks] == [1] * 3
    assert sorted(draw for rank in ranks for draw in rank.draws) == [*range(12)]
    # Whoever came first is served first.
    assert all(rank.draws == sorted(rank.draws) for rank in ranks)
    assert sorted(rank.draws[0] for rank in ranks) == [0, 1, 2]


async def test_a_groups_deadline_begins_when_a_rank_has_it(config, reward, monkeypatch):
    killed = []
    monkeypatch.setattr(ray, "kill", killed.append)
    patient = TimeoutConfig(call_s=2.0)
    rank = ScoringRank(pass_s=0.4)
    role = await reward(config(model={"path": "rm"}), ranks=(rank,), timeouts=patient)
    await score_all(role, range(6))  # longer than one may take
    rank.pass_s = 4.0
    with pytest.raises(ActorDied, match=r"reward.score_with_model: .* r/0 .*deadline 2 s"):
        await role.score(group(9))
    assert len(killed) == 1


async def test_a_group_that_fails_takes_no_other_with_it(config, reward):
    rank = ScoringRank()
    role = await reward(config("plain", model={"path": "rm"}, fails_at=2), ranks=(rank,))
    asked = [role.score(group(draw)) for draw in range(5)]
    scores = await asyncio.gather(*asked, return_exceptions=True)
    failed = scores.pop(2)
    assert isinstance(failed, GroupFailed) and failed.cause == "raised"
    assert "reward function 'plain' raised KeyError: 'label' (draw 2, prompt 'p2')" in str(failed)
    assert [scores_G[0].parts["plain"] for scores_G in scores] == [0.0, 1.0, 3.0, 4.0]
    rank.fails_at = 9
    with pytest.raises(RunError, match="no such model"):
        await role.score(group(9))
    rank.fails_at = -1
    assert len(await role.score(group(9))) == 2, "the rank is free again"


async def test_plain_functions_score_one_group_after_the_other_in_order(config, reward):
    role = await reward(config("plain", "loaded"))
    scores = await score_all(role, range(8))
    assert [scores_G[0].parts for scores_G in scores] == [
        {"plain": float(draw), "loaded": 1.0} for draw in range(8)
    ]
    module = reward.process.scorers.functions["plain"].function.__globals__
    assert module["seen"] == [*range(8)]
    role = await reward(config("plain", sleep_s=0.4), reward_s=2.0)
    await score_all(role, range(6))  # longer than one may take


async def test_a_plain_function_that_does_not_return_has_its_worker_replaced(
    config, reward, monkeypatch
):
    killed = []
    monkeypatch.setattr(ray, "kill", killed.append)
    role = await reward(config("plain", sleep_s=1), reward_s=0.1)
    handle = role.workers.workers
    [before] = handle.actors
    message = r"w: .*'plain' did not return within 0\.1 s for 2 completions \(draw 4, prompt 'p4'"
    with pytest.raises(GroupFailed, match=message) as caught:
        await role.score(group())
    assert caught.value.cause == "hung"
    assert killed == [before]
    assert handle.actors[0] is not before


async def test_async_functions_score_several_groups_side_by_side(config, reward):
    role = await reward(config("waits"))
    scores = await score_all(role, range(32))
    module = reward.process.scorers.functions["waits"].function.__globals__
    assert 1 < module["most_inside"] <= SIDE_BY_SIDE
    assert [scores_G[0].parts["waits"] for scores_G in scores] == [float(n) for n in range(32)]


async def test_no_more_than_a_few_groups_are_scored_side_by_side(config, reward, monkeypatch):
    monkeypatch.setattr("actors.ranks.reward_workers.SIDE_BY_SIDE", 3)
    role = await reward(config("waits", sleep_s=0.02))
    await score_all(role, range(10))
    module = reward.process.scorers.functions["waits"].function.__globals__
    assert module["most_inside"] == 3
    assert sorted(module["seen"]) == [*range(10)]


async def test_functions_that_draw_numbers_draw_the_same_for_the_same_group(config, reward):
    role = await reward(config("drawn", "drawn_again"))
    draws = range(12)
    together = await score_all(role, draws)
    alone = [await role.score(group(draw, version=3)) for draw in reversed(draws)]
    assert together == alone[::-1], "in any order, beside whatever, by whatever weights"
    values = [v for scores_G in together for score in scores_G for v in score.parts.values()]
    assert len(set(values)) == len(values) == 48, "each group and each function has its own"
    again = await reward(config("drawn", "drawn_again"))
    assert await score_all(again, draws) == together
    held_out = await score_all(role, range(-3, 0))
    assert not {s.total for g in held_out for s in g} & {s.total for g in together for s in g}


async def test_a_judge_is_one_scorer_more_and_asked_alike_again(config, reward, monkeypatch):
    seeds: dict[str, int] = {}

    class Judge:
        def __init__(self, config: Any) -> None:
            assert config.model == "big"

        async def score(self, seed: int, batch: Any) -> list[float]:
            assert seeds.setdefault(batch.prompt_ids_B[0], seed) == seed
            return [0.5, 1.0]

    monkeypatch.setattr("rlhf_ray.rewards.scorers.Judge", Judge)
    judge = JudgeConfig(url="http://x/v1", model="big", weight=4.0)
    role = await reward(config("length").model_copy(update={"judge": judge}))
    assert role.weights == {"length": 2.0, "judge": 4.0}
    scores = await score_all(role, range(3))
    assert [score.parts for score in scores[0]] == [
        {"length": 2.0, "judge": 0.5}, {"length": 4.0, "judge": 1.0}
    ]  # fmt: skip
    assert [score.total for score in scores[0]] == [6.0, 12.0]
    assert await score_all(role, range(3)) == scores
    assert len({*seeds.values()}) == 3
