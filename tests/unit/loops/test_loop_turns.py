"""What a step says of rollouts whose tokens are not all the policy's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fakes import make_prompts, make_rollout

from rlhf_ray.loops.report import sample_metrics, turn_metrics
from rlhf_ray.metrics.clock import StepClock
from rlhf_ray.metrics.names import check_names
from rlhf_ray.roles.groups import RolloutGroup, ScoredGroup
from rlhf_ray.types import RolloutSummary, Score, Turn


def acted(*, own, turns, versions=None):
    """A rollout of which the tokens of `own` are the policy's."""
    own_T = np.array(own, dtype=np.bool_)
    rollout = make_rollout(make_prompts(1)[0], 0, len(own))
    versions_T = np.where(own_T, versions or [3] * len(own), -1).astype(np.int32)
    return replace(rollout, action_mask_T=own_T, versions_T=versions_T, turns=turns)


LOOKS = Turn(num_tokens=2, reward=0.25, num_calls=2, num_failed_calls=1, environment_s=0.5)
ANSWERS = Turn(num_tokens=1, reward=1.0)


def test_a_summary_counts_own_tokens_and_their_versions():
    rollout = acted(own=[1, 1, 0, 0, 1], turns=(LOOKS, ANSWERS), versions=[4, 4, 9, 9, 5])
    summary = RolloutSummary.of(rollout)
    assert (summary.num_response_tokens, summary.num_action_tokens) == (5, 3)
    assert (summary.version_min, summary.version_max, summary.version_sum) == (4, 5, 13)
    assert summary.environment_reward == 1.25
    assert (summary.num_turns, summary.num_calls, summary.num_failed_calls) == (2, 2, 1)
    assert summary.environment_s == 0.5
    alone = RolloutSummary.of(make_rollout(make_prompts(1)[0], 0, 3))
    assert alone.environment_reward is None and alone.num_turns == 0


def test_lengths_and_speed_are_those_of_own_tokens():
    rollouts = [
        acted(own=[1, 1, 0, 0, 1], turns=(LOOKS, ANSWERS)),
        acted(own=[1], turns=(ANSWERS,)),
    ]
    group = RolloutGroup(
        prompt=rollouts[0].prompt,
        draw=0,
        summaries_G=tuple(map(RolloutSummary.of, rollouts)),
        rollouts=rollouts,
    )
    scored = ScoredGroup(group=group, scores_G=(Score(total=1.25), Score(total=1.0)))
    clock = StepClock()
    clock.seconds = {"generate": 2.0}
    told = sample_metrics([scored], clock)
    check_names(told)
    assert told["rollout/response_tokens_mean"] == 2.0
    assert told["rollout/tokens_per_s"] == 2.0
    of_turns = {name: value for name, value in told.items() if name.startswith("environment/")}
    assert of_turns == pytest.approx(
        {
            "environment/turns_mean": 1.5,
            "environment/turns_max": 2.0,
            "environment/calls_mean": 1.0,
            "environment/failed_call_share": 0.5,
            "environment/tokens_mean": 1.0,
            "environment/seconds_mean": 0.25,
        }
    )
    assert turn_metrics([RolloutSummary.of(make_rollout(make_prompts(1)[0], 0))]) == {}
