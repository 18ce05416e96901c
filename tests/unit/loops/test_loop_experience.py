"""From scores, log-probabilities and values of a step to its experience."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fakes import make_prompts, make_rollout

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.rewards import ShapingConfig
from rlhf_ray.experience.build import build_experience
from rlhf_ray.specs import ExperienceSpec
from rlhf_ray.types import Score

MAX_NEW_TOKENS = 8
COLUMNS = (
    "old_logprobs_T",
    "reference_logprobs_T",
    "values_T",
    "advantages_T",
    "returns_T",
)


@pytest.fixture
def rollouts():
    """Three prompts, two samples each, of many lengths; groups do not stand together."""
    prompts = make_prompts(3)
    drawn = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    return [
        make_rollout(prompts[p], g, num_tokens=2 + (3 * p + 2 * g) % 7, draw=10 + p)
        for p, g in drawn
    ]


SCORES = [1.0, -3.0, 0.5, 2.0, 4.0, 0.5]


def floats(rollouts, seed, mean=-1.0):
    generator = np.random.default_rng(seed)
    lens = [len(rollout.response_ids_T) for rollout in rollouts]
    return [generator.normal(mean, 0.3, size=n).astype(np.float32) for n in lens]


def with_last(values, last=7.0):
    """The critic's values with that of the state after the last token."""
    return [np.append(values_T, np.float32(last)) for values_T in values]


def built(
    rollouts,
    scores,
    *,
    old=None,
    reference=None,
    values=None,
    coefficient=0.0,
    shaping=None,
    weights=None,
    source="trainer",
    **algorithm,
):
    if source == "trainer":
        old = old or [rollout.logprobs_T for rollout in rollouts]
    return build_experience(
        rollouts,
        [score if isinstance(score, Score) else Score(total=score) for score in scores],
        old_logprobs_B=old,
        reference_logprobs_B=reference,
        values_B=None if values is None else with_last(values),
        kl_coefficient=coefficient,
        spec=ExperienceSpec(
            algorithm=AlgorithmConfig.model_validate(algorithm),
            old_logprobs=source,
            shaping=ShapingConfig.model_validate(shaping or {}),
            max_new_tokens=MAX_NEW_TOKENS,
            reward_weights=weights or {},
        ),
    )


def advantages_of(step):
    """One a row; all tokens of a row have it."""
    for row in step.experience_B:
        assert np.ptp(row.advantages_T) == 0
    return [float(row.advantages_T[0]) for row in step.experience_B]


def backwards(rewards_T, values_T, gamma, lam):
    """GAE as the paper's recursion has it, token by token."""
    advantages_T = np.zeros(len(rewards_T))
    after, next_value = 0.0, 0.0
    for t in reversed(range(len(rewards_T))):
        after = rewards_T[t] + gamma * next_value - values_T[t] + gamma * lam * after
        advantages_T[t], next_value = after, values_T[t]
    return advantages_T


def test_rows_come_back_in_order_with_what_was_given(rollouts):
    given = {
        "old_logprobs_T": floats(rollouts, 1),
        "reference_logprobs_T": floats(rollouts, 2),
        "values_T": floats(rollouts, 3),
    }
    old, reference, values = given.values()
    rows = built(
        rollouts, SCORES, old=old, reference=reference, values=values, advantage="gae"
    ).experience_B
    assert len(rows) == len(rollouts)
    for index, (row, rollout) in enumerate(zip(rows, rollouts, strict=True)):
        assert row.rollout is rollout
        for name, arrays in given.items():
            np.testing.assert_array_equal(getattr(row, name), arrays[index])
        for name in COLUMNS:
            assert getattr(row, name).shape == rollout.response_ids_T.shape
            assert getattr(row, name).dtype == np.float32


def test_an_advantage_compares_a_score_with_its_group(rollouts):
    by_group = np.array(SCORES).reshape(2, 3)
    spread = by_group.std(axis=0, ddof=1)
    expected = (by_group - by_group.mean(axis=0)) / (spread + 1e-6)
    step = built(rollouts, SCORES, advantage="grpo")
    assert advantages_of(step) == pytest.approx(expected.ravel().tolist(), abs=1e-6)
    assert advantages_of(step)[2] == 0  # both samples of that prompt scored the same
    for row in step.experience_B:
        assert not row.returns_T.any()
        assert not row.values_T.any()
        assert not row.reference_logprobs_T.any()


def test_a_prompt_that_was_drawn_twice_makes_two_groups(rollouts):
    # Four prompts a step from a data set of three: one comes again, with samples 0 and 1 again.
    again = [replace(r, draw=13) for r in rollouts if r.prompt.prompt_id == "p0"]
    scores = [*SCORES, 6.0, 8.0]
    advantages = advantages_of(built([*rollouts, *again], scores, advantage="dr_grpo"))
    assert [advantages[row] for row in (0, 3)] == pytest.approx([-0.5, 0.5])
    assert [advantages[row] for row in (6, 7)] == pytest.approx([-1.0, 1.0])
    assert [advantages[row] for row in (1, 4)] == pytest.approx([-3.5, 3.5])


def test_advantages_are_of_values_and_returns_are_their_targets(rollouts):
    values = floats(rollouts, 3, mean=0.5)
    step = built(rollouts, SCORES, values=values, advantage="gae", gamma=0.9, lam=0.7)
    for row, score, values_T in zip(step.experience_B, SCORES, values, strict=True):
        rewards_T = np.zeros(len(values_T))
        rewards_T[-1] = score
        expected_T = backwards(rewards_T, values_T, 0.9, 0.7)
        np.testing.assert_allclose(row.advantages_T, expected_T, atol=1e-5)
        np.testing.assert_allclose(row.returns_T, expected_T + values_T, atol=1e-5)


def test_whitened_advantages_are_so_over_the_whole_step(rollouts):
    values = floats(rollouts, 3)
    settings = {"values": values, "advantage": "gae"}
    plain = built(rollouts, SCORES, **settings)
    white = built(rollouts, SCORES, whiten_advantages=True, **settings)
    before_T = np.concatenate([row.advantages_T for row in plain.experience_B])
    after_T = np.concatenate([row.advantages_T for row in white.experience_B])
    expected_T = (before_T - before_T.mean()) / before_T.std(ddof=1)
    np.testing.assert_allclose(after_T, expected_T, atol=1e-5)
    # The critic's targets stay in the unit of the rewards.
    for one, other in zip(plain.experience_B, white.experience_B, strict=True):
        np.testing.assert_array_equal(one.returns_T, other.returns_T)


def test_a_critics_advantage_without_values_is_an_error(rollouts):
    with pytest.raises(ValueError, match="values_T must be given"):
        built(rollouts, SCORES, advantage="gae")


def with_kl(rollouts, coefficient, *, where="reward", estimator="k1"):
    return built(
        rollouts,
        SCORES,
        old=floats(rollouts, 1),
        reference=floats(rollouts, 2),
        values=floats(rollouts, 3),
        coefficient=coefficient,
        advantage="gae",
        gamma=0.9,
        lam=0.7,
        kl={"estimator": estimator, "where": where},
    )


def test_kl_in_the_reward_is_taken_from_every_token(rollouts):
    step = with_kl(rollouts, 0.3)
    kl_B = [old - ref for old, ref in zip(floats(rollouts, 1), floats(rollouts, 2), strict=True)]
    for row, score, kl_T, values_T in zip(
        step.experience_B, SCORES, kl_B, floats(rollouts, 3), strict=True
    ):
        rewards_T = -0.3 * kl_T
        rewards_T[-1] += score
        expected_T = backwards(rewards_T, values_T, 0.9, 0.7)
        np.testing.assert_allclose(row.advantages_T, expected_T, atol=1e-5)
        np.testing.assert_allclose(row.returns_T, expected_T + values_T, atol=1e-5)
    assert step.metrics["policy/kl_ref"] == pytest.approx(np.concatenate(kl_B).mean(), rel=1e-5)
    assert step.metrics["policy/kl_clamp_share"] == 0


def test_kl_in_the_loss_leaves_rewards_alone_and_is_measured(rollouts):
    without, in_loss = with_kl(rollouts, 0.0), with_kl(rollouts, 0.3, where="loss")
    for one, other in zip(without.experience_B, in_loss.experience_B, strict=True):
        np.testing.assert_array_equal(one.advantages_T, other.advantages_T)
    assert in_loss.metrics["policy/kl_ref"] == without.metrics["policy/kl_ref"] != 0


def test_a_job_without_a_reference_has_no_kl(rollouts):
    step = built(rollouts, SCORES, coefficient=0.3, advantage="dr_grpo", kl={"where": "reward"})
    assert not [name for name in step.metrics if "kl" in name]
    assert advantages_of(step) == pytest.approx([-0.5, -3.5, 0, 0.5, 3.5, 0])


def in_foreign_slots(arrays, action_B, value):
    return [
        np.where(action_mask_T, array, np.float32(value))
        for array, action_mask_T in zip(arrays, action_B, strict=True)
    ]


def with_foreign_slots(rollouts, value, advantage):
    """What stands in slots of tokens that the policy did not write is `value`, everywhere."""
    action_B = [np.arange(len(r.response_ids_T)) % 3 != 1 for r in rollouts]
    action_B[2][-1] = False  # a tool had the last word
    marked = [
        replace(rollout, action_mask_T=action_mask_T, logprobs_T=logprobs_T)
        for rollout, action_mask_T, logprobs_T in zip(
            rollouts,
            action_B,
            in_foreign_slots(floats(rollouts, 4), action_B, value),
            strict=True,
        )
    ]
    old, reference, values = (
        in_foreign_slots(floats(rollouts, seed), action_B, value) for seed in (1, 2, 3)
    )
    step = built(
        marked,
        SCORES,
        old=old,
        reference=reference,
        values=values,
        coefficient=0.3,
        advantage=advantage,
        whiten_advantages=True,
        kl={"where": "reward"},
    )
    return step, action_B


@pytest.mark.parametrize("advantage", ["gae", "grpo", "reinforce++", "reinforce++_baseline"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_slots_of_others_hold_zeros_and_change_nothing(rollouts, advantage, value):
    clean, action_B = with_foreign_slots(rollouts, 0.0, advantage)
    dirty, _ = with_foreign_slots(rollouts, value, advantage)
    for row, expected, action_mask_T in zip(
        dirty.experience_B, clean.experience_B, action_B, strict=True
    ):
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(row, name), getattr(expected, name))
            assert not getattr(row, name)[~action_mask_T].any(), name
        assert row.advantages_T[action_mask_T].any()
    assert dirty.metrics == clean.metrics
    assert np.isfinite(list(dirty.metrics.values())).all()


SHAPED = [
    ({"clip": 2.0}, [1.0, -2.0, 0.5, 2.0, 2.0, 0.5]),
    ({"missing_end_penalty": 5.0}, [1.0, -8.0, 0.5, 2.0, 4.0, 0.5]),
    # Lengths are 2, 5, 8, 4, 7 and 3 of 8: the penalty grows from 4 to 8.
    (
        {"overlong_buffer_tokens": 4, "overlong_penalty": 2.0},
        [1.0, -3.5, -1.5, 2.0, 2.5, 0.5],
    ),
    # The penalty comes after the clip and is not clipped with it.
    ({"clip": 2.0, "missing_end_penalty": 5.0}, [1.0, -7.0, 0.5, 2.0, 2.0, 0.5]),
]


@pytest.mark.parametrize(("shaping", "shaped"), SHAPED, ids=lambda value: str(value))
def test_scores_are_shaped_before_they_are_compared(rollouts, shaping, shaped):
    rollouts[1] = replace(rollouts[1], finish_reason="length")
    assert [len(rollout.response_ids_T) for rollout in rollouts] == [2, 5, 8, 4, 7, 3]
    by_group = np.array(shaped).reshape(2, 3)
    expected = (by_group - by_group.mean(axis=0)).ravel()
    step = built(rollouts, SCORES, shaping=shaping, advantage="dr_grpo")
    assert advantages_of(step) == pytest.approx(expected.tolist(), abs=1e-6)


def cut_off(rollouts, *rows):
    return [
        replace(rollout, finish_reason="length") if row in rows else rollout
        for row, rollout in enumerate(rollouts)
    ]


def test_a_cut_response_goes_on_from_the_critics_value(rollouts):
    values = floats(rollouts, 3)
    settings = {"values": values, "advantage": "gae", "gamma": 0.9, "lam": 0.7}
    cut = cut_off(rollouts, 1, 4)
    plain = built(cut, SCORES, **settings)
    bootstrapped = built(cut, SCORES, truncated="bootstrap", **settings)
    for row, (one, other) in enumerate(
        zip(plain.experience_B, bootstrapped.experience_B, strict=True)
    ):
        rewards_T = np.zeros(len(values[row]))
        rewards_T[-1] = SCORES[row] + (0.9 * 7.0 if row in (1, 4) else 0.0)
        expected_T = backwards(rewards_T, values[row], 0.9, 0.7)
        np.testing.assert_allclose(other.advantages_T, expected_T, atol=1e-5)
        np.testing.assert_allclose(other.returns_T, expected_T + values[row], atol=1e-5)
        assert np.array_equal(one.returns_T, other.returns_T) == (row not in (1, 4))


@pytest.mark.parametrize("advantage", ["gae", "grpo", "reinforce++", "reinforce++_baseline"])
def test_a_masked_response_is_compared_and_not_trained(rollouts, advantage):
    values = floats(rollouts, 3) if advantage == "gae" else None
    settings = {"values": values, "advantage": advantage, "whiten_advantages": True}
    cut = cut_off(rollouts, 1, 2)
    masked = built(cut, SCORES, truncated="mask", **settings).experience_B
    assert [row.rollout for row in masked] == [cut[row] for row in (0, 3, 4, 5)]
    trained_T = np.concatenate([row.advantages_T for row in masked])
    spread_T = trained_T[trained_T != 0]  # the last group scored alike
    assert spread_T.mean() == pytest.approx(0, abs=1e-6)
    assert spread_T.std(ddof=1) == pytest.approx(1, rel=1e-5)
    # Row 4 shares its prompt with row 1, whose -3 is what makes its 4 a good answer.
    without = [row for row in range(6) if row not in (1, 2)]
    alone = built(
        [cut[row] for row in without],
        [SCORES[row] for row in without],
        **{**settings, "values": values and [values[row] for row in without]},
    ).experience_B
    if advantage.endswith("baseline") or advantage == "grpo":
        assert not alone[2].advantages_T.any() and masked[2].advantages_T.all()


def parts(*values):
    return [
        Score(total=sum(v for v in row if v is not None), parts=dict(zip("ab", row, strict=True)))
        for row in zip(*values, strict=True)
    ]


def test_rewards_are_told_apart_by_name_and_weight(rollouts):
    """Groups are rows 0 and 3, 1 and 4, 2 and 5; each of two has deviation |difference| / √2."""
    scores = parts([100.0, 0.0, 5.0, 0.0, 0.0, 5.0], [0.0, 1.0, 2.0, 1.0, 0.0, None])
    advantages = advantages_of(
        built(rollouts, scores, advantage="gdpo", weights={"a": 1.0, "b": 0.5})
    )
    half = 0.5**0.5
    # a favours row 0 over row 3, b the other way round at half its weight; rows 1 and 4 differ in
    # b alone; rows 2 and 5 tie in a, and b says nothing of one that has nobody to compare with.
    sums = np.array([half - 0.5 * half, 0.5 * half, 0, 0.5 * half - half, -0.5 * half, 0])
    assert advantages == pytest.approx((sums / sums.std(ddof=1)).tolist(), abs=1e-4)
    assert advantages[2] == advantages[5] == 0


def test_penalties_of_shaping_are_one_reward_more(rollouts):
    cut = cut_off(rollouts, 2)
    scores = parts([1.0, 0.0, 5.0, 0.0, 1.0, 5.0], [0.0] * 6)
    settings = {"advantage": "gdpo", "weights": {"a": 1.0, "b": 1.0}}
    plain = advantages_of(built(cut, scores, **settings))
    penalised = advantages_of(built(cut, scores, shaping={"missing_end_penalty": 1e-3}, **settings))
    assert plain[2] == plain[5] == 0
    assert penalised[2] == -penalised[5] < -0.5


def test_a_score_without_a_reward_that_has_a_weight_is_an_error(rollouts):
    scores = parts(SCORES, SCORES)
    with pytest.raises(ValueError, match="row 0 has no value of reward 'c'"):
        built(rollouts, scores, advantage="gdpo", weights={"a": 1.0, "c": 1.0})
    with pytest.raises(ValueError, match="1 of 6 rows have no score"):
        built(rollouts, [*SCORES[:5], Score(total=None)], advantage="grpo")


@pytest.mark.parametrize("where", ["reward", "loss"])
def test_the_engines_log_probabilities_may_stand_for_the_policys(rollouts, where):
    sampled = [
        replace(rollout, logprobs_T=logprobs_T)
        for rollout, logprobs_T in zip(rollouts, floats(rollouts, 1), strict=True)
    ]
    settings = {
        "reference": floats(rollouts, 2),
        "coefficient": 0.3,
        "advantage": "dr_grpo",
        "kl": {"where": where},
    }
    passed = built(rollouts, SCORES, old=floats(rollouts, 1), **settings)
    engines = built(sampled, SCORES, source="engine", **settings)
    assert engines.metrics == passed.metrics
    assert engines.metrics["policy/kl_ref"] != 0
    for one, other in zip(engines.experience_B, passed.experience_B, strict=True):
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_what_the_update_will_know_is_not_made_up_before(rollouts):
    settings = {"reference": floats(rollouts, 2), "coefficient": 0.3, "advantage": "dr_grpo"}
    step = built(rollouts, SCORES, source="update", **settings)
    assert step.metrics == {}
    assert not any(row.old_logprobs_T.any() for row in step.experience_B)
    assert advantages_of(step) == advantages_of(built(rollouts, SCORES, **settings))
