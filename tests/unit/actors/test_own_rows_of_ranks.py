"""What passes and updates give a rank: its own samples and references, and nobody else's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray
from fake_actors import RecordingActor

from actors.cluster.role_handle import RoleHandle
from actors.ranks.experience import ExperienceGroup, ExperienceRank
from actors.ranks.policy import PolicyGroup, PolicyRank
from actors.ranks.reference import ReferenceGroup, ReferenceRank
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.learners import LearnerConfig, ReferenceConfig
from rlhf_ray.config.rewards import ShapingConfig
from rlhf_ray.packing import MinibatchPlan, UpdatePlan
from rlhf_ray.roles.groups import RolloutGroup, ScoredGroup
from rlhf_ray.specs import ExperienceSpec
from rlhf_ray.types import Prompt, Rollout, RolloutSummary, Score

TIMEOUTS = TimeoutConfig()
SAMPLES = 2


@pytest.fixture(autouse=True)
def put(monkeypatch):
    monkeypatch.setattr(ray, "put", lambda value: value)


def rollout_of(draw: int, sample: int) -> Rollout:
    length = 3 + (5 * draw + sample) % 7
    return Rollout(
        prompt=Prompt(prompt_id=f"p{draw}", token_ids_T=(1, 2), text="?"),
        draw=draw,
        sample=sample,
        response_ids_T=np.full(length, draw, dtype=np.int32),
        logprobs_T=np.zeros(length, dtype=np.float32),
        versions_T=np.zeros(length, dtype=np.int32),
        action_mask_T=np.ones(length, dtype=np.bool_),
        finish_reason="stop",
        text="!",
    )


def group_of(draw: int) -> RolloutGroup:
    """One whose reference is the name of its rollouts."""
    rollouts = [rollout_of(draw, sample) for sample in range(SAMPLES)]
    summaries = tuple(
        RolloutSummary(
            sample=r.sample,
            num_prompt_tokens=2,
            num_response_tokens=len(r.response_ids_T),
            num_action_tokens=len(r.response_ids_T),
            finish_reason="stop",
            version_min=0,
            version_max=0,
            version_sum=0,
        )
        for r in rollouts
    )
    prompt = rollouts[0].prompt
    return RolloutGroup(prompt=prompt, draw=draw, summaries_G=summaries, rollouts=f"draw {draw}")


def fetched(refs: Any) -> dict[tuple[int, int], Rollout]:
    draws = [int(ref.removeprefix("draw ")) for ref in refs]
    return {(draw, sample): rollout_of(draw, sample) for draw in draws for sample in range(SAMPLES)}


def ranks_of(*classes: Any, num: int, **answers: Any) -> tuple[list[RecordingActor], RoleHandle]:
    actors = [RecordingActor(*classes, **answers) for _ in range(num)]
    return actors, RoleHandle("role", {f"job/role/{n}": actor for n, actor in enumerate(actors)})


async def test_a_pass_gives_each_rank_the_groups_of_its_samples_alone():
    groups = [group_of(draw) for draw in range(10, 26)]
    groups[3] = groups[3].where([False, True])  # one of its samples has no score
    actors, ranks = ranks_of(ReferenceRank, num=4, logprobs=0)
    reference = ReferenceGroup(actors=ranks, config=ReferenceConfig(), timeouts=TIMEOUTS)
    await reference.logprobs(groups)
    seen: list[tuple[int, int]] = []
    for rank, actor in enumerate(actors):
        [(_, work, own)] = actor.asked
        rows = own.rows(fetched(own.refs), work)
        assert list(own.samples) == [row for rows in work.plan[rank] for row in rows]
        assert {f"draw {draw}" for draw, _ in own.samples.values()} == set(own.refs)
        assert len(own.refs) < len(groups)
        for row, (draw, sample) in own.samples.items():
            assert (rows[row].draw, rows[row].sample) == (draw, sample)
        answered = own.answers([rows[row].num_tokens for row in own.samples])
        assert answered == {s: rollout_of(*s).num_tokens for s in own.samples.values()}
        seen += own.samples.values()
        lengths = [summary.num_tokens for group in groups for summary in group.summaries_G]
        assert [row.num_tokens for row in rows] == lengths
    assert sorted(seen) == sorted(sample for group in groups for sample in group.samples_G)


def plan_of(*rows_by_rank: tuple[int, ...]) -> UpdatePlan:
    minibatch = MinibatchPlan(
        micro_batches_by_rank=tuple((rows,) for rows in rows_by_rank), num_tokens=1, num_sequences=1
    )
    return UpdatePlan(minibatches=(minibatch,))


def spec_of(**algorithm: Any) -> ExperienceSpec:
    return ExperienceSpec(
        algorithm=AlgorithmConfig.model_validate({"advantage": "grpo", **algorithm}),
        old_logprobs="update",
        shaping=ShapingConfig(),
        max_new_tokens=16,
        reward_weights={},
    )


async def test_plans_that_are_the_same_share_their_experience():
    actors, helper = ranks_of(ExperienceRank, num=1, build={"policy/kl_ref": 0.5})
    group = ExperienceGroup(helper, spec_of(), TIMEOUTS)
    scored = [ScoredGroup(group=group_of(0), scores_G=(Score(total=1.0), Score(total=0.0)))]
    one, same, other = plan_of((0,), (1,)), plan_of((0,), (1,)), plan_of((0, 1), (), ())
    experiences, metrics = await group.build(
        scored, old=None, reference=None, values=None, kl_coefficient=0.0, plans=[one, same, other]
    )
    assert [len(by_rank) for by_rank in experiences] == [2, 2, 3]
    assert metrics == {"policy/kl_ref": 0.5}
    [(_, refs, scores, *_, plans)] = actors[0].asked
    assert (refs, list(scores)) == (["draw 0"], [(0, 0), (0, 1)])
    assert plans == [one, other]


def test_the_helper_deals_experience_out_by_the_rows_that_are_trained(monkeypatch):
    """Row numbers are those of the samples that are left: one was cut off, and is masked."""
    cut = (11, 0)
    samples = [(draw, sample) for draw in (10, 11, 12) for sample in range(SAMPLES)]
    rollouts = {s: rollout_of(*s) for s in samples}
    rollouts[cut] = replace(rollouts[cut], finish_reason="length")
    helper = ExperienceRank.__new__(ExperienceRank)
    monkeypatch.setattr(helper, "fetch", lambda refs: rollouts)
    scores = {sample: Score(total=float(number)) for number, sample in enumerate(samples)}
    plans = [plan_of((0, 4), (1, 2, 3)), plan_of((3,), (), (0, 1, 2, 4))]
    metrics, *parts = helper.build(
        ["all"], scores, None, None, None, 0.0, spec_of(truncated="mask"), plans
    )
    trained = [sample for sample in samples if sample != cut]
    assert metrics == {} and len(parts) == 5
    wanted = [{0, 4}, {1, 2, 3}, {3}, set(), {0, 1, 2, 4}]
    for part, rows in zip(parts, wanted, strict=True):
        assert part.own.keys() == rows
        for row, experience in part.own.items():
            assert (experience.rollout.draw, experience.rollout.sample) == trained[row]
        assert [row.num_tokens for row in part] == [rollouts[s].num_tokens for s in trained]


async def test_an_update_gives_each_rank_its_part():
    actors, ranks = ranks_of(PolicyRank, num=3, update={})
    policy = PolicyGroup(actors=ranks, config=LearnerConfig(), timeouts=TIMEOUTS)
    plan = plan_of((0,), (1,), (2,))
    await policy.update(["first", "second", "third"], plan, 0.5)
    assert [actor.asked for actor in actors] == [
        [("update", part, plan, 0.5)] for part in ("first", "second", "third")
    ]
