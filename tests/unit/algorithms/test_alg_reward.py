"""Losses of rankings and of SFT tokens, and calibration."""

import math
from dataclasses import replace
from typing import get_args

import alg_oracles_supervised as oracles
import numpy as np
import pytest
import torch
from alg_pairs import make_rankings
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algorithms.calibration import (
    calibration,
    expected_calibration_error,
    pair_confidences,
)
from rlhf_ray.algorithms.metric_sums import merge, values
from rlhf_ray.algorithms.supervised_losses import (
    REWARD_LOSSES,
    SFT_LOSSES,
    RankingInputs,
    RewardLoss,
    centering,
    reward_metrics,
)
from rlhf_ray.config import supervised

F64 = {"rtol": 1e-10, "atol": 1e-12}
LENS = [2, 5, 3, 2, 4]
LOSSES: dict[str, RewardLoss] = {
    **{name: REWARD_LOSSES[name] for name in REWARD_LOSSES},
    "centering": centering,
}
ORACLES = {**oracles.REWARDS, "centering": oracles.centering}
lens_of_rankings = st.lists(st.integers(2, 6), min_size=1, max_size=5)


def losses_and_gradients(loss: RewardLoss, inputs: RankingInputs) -> tuple[Tensor, Tensor]:
    scores_BK = inputs.scores_BK.clone().requires_grad_()
    loss_B = loss(replace(inputs, scores_BK=scores_BK))
    loss_B.sum().backward()
    assert scores_BK.grad is not None
    return loss_B.detach(), scores_BK.grad


def pick(inputs: RankingInputs, rows: list[int]) -> RankingInputs:
    return RankingInputs(
        scores_BK=inputs.scores_BK[rows],
        mask_BK=inputs.mask_BK[rows],
        tiers_BK=inputs.tiers_BK[rows],
        margins_B=inputs.margins_B[rows],
    )


def test_configuration_and_registries_have_the_same_names() -> None:
    reward = supervised.RmConfig.model_fields["loss_type"].annotation
    sft = supervised.SftConfig.model_fields["loss_type"].annotation
    assert set(get_args(reward)) == set(REWARD_LOSSES)
    assert set(get_args(sft)) == set(SFT_LOSSES)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_reward_loss_and_gradient(name: str, seed: int, ties: bool) -> None:
    inputs = make_rankings(LENS, seed, ties=ties)
    loss_B, gradient_BK = losses_and_gradients(LOSSES[name], inputs)
    for b, length in enumerate(LENS):
        scores, margin = inputs.scores_BK[b, :length].numpy(), inputs.margins_B[b].item()
        tiers = inputs.tiers_BK[b, :length].numpy()
        wanted = ORACLES[name](scores, margin, tiers)
        assert loss_B[b].item() == pytest.approx(wanted, rel=1e-10, abs=1e-14)
        slopes = [
            (
                ORACLES[name](scores + unit, margin, tiers)
                - ORACLES[name](scores - unit, margin, tiers)
            )
            / 2e-5
            for unit in 1e-5 * np.eye(length)
        ]
        np.testing.assert_allclose(gradient_BK[b, :length].numpy(), slopes, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_masked_slots_do_not_leak(name: str, fill: float) -> None:
    clean, filled = (make_rankings(LENS, 0, f, ties=True) for f in (0.0, fill))
    filled = replace(filled, tiers_BK=torch.where(filled.mask_BK, filled.tiers_BK, 99))
    for got, want in zip(
        losses_and_gradients(LOSSES[name], filled),
        losses_and_gradients(LOSSES[name], clean),
        strict=True,
    ):
        assert torch.equal(got, want)
    assert values(reward_metrics(filled)) == values(reward_metrics(clean))


@pytest.mark.parametrize("name", sorted(LOSSES))
@settings(max_examples=40)
@given(lens=lens_of_rankings, seed=st.integers(0, 99), data=st.data())
def test_rows_and_padding_are_of_no_account(
    name: str, lens: list[int], seed: int, data: st.DataObject
) -> None:
    inputs = make_rankings(lens, seed, ties=seed % 2 == 1)
    whole_B, gradient_BK = losses_and_gradients(LOSSES[name], inputs)
    for b in data.draw(st.permutations(range(len(lens)))):
        alone = pick(inputs, [b])
        narrow = replace(
            alone,
            scores_BK=alone.scores_BK[:, : lens[b]],
            mask_BK=alone.mask_BK[:, : lens[b]],
            tiers_BK=alone.tiers_BK[:, : lens[b]],
        )
        loss_B, gradient = losses_and_gradients(LOSSES[name], narrow)
        torch.testing.assert_close(loss_B, whole_B[[b]], **F64)
        torch.testing.assert_close(gradient, gradient_BK[[b], : lens[b]], **F64)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_row_without_a_pair_has_no_loss(name: str) -> None:
    inputs = make_rankings([1, 2], 0)
    inputs.mask_BK[1] = False
    loss_B, gradient_BK = losses_and_gradients(LOSSES[name], inputs)
    assert not loss_B.any()
    assert not gradient_BK.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_extreme_scores_stay_finite(name: str, dtype: torch.dtype) -> None:
    far = torch.tensor([-1e4, 0.0, 1e4], dtype=dtype)
    scores_BK = torch.cartesian_prod(far, far, far)
    for num_answers in (2, 3):
        inputs = RankingInputs(
            scores_BK=scores_BK,
            mask_BK=(torch.arange(3) < num_answers).expand_as(scores_BK),
            tiers_BK=torch.arange(3).expand_as(scores_BK),
            margins_B=torch.full((len(scores_BK),), 1e4, dtype=dtype),
        )
        loss_B, gradient_BK = losses_and_gradients(LOSSES[name], inputs)
        assert loss_B.isfinite().all()
        assert gradient_BK.isfinite().all()


@pytest.mark.parametrize("name", sorted(REWARD_LOSSES))
@given(shift=st.floats(-100.0, 100.0))
def test_only_differences_of_scores_count(name: str, shift: float) -> None:
    inputs = make_rankings(LENS, 0)
    shifted = replace(inputs, scores_BK=inputs.scores_BK + shift)
    loss = REWARD_LOSSES[name]
    torch.testing.assert_close(loss(shifted), loss(inputs), rtol=1e-9, atol=1e-11)


@given(seed=st.integers(0, 999))
def test_all_losses_are_one_for_pairs_without_margin(seed: int) -> None:
    inputs = make_rankings([2] * 6, seed)
    inputs = replace(inputs, margins_B=torch.zeros(6, dtype=torch.float64))
    expected = losses_and_gradients(REWARD_LOSSES["bradley_terry"], inputs)
    for name in ("logexp", "plackett_luce"):
        got = losses_and_gradients(REWARD_LOSSES[name], inputs)
        torch.testing.assert_close(got, expected, **F64)


@pytest.mark.parametrize("name", sorted(REWARD_LOSSES))
def test_the_order_of_ties_does_not_matter(name: str) -> None:
    tiers_BK = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 1, 1]])
    inputs = replace(make_rankings([5, 5], 0), tiers_BK=tiers_BK)
    order = [1, 0, 3, 2, 4]
    swapped = replace(inputs, scores_BK=inputs.scores_BK[:, order])
    loss_B, gradient_BK = losses_and_gradients(REWARD_LOSSES[name], inputs)
    again_B, swapped_BK = losses_and_gradients(REWARD_LOSSES[name], swapped)
    torch.testing.assert_close(again_B[:1], loss_B[:1], **F64)
    torch.testing.assert_close(swapped_BK[:1], gradient_BK[:1, order], **F64)
    # A row in which the swap is none of ties has another loss.
    assert float(again_B[1]) != pytest.approx(float(loss_B[1]))


def test_reward_metrics_of_micro_batches_are_those_of_the_step() -> None:
    inputs = make_rankings(LENS, 0)
    inputs.scores_BK[0, :2] = 0.25  # equal scores are not in order
    parts = [pick(inputs, rows) for rows in ([0], [1, 2], [], [3, 4])]
    got = values(merge(reward_metrics(part) for part in parts))
    rankings = [inputs.scores_BK[b, :length].tolist() for b, length in enumerate(LENS)]
    gaps = [r[i] - r[j] for r in rankings for i in range(len(r)) for j in range(i + 1, len(r))]
    assert got == pytest.approx(
        {
            "accuracy": np.mean([gap > 0 for gap in gaps]),
            "margin": np.mean(gaps),
            "reward_mean": np.mean([s for r in rankings for s in r]),
            "reward_chosen": np.mean([r[0] for r in rankings]),
            "reward_rejected": np.mean([s for r in rankings for s in r[1:]]),
        },
        rel=1e-10,
    )


def test_reward_metrics_leave_ties_out() -> None:
    inputs = RankingInputs(
        scores_BK=torch.tensor([[3.0, 1.0, 2.0, 0.0]]),
        mask_BK=torch.ones(1, 4, dtype=torch.bool),
        tiers_BK=torch.tensor([[0, 0, 1, 1]]),
        margins_B=torch.zeros(1),
    )
    assert values(reward_metrics(inputs)) == pytest.approx(
        {  # of the four pairs 1 against 2 alone is in the wrong order
            "accuracy": 0.75,
            "margin": (1.0 + 3.0 - 1.0 + 1.0) / 4,
            "reward_mean": 1.5,
            "reward_chosen": 2.0,
            "reward_rejected": 1.0,
        }
    )


@pytest.mark.parametrize("name", sorted(SFT_LOSSES))
def test_sft_loss_and_gradient(name: str) -> None:
    logprobs = -np.random.default_rng(0).exponential(2.0, 50)
    logprobs_T = torch.tensor(logprobs, requires_grad=True)
    loss_T = SFT_LOSSES[name](logprobs_T)
    loss_T.sum().backward()
    assert logprobs_T.grad is not None
    loss, gradient = oracles.SFT[name](logprobs)
    np.testing.assert_allclose(loss_T.detach().numpy(), loss, **F64)
    np.testing.assert_allclose(logprobs_T.grad.numpy(), gradient, **F64)


def test_calibration_by_hand() -> None:
    bins = calibration([0.5, 0.6, 0.75, 0.95, 1.0, 0.9], [0, 1, 1, 1, 1, 0], num_bins=4)
    assert [(b.count, b.confidence, b.accuracy) for b in bins] == [
        (1, 0.5, 0.0),
        (2, pytest.approx(0.675), 1.0),
        (3, pytest.approx(0.95), pytest.approx(2 / 3)),
    ]
    expected = (1 * 0.5 + 2 * 0.325 + 3 * (0.95 - 2 / 3)) / 6
    assert expected_calibration_error(bins) == pytest.approx(expected)


@given(seed=st.integers(0, 999), num_bins=st.integers(1, 20))
def test_bins_hold_every_prediction_once(seed: int, num_bins: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities, correct = rng.random(100), rng.random(100) < 0.5
    bins = calibration(probabilities, correct, num_bins)
    assert sum(b.count for b in bins) == 100
    assert sum(b.count * b.accuracy for b in bins) == pytest.approx(correct.sum())
    assert sum(b.count * b.confidence for b in bins) == pytest.approx(probabilities.sum())
    assert sorted(b.confidence for b in bins) == [b.confidence for b in bins]
    assert 0.0 <= expected_calibration_error(bins) <= 1.0


def test_scores_that_generate_the_labels_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    gaps = rng.normal(0.0, 2.0, 200_000)
    labels_agree = rng.random(len(gaps)) < 1.0 / (1.0 + np.exp(-gaps))
    gaps = np.where(labels_agree, gaps, -gaps)
    assert expected_calibration_error(calibration(*pair_confidences(gaps), num_bins=10)) < 0.01
    overconfident = pair_confidences(3.0 * gaps)
    assert expected_calibration_error(calibration(*overconfident, num_bins=10)) > 0.1


def test_confidences_of_extreme_and_equal_scores() -> None:
    confidences, correct = pair_confidences([1e4, -1e4, 0.0])
    assert confidences.tolist() == [1.0, 1.0, 0.5]
    assert correct.tolist() == [True, False, False]


def test_nothing_to_calibrate() -> None:
    assert calibration([], [], num_bins=10) == ()
    assert math.isnan(expected_calibration_error(()))


@pytest.mark.parametrize(
    ("probabilities", "correct", "num_bins", "message"),
    [
        ([0.5], [True], 0, "num_bins must be at least 1, got 0"),
        ([0.5, 0.5], [True], 10, r"correct_B must have the shape \(2,\), got \(1,\)"),
        ([0.5, 1.5], [True, True], 10, r"probabilities_B must lie in 0 to 1, got 1\.5"),
        ([math.nan], [True], 10, "probabilities_B must lie in 0 to 1, got nan"),
    ],
)
def test_what_cannot_be_calibrated(
    probabilities: list[float], correct: list[bool], num_bins: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        calibration(probabilities, correct, num_bins)
