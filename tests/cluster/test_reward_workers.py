"""Rewards that hang, crash and raise cost their groups alone; where they score changes no bit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from bad_scorers import ACTS, act_of
from jobs import metrics_of, train

from actors.pool.pool import Pool
from actors.ranks.reward import RewardGroup
from actors.ranks.reward_worker import RewardWorker
from actors.ranks.reward_workers import RewardWorkers
from actors.roles.start import RANKS, start_actors
from rlhf_ray.config.fault_tolerance import RowFailureConfig, TimeoutConfig
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.roles.groups import RolloutGroup, ScoredGroup
from rlhf_ray.rollouts.groups import Scoring, Tries
from rlhf_ray.specs import RewardSpec
from rlhf_ray.types import Prompt, Rollout, RolloutSummary

SCORERS = Path(__file__).with_name("bad_scorers.py")
GROUPS = {"reward_worker": GroupConfig(ranks=3, cpus_per_rank=1.0)}
SAMPLES = 4
HANGS_S = 2.0
TIMEOUTS = TimeoutConfig.model_validate({"start_s": 120, "place_s": 60, "reward_s": HANGS_S})


def text_of(draw: int, sample: int) -> str:
    return f"answer {sample} to {draw}"


def group_of(draw: int) -> RolloutGroup:
    prompt = Prompt(prompt_id=f"p{draw}", token_ids_T=(1, 2), text="?")
    rollouts = [
        Rollout(
            prompt=prompt,
            draw=draw,
            sample=sample,
            response_ids_T=np.zeros(3, dtype=np.int32),
            logprobs_T=np.zeros(3, dtype=np.float32),
            versions_T=np.zeros(3, dtype=np.int32),
            action_mask_T=np.ones(3, dtype=np.bool_),
            finish_reason="stop",
            text=text_of(draw, sample),
        )
        for sample in range(SAMPLES)
    ]
    summaries_G = tuple(map(RolloutSummary.of, rollouts))
    return RolloutGroup(
        prompt=prompt, draw=draw, summaries_G=summaries_G, rollouts=ray.put(rollouts)
    )


def first_act(draw: int, one_in: int) -> str:
    """What a group's first bad sample does to it, as they are looked at in order."""
    acts = (act_of(text_of(draw, sample), one_in) for sample in range(SAMPLES))
    return next((act for act in acts if act), "")


class Workers:
    """Three of them, on a pool that holds nothing else."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.runner, self.pool = runner, Pool("scoring", TIMEOUTS)
        specs = {"reward_worker": RANKS["reward_worker"]}
        self.runner.run(start_actors(self.pool, GROUPS, specs))

    def score(
        self, function: str, num_groups: int, *, one_in: int, retries: int
    ) -> list[ScoredGroup]:
        """Of all groups, side by side."""
        spec = spec_of(function, one_in)
        config = RowFailureConfig(retries=retries, most_skipped_share=1.0)

        async def score_all() -> list[ScoredGroup]:
            functions, *_ = await self.pool.load("reward_worker", spec, path="")
            workers = RewardWorkers(
                self.pool.state.roles["reward_worker"],
                functions,
                reward=spec.reward,
                timeouts=TIMEOUTS,
                restart=lambda died: self.pool.restarts.after(died, self.pool.state.roles),
            )
            role = RewardGroup(spec.reward, TIMEOUTS, model=None, workers=workers)
            scoring = Scoring(role, Tries(config))
            return await side_by_side(scoring.score(group_of(draw)) for draw in range(num_groups))

        return self.runner.run(score_all())


def spec_of(function: str, one_in: int) -> RewardSpec:
    functions = [{"path": f"{SCORERS}:{function}", "arguments": {"one_in": one_in}}]
    return RewardSpec(
        reward=RewardConfig.model_validate({"functions": functions}),
        timeout_s=HANGS_S,
        vocabulary="",
        end_token_ids=(0,),
        seed=7,
    )


def scored_here(function: str, draws: list[int], *, one_in: int) -> list[list[Any]]:
    """What a worker says that is none: an object of this process."""
    worker = RewardWorker.__new__(RewardWorker)
    worker.fetch_timeout_s = 60.0
    worker.load(spec_of(function, one_in))
    groups = [group_of(draw) for draw in draws]
    scores = [worker.score([function], [g.rollouts], g.samples_G, 60.0) for g in groups]
    return [found[function] for found in scores]


@pytest.fixture(scope="module")
def workers(cluster: None) -> Iterator[Workers]:
    with asyncio.Runner() as runner:
        workers = Workers(runner)
        yield workers
        runner.run(workers.pool.close())


@pytest.mark.parametrize(
    ("num_groups", "one_in", "retries"),
    [(20, 60, 0), pytest.param(500, 100, 1, marks=pytest.mark.long)],
)
@pytest.mark.parametrize("function", ["acts_by_text", "acts_beside_others"])
def test_a_bad_sample_costs_its_group(function, num_groups, one_in, retries, workers):
    """One sample in so many hangs, one ends its worker, one raises; no score is invented."""
    scored = workers.score(function, num_groups, one_in=one_in, retries=retries)
    wanted = {draw: act for draw in range(num_groups) if (act := first_act(draw, one_in))}
    if function == "acts_beside_others":
        wanted = {draw: act.replace("hung", "raised") for draw, act in wanted.items()}
    assert {*ACTS[1:]} <= {*wanted.values()}
    found = {one.group.draw: one.failed for one in scored if one.failed}
    assert found == {draw: (act,) * (retries + 1) for draw, act in wanted.items()}
    assert {one.group.draw for one in scored if one.is_skipped} == wanted.keys()
    totals = [[score.total for score in one.scores_G] for one in scored]
    assert all(totals[draw] == [None] * SAMPLES for draw in wanted)
    others = [draw for draw in range(num_groups) if draw not in wanted]
    assert [totals[draw] for draw in others] == scored_here(function, others, one_in=one_in)


def test_a_run_goes_on_without_groups_that_cannot_be_scored(pool, make_config, tmp_path):
    """Of the first six prompts one ends the worker, one hangs, and one raises."""
    function = {"path": f"{SCORERS}:acts_by_prompt", "arguments": {"one_in": 15}}
    config = make_config(
        tmp_path,
        total_steps=2,
        prompts_per_step=3,
        reward={"functions": [function]},
        timeouts={"reward_s": HANGS_S},
        failures={"row": {"retries": 0, "most_skipped_share": 1.0}},
    )
    train(config, pool)
    steps = metrics_of(tmp_path)[1:]

    def total(name: str) -> float:
        return sum(metrics.get(name, 0.0) for metrics in steps)

    assert {act: total(f"reward/failed_{act}") for act in ACTS} == dict.fromkeys(ACTS, 1.0)
    assert total("reward/skipped_groups") == total("rollout/trained_groups") == 3
    assert total("rollout/unscored") == 3 * config.samples_per_prompt
