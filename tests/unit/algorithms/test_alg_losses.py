"""Bounds, metrics and refusals of losses, corrections and reductions that no formula shows."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from alg_batches import (
    FLOAT_FIELDS,
    LOSS_CASES,
    make_batch,
    policy_case,
    random_masks,
    reduction_of,
    with_leaves,
)

from rlhf_ray.algorithms.correction import CORRECTIONS, CorrectionInputs
from rlhf_ray.algorithms.metric_sums import values
from rlhf_ray.algorithms.policy_losses import POLICY_LOSSES
from rlhf_ray.config.algorithm import CorrectionConfig
from rlhf_ray.config.algorithm_table import RatioLevel


@pytest.mark.parametrize("gap", [-500.0, 500.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(LOSS_CASES))
def test_absurd_log_ratios_give_finite_losses_and_are_counted(
    name: str, dtype: torch.dtype, gap: float
) -> None:
    batch = make_batch([[True, True], [True, False]], seed=0, dtype=dtype)
    batch = with_leaves(
        replace(
            batch,
            old_logprobs_T=batch.logprobs_T - gap,
            reference_logprobs_T=batch.logprobs_T - gap,
        )
    )
    term = LOSS_CASES[name](batch)
    term.loss_T.sum().backward()
    assert term.loss_T.dtype == dtype
    assert torch.isfinite(term.loss_T).all()
    gradients = [x.grad for x in batch.leaves() if x.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    shares = [share for key, share in values(term.metrics).items() if key.endswith("clamp_share")]
    has_ratio = name.startswith("policy/") or name.startswith("term/kl")
    assert shares == ([1.0] if has_ratio else [])


@pytest.mark.parametrize("level", get_args(RatioLevel))
@pytest.mark.parametrize("name", sorted(CORRECTIONS))
def test_corrections_count_clamped_ratios(name: str, level: RatioLevel) -> None:
    old = torch.tensor([0.0, -30.0, 0.0, -30.0])
    behaviour = torch.tensor([-30.0, 0.0, 0.0, -30.0])
    everything = torch.ones(4, dtype=torch.bool)
    correction = CORRECTIONS[name](
        CorrectionInputs(
            old_logprobs_T=old,
            behaviour_logprobs_T=behaviour,
            mask_T=everything,
            segments_T=torch.arange(4),
            num_sequences=4,
            level=level,
        ),
        CorrectionConfig(cap=2.0, low=0.5),
    )
    assert values(correction.metrics)["clamp_share"] == 0.5
    assert not correction.weights_T.requires_grad


@pytest.mark.parametrize("name", sorted(POLICY_LOSSES))
def test_policy_metrics(name: str) -> None:
    batch = make_batch(random_masks(1), seed=1, dtype=torch.float64)
    metrics = values(policy_case(name)(batch).metrics)
    own = batch.mask_T
    log_ratio = (batch.logprobs_T - batch.old_logprobs_T)[own]
    assert metrics["kl_old"] == pytest.approx((log_ratio.exp() - 1 - log_ratio).mean().item())
    if name == "gspo":
        means = torch.stack(
            [
                (batch.logprobs_T - batch.old_logprobs_T)[own & (batch.segments_T == i)].mean()
                for i in range(len(batch.lens_B))
            ]
        )
        log_ratio = means[batch.segments_T][own]
    ratio, a = log_ratio.exp(), batch.advantages_T[own]
    assert metrics["ratio_mean"] == pytest.approx(ratio.mean().item())
    hard = ((a > 0) & (ratio > 1.28)) | ((a < 0) & ((ratio < 0.8) | (ratio > 3.0)))
    expected = {"ppo": hard, "gspo": hard, "cispo": (ratio > 1.28) | (ratio < 0.8)}
    share = expected[name].double().mean().item() if name in expected else 0.0
    assert metrics["clip_share"] == pytest.approx(share)
    assert (share > 0) == (name in expected), "the batch shows no clipping"


def test_clip_share_is_the_share_of_tokens_without_gradient() -> None:
    batch = with_leaves(make_batch(random_masks(1), seed=1))
    term = policy_case("ppo")(batch)
    term.loss_T.sum().backward()
    gradient = batch.logprobs_T.grad
    assert gradient is not None
    stopped = (gradient[batch.mask_T] == 0).double().mean().item()
    assert values(term.metrics)["clip_share"] == pytest.approx(stopped) != 0.0


@pytest.mark.parametrize("name", ["ppo", "gspo"])
def test_a_token_without_advantage_has_no_gradient_to_clip(name: str) -> None:
    batch = make_batch(random_masks(1), seed=1)
    batch = replace(batch, advantages_T=torch.zeros_like(batch.advantages_T))
    assert values(policy_case(name)(batch).metrics)["clip_share"] == 0.0


@pytest.mark.parametrize("name", sorted(LOSS_CASES))
def test_only_the_model_that_is_trained_gets_a_gradient(name: str) -> None:
    batch = make_batch([[True, True], [True]], seed=0)
    batch = replace(batch, **{n: getattr(batch, n).requires_grad_() for n in FLOAT_FIELDS})
    LOSS_CASES[name](batch).loss_T.sum().backward()
    trained = {"policy": "logprobs_T", "value": "values_T", "term": "logprobs_T"}
    expected = "entropy_T" if name == "term/entropy" else trained[name.split("/")[0]]
    assert [n for n in FLOAT_FIELDS if getattr(batch, n).grad is not None] == [expected]


@pytest.mark.parametrize("name", sorted(POLICY_LOSSES))
def test_on_policy_every_policy_loss_has_the_gradient_of_reinforce(name: str) -> None:
    """At ratio 1 all are the policy gradient; GSPO's is, summed over each sequence."""
    batch = make_batch([[True, True, True], [True, False]], seed=0, dtype=torch.float64)
    batch = with_leaves(replace(batch, old_logprobs_T=batch.logprobs_T))
    policy_case(name)(batch).loss_T.sum().backward()
    expected = torch.where(batch.mask_T, -batch.advantages_T, 0.0)
    torch.testing.assert_close(batch.logprobs_T.grad, expected)


def test_a_constant_reduction_needs_its_length() -> None:
    for length in (None, 0):
        with pytest.raises(ValueError, match=f"constant_length must be positive .* got {length}"):
            reduction_of("constant", [1], constant_length=length)


def test_a_sequence_may_be_spread_over_micro_batches() -> None:
    """`sequence_lens_B` counts it in full, so its parts add up."""
    loss_T = torch.tensor([1.0, 2.0, 6.0, 5.0], dtype=torch.float64)
    mask_T = torch.ones(4, dtype=torch.bool)
    segments_T = torch.tensor([0, 0, 0, 1])
    lens_B = torch.tensor([3, 1])
    reduction = reduction_of("sequence_mean", [3, 1])
    parts = [
        reduction.reduce(loss_T[s], mask_T[s], segments_T[s], lens_B)
        for s in (slice(0, 1), slice(1, 3), slice(3, 4))
    ]
    assert torch.stack(parts).sum().item() == pytest.approx((3.0 + 5.0) / 2, rel=1e-12)


@pytest.mark.parametrize("kind", ["token_mean", "sequence_mean", "constant"])
def test_a_step_without_own_tokens_has_loss_zero(kind: str) -> None:
    reduction = reduction_of(kind, [0], constant_length=4)
    loss_T = torch.full((2,), float("nan"), requires_grad=True)
    mask_T = torch.zeros(2, dtype=torch.bool)
    loss = reduction.reduce(loss_T, mask_T, torch.zeros(2, dtype=torch.int64), torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0.0
    assert loss_T.grad is not None and not loss_T.grad.any()
