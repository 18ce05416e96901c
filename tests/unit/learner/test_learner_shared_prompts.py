"""Learners compute a prompt once for all rows and answers of a pass, and take the same steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.gradient_steps import LEARNERS, learner_of, save_model, step_of

# Of the others each sequence has a prompt of its own: KTO's two answers go through apart.
SHARING = ("policy", "value", "dpo", "reward")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def made(path):
    """A learner by PyTorch alone, and how many tokens each of its passes took."""

    def make(name, *, share_prompts, **settings):
        model = {"path": str(path), "dtype": "float32"}
        settings = {"model": model, "share_prompts": share_prompts, **settings}
        learner = learner_of(name, settings, plain=True)
        taken = []
        learner.model.transformer().get_input_embeddings().register_forward_pre_hook(
            lambda module, inputs: taken.append(inputs[0].numel())
        )
        return learner, taken

    return make


@pytest.mark.parametrize("name", LEARNERS)
def test_a_step_is_the_same_from_fewer_tokens(name, made):
    (shared, few), (plain, many) = (made(name, share_prompts=shares) for shares in (True, False))
    step = step_of(name, plain)
    few.clear(), many.clear()
    metrics, wanted = (step.update(learner, 2) for learner in (shared, plain))
    assert (sum(few) < sum(many)) is (name in SHARING)
    assert len(few) == len(many)
    assert metrics == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    ours, theirs = shared.engine.gradients, plain.engine.gradients
    gap = torch.stack([(ours[n].double() - theirs[n].double()).norm() for n in theirs]).norm()
    assert gap <= 1e-5 * torch.stack([theirs[n].double().norm() for n in theirs]).norm()


@pytest.mark.parametrize("name", ["policy", "value"])
def test_scores_of_rollouts_are_the_same(name, made):
    (shared, few), (plain, many) = (made(name, share_prompts=shares) for shares in (True, False))
    rollouts = [row.rollout for row in step_of(name, plain).rows]
    few.clear(), many.clear()
    plan = ((tuple(range(6)), tuple(range(6, len(rollouts)))),)
    ours, theirs = (
        learner.logprobs(rollouts, plan) if name == "policy" else learner.values(rollouts, plan)
        for learner in (shared, plain)
    )
    assert sum(few) < sum(many) == sum(rollout.num_tokens for rollout in rollouts)
    for own_T, wanted_T in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own_T, wanted_T, atol=2e-5)


def test_a_micro_batch_of_a_model_that_cannot_share_stays_within_the_budget(made):
    """Whoever planned counted each prompt once."""
    learner, taken = made("dpo", share_prompts=True, max_tokens_per_micro_batch=40)
    step = step_of("dpo", learner)
    learner.model.use(learner.model.mode.__class__(packed=True, attention="packed_sdpa"))
    taken.clear()
    step.update(learner, 1)
    longest = max(row.num_tokens for row in step.rows)
    assert len(taken) > 1
    assert max(taken) <= max(40, longest)
