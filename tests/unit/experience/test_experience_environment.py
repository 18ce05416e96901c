"""What an environment writes between the policy's tokens changes nothing that is learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.advantages import ADVANTAGES
from rlhf_ray.config import algorithm_table as table
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.rewards import ShapingConfig
from rlhf_ray.experience.build import build_experience
from rlhf_ray.experience.turns import turn_numbers, turn_rewards
from rlhf_ray.specs import ExperienceSpec
from rlhf_ray.types import Prompt, Rollout, Score, Turn

COLUMNS = (
    "old_logprobs_T", "reference_logprobs_T", "values_T", "advantages_T", "returns_T",
)  # fmt: skip
PROMPT = Prompt(prompt_id="p", token_ids_T=(1, 2), text="")
SHAPING = ShapingConfig(
    missing_end_penalty=0.5, overlong_buffer_tokens=4, repetition_penalty=1.0, repetition_ngram=2
)
EXACT = {"rtol": 1e-6, "atol": 1e-6}


def rollout_of(rng, *, draw, sample, turn_lens, reason="stop"):
    num = sum(turn_lens)
    return Rollout(
        prompt=PROMPT,
        draw=draw,
        sample=sample,
        response_ids_T=rng.integers(0, 4, num).astype(np.int32),
        logprobs_T=rng.normal(-1, 0.3, num).astype(np.float32),
        versions_T=np.zeros(num, dtype=np.int32),
        action_mask_T=np.ones(num, dtype=np.bool_),
        finish_reason=reason,
        text="",
        turns=tuple(Turn(num_tokens=n, reward=float(rng.normal())) for n in turn_lens),
    )


def among_foreign(rollout, places, fill):
    """The same with tokens of others before the own ones at `places`; `fill` stands in arrays."""
    places = sorted(place % len(rollout.response_ids_T) for place in places)

    def spread(array, value):
        return np.insert(array, places, np.array(value, dtype=array.dtype))

    return replace(
        rollout,
        response_ids_T=spread(rollout.response_ids_T, 3),
        logprobs_T=spread(rollout.logprobs_T, fill),
        versions_T=spread(rollout.versions_T, -1),
        action_mask_T=spread(rollout.action_mask_T, False),
    )


@st.composite
def steps(draw):
    """Two groups of rollouts, and where others' tokens are put between theirs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lens = st.lists(st.integers(1, 4), min_size=1, max_size=3)
    rollouts = [
        rollout_of(
            rng,
            draw=number // 3,
            sample=number % 3,
            turn_lens=draw(lens),
            reason=draw(st.sampled_from(["stop", "length"])),
        )
        for number in range(6)
    ]
    places = [draw(st.lists(st.integers(0, 11), max_size=6)) for _ in rollouts]
    return rng, rollouts, places


def built(rollouts, arrays, name):
    old, reference, values = arrays
    scores = [
        Score(
            total=number % 4 + rollout.environment_reward,
            parts={"function": float(number % 4), "environment": rollout.environment_reward},
        )
        for number, rollout in enumerate(rollouts)
    ]
    where = "loss" if table.ADVANTAGES[name].needs_parts else "reward"
    return build_experience(
        rollouts,
        scores,
        old_logprobs_B=old,
        reference_logprobs_B=reference,
        values_B=values,
        kl_coefficient=0.2,
        spec=ExperienceSpec(
            algorithm=AlgorithmConfig.model_validate(
                {
                    "advantage": name,
                    "gamma": 0.9,
                    "lam": 0.8,
                    "truncated": "bootstrap" if table.ADVANTAGES[name].needs_values else "train",
                    "kl": {"where": where, "coefficient": 0.2},
                }
            ),
            shaping=SHAPING,
            max_new_tokens=12,
            reward_weights={"function": 1.0, "environment": 1.0},
        ),
    )


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    step=steps(),
    fill=st.sampled_from([0.0, np.nan]),
)
def test_tokens_of_others_between_own_ones_change_nothing(name, step, fill):
    rng, rollouts, places = step
    mixed = [among_foreign(r, at, fill) for r, at in zip(rollouts, places, strict=True)]

    def arrays_of(*, with_end=False):
        """Of own tokens, and the same with others between."""
        own = [rng.normal(-1, 0.3, len(r.response_ids_T)).astype(np.float32) for r in rollouts]
        both = [np.full(len(r.response_ids_T), fill, dtype=np.float32) for r in mixed]
        for array, rollout, own_T in zip(both, mixed, own, strict=True):
            array[rollout.action_mask_T] = own_T
        if with_end:
            ends = rng.normal(size=len(rollouts)).astype(np.float32)
            own, both = (
                [np.append(a, e) for a, e in zip(some, ends, strict=True)] for some in (own, both)
            )
        return own, both

    triples = [arrays_of(), arrays_of(), arrays_of(with_end=True)]
    alone = built(rollouts, [own for own, _ in triples], name)
    among = built(mixed, [both for _, both in triples], name)

    assert among.metrics == pytest.approx(alone.metrics, rel=1e-6, abs=1e-6)
    for want, got, rollout in zip(alone.experience_B, among.experience_B, mixed, strict=True):
        for column in COLUMNS:
            own_T = getattr(got, column)[rollout.action_mask_T]
            np.testing.assert_allclose(own_T, getattr(want, column), **EXACT)
            assert not getattr(got, column)[~rollout.action_mask_T].any(), column


def test_turns_stand_at_their_own_tokens():
    rng = np.random.default_rng(0)
    rollout = among_foreign(rollout_of(rng, draw=0, sample=0, turn_lens=[2, 1, 3]), [0, 2, 4], 0.0)
    assert rollout.action_mask_T.astype(int).tolist() == [0, 1, 1, 0, 1, 1, 0, 1, 1]
    assert turn_numbers(rollout)[rollout.action_mask_T].tolist() == [0, 0, 1, 2, 2, 2]
    rewards = np.array([turn.reward for turn in rollout.turns], dtype=np.float32)
    assert turn_rewards(rollout)[[2, 4, 8]].tolist() == rewards.tolist()
    assert np.count_nonzero(turn_rewards(rollout)) == 3
    first, second, third = rollout.turns
    without = replace(rollout, turns=(first, replace(second, reward=None), third))
    assert turn_rewards(without)[[2, 4, 8]].tolist() == [rewards[0], 0.0, rewards[2]]
    wrong = replace(rollout, turns=rollout.turns[:2])
    for of in (turn_numbers, turn_rewards):
        with pytest.raises(ValueError, match="must have the 6 own tokens of the rollout, got 3"):
            of(wrong)


def test_rewards_of_turns_are_neither_shaped_nor_moved():
    """Of a score of 5 + 1 with a clip at 2, the 1 of the first turn stays where it was earned."""
    rng = np.random.default_rng(0)
    rollout = rollout_of(rng, draw=0, sample=0, turn_lens=[2, 2])
    first, last = replace(rollout.turns[0], reward=1.0), replace(rollout.turns[1], reward=0.0)
    rollout = replace(rollout, turns=(first, last))
    step = build_experience(
        [rollout],
        [Score(total=6.0)],
        old_logprobs_B=[rollout.logprobs_T],
        reference_logprobs_B=None,
        values_B=[np.zeros(5, dtype=np.float32)],
        kl_coefficient=0.0,
        spec=ExperienceSpec(
            algorithm=AlgorithmConfig(advantage="gae", lam=1.0),
            shaping=ShapingConfig(clip=2.0),
            max_new_tokens=12,
            reward_weights={},
        ),
    )
    assert step.experience_B[0].advantages_T.tolist() == [3.0, 3.0, 2.0, 2.0]
