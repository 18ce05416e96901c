"""Tokens that the policy did not write are context: no product with the vocabulary, no number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from learning import logprobs_of, plan_of

from rlhf_ray.algorithms.correction import CORRECTIONS
from rlhf_ray.learner.rows import rollout_batch
from rlhf_ray.packing import plan_forward


def all_own(row):
    rollout = row.rollout
    return replace(row, rollout=replace(rollout, action_mask_T=np.ones_like(rollout.action_mask_T)))


def test_own_tokens_alone_are_scored(make_policy, rows):
    learner = make_policy()
    num_own = sum(int(row.rollout.action_mask_T.sum()) for row in rows)
    batch = rollout_batch([row.rollout for row in rows], learner.model)
    assert len(batch.predict) == num_own < sum(len(row.rollout.response_ids_T) for row in rows)
    for row, scored_T, whole_T in zip(
        rows,
        logprobs_of(learner, rows),
        logprobs_of(learner, [all_own(row) for row in rows]),
        strict=True,
    ):
        is_own_T = row.rollout.action_mask_T
        np.testing.assert_allclose(scored_T[is_own_T], whole_T[is_own_T], rtol=1e-5, atol=1e-6)
        assert not scored_T[~is_own_T].any() and scored_T.shape == whole_T.shape


def test_a_critic_says_what_follows_the_last_token_whoever_wrote_it(make_value, rows):
    learner = make_value()

    def values_of(some):
        rollouts = [row.rollout for row in some]
        lens = [rollout.num_tokens for rollout in rollouts]
        plan = plan_forward(lens, data_parallel_size=1, max_tokens_per_micro_batch=60, padded=False)
        order = [row for micro_batch in plan[0] for row in micro_batch]
        by_row = dict(zip(order, learner.values(rollouts, plan), strict=True))
        return [by_row[number] for number in range(len(rollouts))]

    for row, own_T, whole_T in zip(
        rows, values_of(rows), values_of([all_own(row) for row in rows]), strict=True
    ):
        is_own_T = np.append(row.rollout.action_mask_T, True)
        np.testing.assert_allclose(own_T[is_own_T], whole_T[is_own_T], rtol=1e-5, atol=1e-6)
        assert not own_T[~is_own_T].any()


def spoiled(row):
    """With no numbers where others wrote, the engine's included."""

    def nan(array):
        return np.where(row.rollout.action_mask_T, array, np.float32(np.nan))

    names = [name for name, value in vars(row).items() if isinstance(value, np.ndarray)]
    rollout = replace(row.rollout, logprobs_T=nan(row.rollout.logprobs_T))
    return replace(row, rollout=rollout, **{name: nan(getattr(row, name)) for name in names})


@pytest.mark.parametrize("old_logprobs", ["trainer", "update"])
@pytest.mark.parametrize("level", ["token", "geometric", "sequence"])
@pytest.mark.parametrize("kind", sorted(CORRECTIONS))
def test_an_update_does_not_look_at_what_stands_for_other_tokens(
    make_policy, rows, kind, level, old_logprobs
):
    algorithm = {"correction": {"kind": kind, "level": level}}
    # Of an engine that is off, so that there is something to correct.
    rows = [
        replace(row, rollout=replace(row.rollout, logprobs_T=row.old_logprobs_T - np.float32(0.2)))
        for row in rows
    ]
    minibatches = 1 if old_logprobs == "update" else 2

    def updated(some):
        learner = make_policy(algorithm=algorithm, old_logprobs=old_logprobs)
        return learner.update(some, plan_of(some, minibatches=minibatches), 0.1)

    clean, dirty = updated(rows), updated([spoiled(row) for row in rows])
    assert clean == dirty and clean["skipped_steps"] == 0


def test_a_critics_update_does_not_look_at_them(make_value, rows):
    clean = make_value().update(rows, plan_of(rows))
    dirty = make_value().update([spoiled(row) for row in rows], plan_of(rows))
    assert clean == dirty and clean["skipped_steps"] == 0
