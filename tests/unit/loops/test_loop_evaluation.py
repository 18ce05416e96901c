"""Evaluation on held-out prompts: how many samples, and what is made of their scores."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from fakes import Company, make_config, make_prompts
from pydantic import ValidationError

from rlhf_ray.config.evaluation import EvalConfig
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.errors import GroupFailed, RunError
from rlhf_ray.loops.evaluation import Evaluation

SCORES = {("p0", 0): 0.0, ("p0", 1): 1.0, ("p0", 2): 0.0, ("p2", 2): 1.0}


async def evaluated(*, sections=None, scoring=None, prompts=None, **settings):
    config = GrpoConfig.model_validate(
        {
            "data": {"path": "prompts.jsonl"},
            "policy": {"model": {"path": "model"}},
            "reward": {"functions": [{"path": "scorers:score"}]},
            "eval": settings,
            **(sections or {}),
        }
    )
    scoring = scoring or (lambda prompt, sample: SCORES.get((prompt, sample), 0.0))
    company = Company(config, scoring)
    return company, await Evaluation(config, prompts or make_prompts(4)).run(company.roles(), 0)


async def test_of_several_samples_there_is_a_mean_and_the_best():
    company, result = await evaluated(samples_per_prompt=3, temperature=1.0, table_rows=3)
    assert [len(set(request.seeds_G)) for request in company.requests] == [3] * 4
    assert result.metrics["eval/reward_mean"] == pytest.approx(2 / 12)
    assert result.metrics["eval/best_of_k"] == 0.5
    shown = [(row[0], row[1]) for row in result.table.rows]
    assert shown == [(f"prompt {n}", f"answer 0 to p{n}") for n in range(3)]


async def test_engines_leave_a_shared_gpu_to_the_reward_model():
    shared = {"share": "policy", "gpus_per_rank": 1}
    placement = {"policy": {"gpus_per_rank": 1}, "rollout": shared, "reward": shared}
    company, _ = await evaluated(sections={"placement": placement})
    scored = ["reward.score"] * 4
    assert company.calls == ["rollout.generate@-1", *scored], "functions need no GPU"
    model = {"reward": {"model": {"path": "rm"}}, "placement": placement}
    company, _ = await evaluated(sections=model)
    assert company.calls == ["rollout.generate@-1", "rollout.sleep@1", *scored]


async def test_of_one_sample_there_is_no_best():
    company, result = await evaluated(table_rows=9)
    assert [len(request.seeds_G) for request in company.requests] == [1] * 4
    assert "eval/best_of_k" not in result.metrics
    assert len(result.table.rows) == 4


async def test_a_prompt_that_is_held_out_twice_is_two_prompts():
    [prompt] = make_prompts(1)
    company, result = await evaluated(
        samples_per_prompt=2, temperature=1.0, prompts=[prompt, prompt], table_rows=9
    )
    seeds = [seed for request in company.requests for seed in request.seeds_G]
    assert len(set(seeds)) == 4
    assert len(result.table.rows) == 2


async def test_means_are_of_the_rows_that_a_reward_applies_to():
    scores = {("p0", 0): 0.0, ("p0", 1): 1.0, ("p1", 1): 4.0}
    _, result = await evaluated(
        samples_per_prompt=2, temperature=1.0, scoring=lambda *row: scores.get(row)
    )
    assert result.metrics["eval/unscored"] == 5
    assert result.metrics["eval/reward_mean"] == pytest.approx(5 / 3)
    assert result.metrics["eval/best_of_k"] == 2.5, "of the two prompts that have scores"
    assert [row[2] for row in result.table.rows] == [0.0, None, None, None]


async def test_without_any_score_there_is_no_mean():
    _, result = await evaluated(scoring=lambda prompt, sample: None)
    assert result.metrics["eval/unscored"] == 4
    assert not {"eval/reward_mean", "eval/best_of_k"} & result.metrics.keys()


async def test_held_out_prompts_that_cannot_be_scored_are_counted_and_left_out():
    class Failing(Company):
        async def score(self, group):
            if group.prompt.prompt_id in {"p0", "p2"}:
                raise GroupFailed.of("a user's code", cause="crashed")
            [score] = await super().score(group)
            return (replace(score, parts={"score": score.total}),)

    row = {"failures": {"row": {"retries": 1}}}
    company, _ = await evaluated(sections=row)
    failing = Failing(company.config, lambda prompt, sample: 0.5)
    result = await Evaluation(company.config, make_prompts(4)).run(failing.roles(), 0)
    metrics = result.metrics
    assert (metrics["eval/reward_mean"], metrics["eval/reward/score"]) == (0.5, 0.5)
    assert (metrics["eval/unscored"], metrics["eval/reward/skipped_groups"]) == (2, 2)
    assert metrics["eval/reward/failed_crashed"] == 4
    assert [row[2] for row in result.table.rows] == [None, 0.5, None, 0.5]


async def test_held_out_prompts_whose_environment_fails_are_counted_and_left_out():
    class Failing(Company):
        async def generate(self, requests, *, together=True):
            answers = await super().generate(requests, together=together)
            return [self.acted(answer) for answer in answers]

        async def acted(self, answer):
            group = await answer
            if group.prompt.prompt_id in {"p0", "p2"}:
                raise GroupFailed.of("a user's code", cause="hung")
            return group

    company, _ = await evaluated(sections={"failures": {"row": {"retries": 1}}})
    failing = Failing(company.config, lambda prompt, sample: 0.5)
    result = await Evaluation(company.config, make_prompts(4)).run(failing.roles(), 0)
    metrics = result.metrics
    assert (metrics["eval/reward_mean"], metrics["eval/unscored"]) == (0.5, 0)
    assert metrics["eval/environment/skipped_groups"] == 2
    assert metrics["eval/environment/failed_hung"] == 4
    assert "eval/reward/skipped_groups" not in metrics
    assert [row[2] for row in result.table.rows] == [0.5, 0.5]


def test_greedy_samples_would_all_be_the_same():
    with pytest.raises(ValidationError, match="temperature must be above 0"):
        EvalConfig(samples_per_prompt=2)


class Slow(Company):
    """Scores as many at a time as it is asked about; one of them fails after a while."""

    fails_at = ""

    async def score(self, group):
        try:
            await asyncio.sleep(0.05 if group.prompt.prompt_id != self.fails_at else 0.01)
        except asyncio.CancelledError:
            self.said(f"cancelled {group.prompt.prompt_id}")
            raise
        if group.prompt.prompt_id == self.fails_at:
            raise RunError("no such scorer")
        return await super().score(group)


async def test_groups_are_scored_side_by_side_and_the_first_failure_ends_the_others(tmp_path):
    company = Slow(make_config(tmp_path), lambda prompt, sample: 0.0)
    evaluation = Evaluation(company.config, make_prompts(30))
    result = await evaluation.run(company.roles(), 0)
    assert result.metrics["time/evaluate"] < 30 * 0.05 / 3
    company.fails_at = "p3"
    with pytest.raises(RunError, match="no such scorer"):
        await evaluation.run(company.roles(), 0)
    await asyncio.sleep(0)
    assert sum(call.startswith("cancelled") for call in company.calls) == 29
