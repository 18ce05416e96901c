"""NaN and inf in slots that are not the policy's own reach no loss, gradient, weight or metric."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from alg_batches import (
    FLOAT_FIELDS,
    LOSS_CASES,
    make_batch,
    random_masks,
    reduction_of,
    with_leaves,
)

from rlhf_ray.algorithms.advantages import (
    ADVANTAGES,
    AdvantageInputs,
    estimate_advantages,
)
from rlhf_ray.algorithms.correction import CORRECTIONS, CorrectionInputs
from rlhf_ray.algorithms.metric_sums import values
from rlhf_ray.algorithms.ragged import whiten
from rlhf_ray.config.algorithm import AlgorithmConfig, CorrectionConfig
from rlhf_ray.config.algorithm_table import RatioLevel
from rlhf_ray.experience.rewards import token_rewards

GARBAGE = [math.nan, math.inf, -math.inf, 3e38]


def clean_and_dirty(garbage: float):
    clean = make_batch(random_masks(5), seed=5)
    dirty = replace(
        clean,
        **{n: getattr(clean, n).masked_fill(~clean.mask_T, garbage) for n in FLOAT_FIELDS},
    )
    assert not clean.mask_T.all()
    return clean, dirty


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", sorted(LOSS_CASES))
def test_loss_terms(name: str, garbage: float) -> None:
    results = []
    for batch in map(with_leaves, clean_and_dirty(garbage)):
        term = LOSS_CASES[name](batch)
        reduction = reduction_of("sequence_mean", batch.lens_B.tolist())
        loss = reduction.reduce(term.loss_T, batch.mask_T, batch.segments_T, batch.lens_B)
        loss.backward()
        assert torch.isfinite(term.loss_T).all()
        gradients = [x.grad for x in batch.leaves() if x.grad is not None]
        assert gradients
        results.append((loss.item(), torch.cat(gradients), values(term.metrics)))
    (loss, gradient, metrics), (dirty_loss, dirty_gradient, dirty_metrics) = results
    assert torch.isfinite(dirty_gradient).all()
    assert dirty_loss == loss
    assert torch.equal(dirty_gradient, gradient)
    assert dirty_metrics == metrics


@pytest.mark.parametrize("garbage", GARBAGE)
def test_reduction_of_losses_that_are_garbage_themselves(garbage: float) -> None:
    clean, dirty = clean_and_dirty(garbage)
    loss_T = dirty.values_T.clone().requires_grad_()
    reduction = reduction_of("token_mean", clean.lens_B.tolist())
    reduction.reduce(loss_T, dirty.mask_T, dirty.segments_T, dirty.lens_B).backward()
    expected = clean.mask_T.float() / clean.mask_T.sum()
    torch.testing.assert_close(loss_T.grad, expected)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("level", get_args(RatioLevel))
@pytest.mark.parametrize("name", sorted(CORRECTIONS))
def test_corrections(name: str, level: RatioLevel, garbage: float) -> None:
    clean, dirty = (
        CORRECTIONS[name](
            CorrectionInputs(
                old_logprobs_T=batch.logprobs_T,
                behaviour_logprobs_T=batch.old_logprobs_T,
                mask_T=batch.mask_T,
                segments_T=batch.segments_T,
                num_sequences=len(batch.lens_B),
                level=level,
            ),
            CorrectionConfig(cap=2.0, low=0.5),
        )
        for batch in clean_and_dirty(garbage)
    )
    assert torch.equal(clean.weights_T, dirty.weights_T)
    assert values(clean.metrics) == values(dirty.metrics)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_advantages(name: str, whitened: bool, garbage: float) -> None:
    rewards_BK = torch.arange(14.0).view(7, 2)
    applies_BK = torch.tensor([[True, False]] * 3 + [[True, True]] * 4)
    clean, dirty = (
        estimate_advantages(
            name,
            AdvantageInputs(
                token_rewards_T=batch.returns_T,
                values_T=batch.values_T,
                mask_T=batch.mask_T,
                segments_T=batch.segments_T,
                groups_B=torch.tensor([0, 0, 0, 0, 1, 1, 1]),
                rewards_BK=torch.where(applies_BK, rewards_BK, garbage if dirty_parts else 0.0),
                applies_BK=applies_BK,
                weights_K=torch.ones(2),
            ),
            AlgorithmConfig(advantage=name, gamma=0.97, lam=0.9, whiten_advantages=whitened),
        )
        for dirty_parts, batch in enumerate(clean_and_dirty(garbage))
    )
    assert torch.equal(clean.advantages_T, dirty.advantages_T)
    assert clean.returns_T is None or torch.equal(clean.returns_T, dirty.returns_T)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_whitening_and_token_rewards(garbage: float) -> None:
    clean, dirty = clean_and_dirty(garbage)
    assert torch.equal(whiten(clean.values_T, clean.mask_T), whiten(dirty.values_T, clean.mask_T))
    scores_B = torch.arange(len(clean.lens_B)).float()
    rewards = [
        token_rewards(
            scores_B,
            batch.values_T,
            kl_coefficient=0.1,
            mask_T=batch.mask_T,
            segments_T=batch.segments_T,
        )
        for batch in (clean, dirty)
    ]
    assert torch.equal(*rewards)


@pytest.mark.parametrize("name", sorted(LOSS_CASES))
def test_garbage_in_an_own_token_is_not_hidden(name: str) -> None:
    """The learner skips and counts a step whose loss is not finite; it must get to see it."""
    batch = make_batch([[True, True], [True]], seed=0)
    bad = replace(
        batch,
        **{n: getattr(batch, n).index_fill(0, torch.tensor([1]), math.nan) for n in FLOAT_FIELDS},
    )
    loss_T = LOSS_CASES[name](bad).loss_T
    assert loss_T[1].isnan()
    assert loss_T[2].isfinite()
