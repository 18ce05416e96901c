"""Losses of pairs and of labelled answers: oracles, invariances, extremes, metrics."""

from dataclasses import replace
from typing import Any, get_args

import alg_oracles_supervised as oracles
import numpy as np
import pytest
import torch
from alg_pairs import (
    PARAMS,
    TRAINED,
    as_oracle_pairs,
    gradient_of,
    make_labelled,
    make_pairs,
    pick,
    with_leaves,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algorithms.metric_sums import merge, values
from rlhf_ray.algorithms.preference_losses import (
    PAIR_LOSSES,
    PairInputs,
    kto,
    labelled_metrics,
    pair_metrics,
)
from rlhf_ray.algorithms.ratios import MAX_EXPONENT, divergence_score
from rlhf_ray.config.algorithm_table import PREFERENCE_LOSSES, Divergence
from rlhf_ray.config.dpo import PreferenceLossConfig

F64 = {"rtol": 1e-10, "atol": 1e-12}
DIVERGENCES = get_args(Divergence)


def losses_that(what: str) -> list[str]:
    """Pair losses of whose row this is true."""
    return sorted(name for name in PAIR_LOSSES if getattr(PREFERENCE_LOSSES[name], what))


COUPLED = losses_that("is_coupled")
UNCOUPLED = sorted(set(PAIR_LOSSES) - set(COUPLED))


def step_loss(
    name: str, inputs: PairInputs, params: PreferenceLossConfig = PARAMS
) -> tuple[float, list[Tensor]]:
    """This micro-batch's share of the step's loss, and its gradients."""
    inputs = with_leaves(inputs)
    loss = PAIR_LOSSES[name](inputs, params).sum() / inputs.num_pairs
    loss.backward()
    return loss.item(), [gradient_of(getattr(inputs, name)) for name in TRAINED]


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("takes_divergence", {"f_divergence_type": "forward_kl"}),
        ("smooths", {"label_smoothing": 0.3}),
    ],
)
def test_the_table_knows_which_losses_ignore_an_option(what: str, change: dict[str, Any]) -> None:
    inputs, changed = make_pairs(9, 0), PARAMS.model_copy(update=change)
    found = {n for n in PAIR_LOSSES if step_loss(n, inputs)[0] != step_loss(n, inputs, changed)[0]}
    assert sorted(found) == losses_that(what)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_pair_loss_and_gradient(name: str, divergence: Divergence) -> None:
    params = PARAMS.model_copy(update={"f_divergence_type": divergence})
    for seed in range(3):
        inputs = make_pairs(9, seed)
        loss, gradients = step_loss(name, inputs, params)
        assert loss == pytest.approx(oracle_loss(name, inputs, divergence), rel=1e-10)
        for field, gradient in zip(TRAINED, gradients, strict=True):
            expected = central_difference(name, inputs, divergence, field)
            np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-6, atol=1e-8)


def oracle_loss(name: str, inputs: PairInputs, divergence: str) -> float:
    return oracles.PAIRS[name](as_oracle_pairs(inputs), divergence)


def central_difference(name: str, inputs: PairInputs, divergence: str, field: str) -> np.ndarray:
    step, slopes = 1e-5, []
    for row in range(inputs.num_pairs):
        ends = []
        for change in (step, -step):
            moved_B = getattr(inputs, field).clone()
            moved_B[row] += change
            ends.append(oracle_loss(name, replace(inputs, **{field: moved_B}), divergence))
        slopes.append((ends[0] - ends[1]) / (2.0 * step))
    return np.array(slopes)


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_the_divergence_has_a_say_in_some_losses_only(name: str) -> None:
    inputs = make_pairs(9, 0)
    losses = {
        step_loss(name, inputs, PARAMS.model_copy(update={"f_divergence_type": divergence}))[0]
        for divergence in DIVERGENCES
    }
    assert len(losses) == (4 if name in oracles.WITH_DIVERGENCE else 1)


@pytest.mark.parametrize("name", UNCOUPLED)
@settings(max_examples=40)
@given(data=st.data())
def test_micro_batches_add_up_to_the_step(name: str, data: st.DataObject) -> None:
    inputs = make_pairs(data.draw(st.integers(1, 8)), data.draw(st.integers(0, 99)))
    order = data.draw(st.permutations(range(inputs.num_pairs)))
    cut = data.draw(st.integers(0, inputs.num_pairs))
    whole, gradients = step_loss(name, inputs)
    total = 0.0
    for rows in (list(order[:cut]), list(order[cut:])):
        loss, part = step_loss(name, pick(inputs, rows))
        total += loss
        for gradient, expected in zip(part, gradients, strict=True):
            torch.testing.assert_close(gradient, expected[rows], **F64)
    assert total == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("name", COUPLED)
@settings(max_examples=40)
@given(seed=st.integers(0, 99), order=st.permutations(range(7)))
def test_coupled_losses_do_not_see_the_order(name: str, seed: int, order: list[int]) -> None:
    inputs = make_pairs(7, seed)
    whole, gradients = step_loss(name, inputs)
    loss, permuted = step_loss(name, pick(inputs, list(order)))
    assert loss == pytest.approx(whole, rel=1e-10)
    for gradient, expected in zip(permuted, gradients, strict=True):
        torch.testing.assert_close(gradient, expected[list(order)], **F64)


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_losses_are_more_than_their_parts(name: str) -> None:
    inputs = make_pairs(30, 0)
    parts = [step_loss(name, pick(inputs, rows))[0] for rows in ([*range(15)], [*range(15, 30)])]
    assert abs(sum(parts) - step_loss(name, inputs)[0]) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_extreme_log_ratios_stay_finite(
    name: str, divergence: Divergence, dtype: torch.dtype
) -> None:
    far = torch.tensor([-2e4, -1e4, -50.0, -1e-6, 0.0], dtype=dtype)
    policy_B, reference_B = (x.flatten() for x in torch.meshgrid(far, far, indexing="ij"))
    n = len(policy_B)
    for alpha, tau in ((0.5, 0.05), (3.0, 5.0)):
        params = PARAMS.model_copy(
            update={
                "f_divergence_type": divergence,
                "f_alpha_divergence_coef": alpha,
                "discopop_tau": tau,
            }
        )
        for shift in (0, 7):
            inputs = PairInputs(
                chosen_logps_B=policy_B,
                reference_chosen_logps_B=reference_B,
                rejected_logps_B=policy_B.roll(shift),
                reference_rejected_logps_B=reference_B.flip(0),
                chosen_lens_B=torch.ones(n, dtype=torch.int64),
                rejected_lens_B=torch.full((n,), 3),
                num_pairs=n,
                num_chosen_tokens=n,
            )
            loss, gradients = step_loss(name, inputs, params)
            assert np.isfinite(loss)
            assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_no_gradient_reaches_the_reference(name: str, divergence: Divergence) -> None:
    inputs = with_leaves(make_pairs(5, 0))
    references = [inputs.reference_chosen_logps_B, inputs.reference_rejected_logps_B]
    for reference_B in references:
        reference_B.requires_grad_()
    params = PARAMS.model_copy(update={"f_divergence_type": divergence})
    PAIR_LOSSES[name](inputs, params).sum().backward()
    assert all(reference_B.grad is None for reference_B in references)


@pytest.mark.parametrize("name", ["sigmoid", "robust", "hinge", "exo_pair", "discopop", "aot"])
@settings(max_examples=40)
@given(shift=st.floats(-50.0, 50.0))
def test_what_both_answers_gain_alike_does_not_count(name: str, shift: float) -> None:
    inputs = make_pairs(6, 0)
    shifted = replace(
        inputs,
        chosen_logps_B=inputs.chosen_logps_B + shift,
        rejected_logps_B=inputs.rejected_logps_B + shift,
    )
    assert step_loss(name, shifted)[0] == pytest.approx(step_loss(name, inputs)[0], rel=1e-9)


@pytest.mark.parametrize("name", losses_that("needs_reference"))
@settings(max_examples=40)
@given(shift=st.floats(-50.0, 50.0))
def test_what_policy_and_reference_gain_alike_does_not_count(name: str, shift: float) -> None:
    inputs = make_pairs(6, 0)
    fields = ["chosen_logps_B", "reference_chosen_logps_B"]
    shifted = replace(inputs, **{field: getattr(inputs, field) + shift for field in fields})
    assert step_loss(name, shifted)[0] == pytest.approx(step_loss(name, inputs)[0], rel=1e-9)


@pytest.mark.parametrize("name", sorted(set(PAIR_LOSSES) - set(losses_that("needs_reference"))))
def test_reference_free_losses_do_not_look_at_the_reference(name: str) -> None:
    inputs = make_pairs(6, 0)
    nan_B = torch.full_like(inputs.chosen_logps_B, torch.nan)
    blind = replace(inputs, reference_chosen_logps_B=nan_B, reference_rejected_logps_B=nan_B)
    assert step_loss(name, blind)[0] == step_loss(name, inputs)[0]


def test_alpha_divergence_meets_both_kl_divergences() -> None:
    log_ratios_B = torch.linspace(-5.0, 5.0, 21, dtype=torch.float64)

    def score(kind: Divergence, alpha: float = 0.5) -> Tensor:
        return divergence_score(log_ratios_B, kind, alpha)

    torch.testing.assert_close(score("alpha_divergence", 0.0), score("forward_kl"), **F64)
    assert torch.equal(score("alpha_divergence", 1.0), score("reverse_kl"))
    near = score("alpha_divergence", 1.0 + 2e-6)
    torch.testing.assert_close(near, score("reverse_kl"), rtol=1e-5, atol=1e-12)


def test_exo_needs_label_smoothing() -> None:
    with pytest.raises(ValueError, match="label_smoothing must be above 0 for exo_pair"):
        PAIR_LOSSES["exo_pair"](
            make_pairs(2, 0), PARAMS.model_copy(update={"label_smoothing": 0.0})
        )


@pytest.mark.parametrize("seed", range(3))
def test_kto_and_gradient(seed: int) -> None:
    inputs = make_labelled(8, seed)
    logps_B = inputs.logps_B.clone().requires_grad_()
    z0 = inputs.mismatch_kl.clone().requires_grad_()
    loss = kto(replace(inputs, logps_B=logps_B, mismatch_kl=z0), PARAMS).mean()
    loss.backward()

    def oracle(logps: np.ndarray) -> float:
        reference = inputs.reference_logps_B.numpy()
        return oracles.kto(logps, reference, inputs.desirable_B.tolist(), inputs.mismatch_kl.item())

    logps = inputs.logps_B.numpy()
    assert loss.item() == pytest.approx(oracle(logps), rel=1e-10)
    units = 1e-5 * np.eye(8)
    expected = [(oracle(logps + unit) - oracle(logps - unit)) / 2e-5 for unit in units]
    assert logps_B.grad is not None
    np.testing.assert_allclose(logps_B.grad.numpy(), expected, rtol=1e-6, atol=1e-9)
    assert z0.grad is None


@pytest.mark.parametrize("log_ratio", [-1e4, 1e4])
def test_kto_is_finite_at_the_extremes(log_ratio: float) -> None:
    inputs = make_labelled(6, 0)
    logps_B = (inputs.reference_logps_B + log_ratio).requires_grad_()
    loss_B = kto(replace(inputs, logps_B=logps_B), PARAMS)
    loss_B.sum().backward()
    assert loss_B.isfinite().all()
    assert logps_B.grad is not None
    assert logps_B.grad.isfinite().all()


def test_pair_metrics_of_micro_batches_are_those_of_the_step() -> None:
    inputs = make_pairs(9, 0)
    parts = [pick(inputs, rows) for rows in ([0], [1, 2, 3, 4, 5], [], [6, 7, 8])]
    got = values(merge(pair_metrics(part, PARAMS) for part in parts))
    pairs = as_oracle_pairs(inputs)
    chosen, rejected = (np.array([oracles.BETA * np.log(p.u[i]) for p in pairs]) for i in (0, 1))
    assert got == pytest.approx(
        {
            "rewards/chosen": chosen.mean(),
            "rewards/rejected": rejected.mean(),
            "rewards/accuracies": np.mean(chosen > rejected),
            "rewards/margins": np.mean(chosen - rejected),
            "logps/chosen": np.mean([p.chosen for p in pairs]),
            "logps/rejected": np.mean([p.rejected for p in pairs]),
            "clamp_share": 0.0,
        },
        rel=1e-10,
    )


def test_clamped_scores_are_counted_and_constant() -> None:
    inputs = make_pairs(4, 0)
    chosen_B = inputs.reference_chosen_logps_B - MAX_EXPONENT * torch.tensor([0.5, 1.1, 2.0, 0.9])
    inputs = replace(inputs, chosen_logps_B=chosen_B)
    for divergence, share in (("reverse_kl", 0.0), ("js_divergence", 0.0), ("forward_kl", 0.25)):
        params = PARAMS.model_copy(update={"f_divergence_type": divergence})
        assert values(pair_metrics(inputs, params))["clamp_share"] == share
    scores_B = divergence_score(inputs.chosen_log_ratios_B, "forward_kl", 0.5)
    assert scores_B[1] == scores_B[2] < scores_B[3]


def test_labelled_metrics_of_micro_batches_are_those_of_the_step() -> None:
    inputs = make_labelled(9, 1)
    parts = [
        replace(
            inputs,
            logps_B=inputs.logps_B[rows],
            reference_logps_B=inputs.reference_logps_B[rows],
            desirable_B=inputs.desirable_B[rows],
        )
        for rows in ([8], [0, 1, 2, 3], [4, 5, 6, 7])
    ]
    got = values(merge(labelled_metrics(part, PARAMS) for part in parts))
    rewards = oracles.BETA * (inputs.logps_B - inputs.reference_logps_B).numpy()
    logps, good = inputs.logps_B.numpy(), inputs.desirable_B.numpy()
    assert got == pytest.approx(
        {
            "rewards/chosen": rewards[good].mean(),
            "rewards/rejected": rewards[~good].mean(),
            "rewards/margins": rewards[good].mean() - rewards[~good].mean(),
            "logps/chosen": logps[good].mean(),
            "logps/rejected": logps[~good].mean(),
            "kl": inputs.mismatch_kl.item(),
        },
        rel=1e-10,
    )
    only_good = values(
        labelled_metrics(replace(parts[0], desirable_B=torch.tensor([True])), PARAMS)
    )
    assert set(only_good) == {"rewards/chosen", "logps/chosen", "kl"}
