"""KL estimators as estimators, and the controllers of the penalty's weight."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algorithms.kl import KL_ESTIMATORS, KLController
from rlhf_ray.algorithms.regularizers import LOSS_TERMS, LossTermInputs
from rlhf_ray.config.algorithm import KlConfig


def distributions() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(2, 6, dtype=torch.float64)
    policy, reference = torch.log_softmax(logits, dim=-1)
    return policy, reference


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_unbiased_estimators_have_the_kl_as_their_mean(name: str) -> None:
    policy, reference = distributions()
    true_kl = (policy.exp() * (policy - reference)).sum()
    mean = (policy.exp() * KL_ESTIMATORS[name](policy, reference)).sum()
    torch.testing.assert_close(mean, true_kl)


def gradients_of_the_kl() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, reference, and the exact gradients of KL(policy || reference) and the other way."""
    policy, reference = distributions()
    logits = policy.clone().requires_grad_()
    log_p = torch.log_softmax(logits, dim=-1)
    to_reference = (log_p.exp() * (log_p - reference)).sum()
    from_reference = (reference.exp() * (reference - log_p)).sum()
    [one] = torch.autograd.grad(to_reference, logits, retain_graph=True)
    [other] = torch.autograd.grad(from_reference, logits)
    return logits, reference, one, other


def sampled_gradient(logits: Tensor, sampler: Tensor, loss_of: Callable[[Tensor], Tensor]):
    """Of the loss in expectation over tokens that `sampler` draws, by enumeration of them all."""
    loss = (sampler.exp().detach() * loss_of(torch.log_softmax(logits, dim=-1))).sum()
    return torch.autograd.grad(loss, logits)[0]


def test_as_losses_they_have_the_gradients_that_the_module_says() -> None:
    logits, reference, to_reference, from_reference = gradients_of_the_kl()
    on_policy = torch.log_softmax(logits, dim=-1)

    def gradient(name: str) -> Tensor:
        return sampled_gradient(
            logits, on_policy, lambda log_p: KL_ESTIMATORS[name](log_p, reference)
        )

    torch.testing.assert_close(gradient("k1"), torch.zeros_like(logits))
    torch.testing.assert_close(gradient("k2"), to_reference)
    torch.testing.assert_close(gradient("k3"), from_reference)


def test_as_rewards_only_k1_has_the_gradient_of_the_kl() -> None:
    """A penalty -k on the reward is the loss k log π, k held."""
    logits, reference, to_reference, _ = gradients_of_the_kl()
    on_policy = torch.log_softmax(logits, dim=-1)

    def gradient(name: str) -> Tensor:
        return sampled_gradient(
            logits,
            on_policy,
            lambda log_p: KL_ESTIMATORS[name](log_p, reference).detach() * log_p,
        )

    torch.testing.assert_close(gradient("k1"), to_reference)
    for name in ("k2", "k3"):
        error = (gradient(name) - to_reference).norm() / to_reference.norm()
        assert error > 0.3, f"{name} is {error:.0%} off"


@pytest.mark.parametrize("distance", [0.0, 0.3, 1.5])
def test_weighted_k3_has_the_gradient_of_the_kl_whoever_sampled(distance: float) -> None:
    logits, reference, to_reference, _ = gradients_of_the_kl()
    generator = torch.Generator().manual_seed(1)
    away = distance * torch.randn(len(logits), generator=generator, dtype=torch.float64)
    sampler = torch.log_softmax(logits.detach() + away, dim=-1)

    def gradient(name: str) -> Tensor:
        return sampled_gradient(
            logits,
            sampler,
            lambda log_p: (
                LOSS_TERMS[name](
                    LossTermInputs(
                        mask_T=torch.ones(len(logits), dtype=torch.bool),
                        logprobs_T=log_p,
                        reference_logprobs_T=reference,
                        old_logprobs_T=sampler,
                        entropy_T=torch.zeros_like(reference),
                    )
                ).loss_T
            ),
        )

    torch.testing.assert_close(gradient("kl_k3_weighted"), to_reference, rtol=1e-12, atol=1e-14)
    assert (gradient("kl_k3") - to_reference).norm() > 0.1 * to_reference.norm()


@pytest.mark.parametrize("name", sorted(KL_ESTIMATORS))
def test_tokens_that_a_model_masks_have_a_finite_kl(name: str) -> None:
    never, likely = -math.inf, -0.1
    logprobs = torch.tensor([never, likely, never, likely]).requires_grad_()
    reference = torch.tensor([likely, never, never, likely])
    kl = KL_ESTIMATORS[name](logprobs, reference)
    assert torch.isfinite(kl).all()
    assert kl[2:].tolist() == [0.0, 0.0], "two that mask the same word agree"
    kl.sum().backward()
    assert logprobs.grad is not None and torch.isfinite(logprobs.grad).all()


@pytest.mark.parametrize("name", sorted(KL_ESTIMATORS))
@pytest.mark.parametrize("gap", [-1e4, -21.0, 21.0, 1e4])
def test_log_ratios_are_clamped(name: str, gap: float) -> None:
    reference = torch.zeros(1)
    far = torch.full((1,), gap).requires_grad_()
    kl = KL_ESTIMATORS[name](far, reference)
    assert torch.equal(kl, KL_ESTIMATORS[name](torch.tensor([math.copysign(20.0, gap)]), reference))
    assert torch.isfinite(kl).all()
    kl.sum().backward()
    assert far.grad is not None and far.grad.item() == 0.0


def test_k3_keeps_its_digits_near_zero() -> None:
    small = torch.tensor([1e-3], dtype=torch.float32)
    kl = KL_ESTIMATORS["k3"](torch.zeros(1), small)
    assert kl.item() == pytest.approx(math.expm1(1e-3) - 1e-3, rel=1e-3)


def adaptive(coefficient: float, *, target: float, horizon: int) -> KLController:
    return KLController(
        KlConfig(controller="adaptive", coefficient=coefficient, target=target, horizon=horizon)
    )


def test_adaptive_controller_follows_the_paper() -> None:
    controller = adaptive(0.2, target=6.0, horizon=1000)
    coefficient = 0.2
    for kl in (6.0, 6.6, 5.7, 60.0, 0.0, -3.0):
        controller.update(kl, 100)
        coefficient *= 1 + min(max(kl / 6.0 - 1, -0.2), 0.2) * 100 / 1000
        assert controller.coefficient == pytest.approx(coefficient, rel=1e-12)


@given(
    kls=st.lists(st.floats(-1e6, 1e6), max_size=20),
    num_sequences=st.integers(1, 10**7),
)
def test_adaptive_coefficient_stays_positive_and_moves_towards_the_target(
    kls: list[float], num_sequences: int
) -> None:
    controller = adaptive(0.1, target=0.05, horizon=10_000)
    for kl in kls:
        before = controller.coefficient
        controller.update(kl, num_sequences)
        assert controller.coefficient > 0
        assert 0.8 - 1e-12 <= controller.coefficient / before <= 1.2 + 1e-12
        assert (controller.coefficient - before) * (kl - 0.05) >= 0


def test_adaptive_state_survives_a_restart() -> None:
    one = adaptive(0.2, target=6.0, horizon=100)
    one.update(9.0, 50)
    two = adaptive(0.7, target=6.0, horizon=100)
    two.load_state_dict(one.state_dict())
    one.update(2.0, 10)
    two.update(2.0, 10)
    assert one.coefficient == two.coefficient != 0.2


def test_fixed_coefficient_is_the_configurations() -> None:
    controller = KLController(KlConfig(coefficient=0.05))
    controller.update(100.0, 10**6)
    controller.load_state_dict(controller.state_dict())
    assert controller.coefficient == 0.05


def test_what_controllers_refuse() -> None:
    controller = adaptive(0.2, target=6.0, horizon=100)
    with pytest.raises(ValueError, match="kl must be finite, got nan"):
        controller.update(math.nan, 1)
    with pytest.raises(ValueError, match=r"state must hold 'coefficient' only, got \[\]"):
        controller.load_state_dict({})
    with pytest.raises(ValueError, match="a fixed KL controller has no state"):
        KLController(KlConfig(coefficient=0.1)).load_state_dict(controller.state_dict())
