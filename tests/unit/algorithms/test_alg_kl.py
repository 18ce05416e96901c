"""KL estimators as estimators, and the controllers of the penalty's weight."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.algorithms.kl import KL_ESTIMATORS, AdaptiveKLController, FixedKLController


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


def test_as_losses_they_have_the_gradients_that_the_module_says() -> None:
    policy, reference = distributions()
    logits = policy.clone().requires_grad_()

    def sampled_gradient(name: str) -> torch.Tensor:
        log_p = torch.log_softmax(logits, dim=-1)
        loss = (log_p.exp().detach() * KL_ESTIMATORS[name](log_p, reference)).sum()
        return torch.autograd.grad(loss, logits)[0]

    log_p = torch.log_softmax(logits, dim=-1)
    forward_kl = (log_p.exp() * (log_p - reference)).sum()
    reverse_kl = (reference.exp() * (reference - log_p)).sum()
    zero = torch.zeros_like(logits)
    torch.testing.assert_close(sampled_gradient("k1"), zero)
    torch.testing.assert_close(
        sampled_gradient("k2"), torch.autograd.grad(forward_kl, logits, retain_graph=True)[0]
    )
    torch.testing.assert_close(sampled_gradient("k3"), torch.autograd.grad(reverse_kl, logits)[0])


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


def test_adaptive_controller_follows_the_paper() -> None:
    controller = AdaptiveKLController(initial_coefficient=0.2, target=6.0, horizon=1000)
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
    controller = AdaptiveKLController(initial_coefficient=0.1, target=0.05, horizon=10_000)
    for kl in kls:
        before = controller.coefficient
        controller.update(kl, num_sequences)
        assert controller.coefficient > 0
        assert 0.8 - 1e-12 <= controller.coefficient / before <= 1.2 + 1e-12
        assert (controller.coefficient - before) * (kl - 0.05) >= 0


def test_adaptive_state_survives_a_restart() -> None:
    one = AdaptiveKLController(initial_coefficient=0.2, target=6.0, horizon=100)
    one.update(9.0, 50)
    two = AdaptiveKLController(initial_coefficient=0.7, target=6.0, horizon=100)
    two.load_state_dict(one.state_dict())
    one.update(2.0, 10)
    two.update(2.0, 10)
    assert one.coefficient == two.coefficient != 0.2


def test_fixed_coefficient_is_the_configurations() -> None:
    controller = FixedKLController(coefficient=0.05)
    controller.update(100.0, 10**6)
    controller.load_state_dict(controller.state_dict())
    assert controller.coefficient == 0.05


def test_what_controllers_refuse() -> None:
    adaptive = AdaptiveKLController(initial_coefficient=0.2, target=6.0, horizon=100)
    with pytest.raises(ValueError, match="kl must be finite, got nan"):
        adaptive.update(math.nan, 1)
    with pytest.raises(ValueError, match=r"state must hold 'coefficient' only, got \[\]"):
        adaptive.load_state_dict({})
    with pytest.raises(ValueError, match="a fixed KL controller has no state"):
        FixedKLController(coefficient=0.1).load_state_dict(adaptive.state_dict())
    with pytest.raises(ValueError, match=r"target must be positive, got 0\.0"):
        AdaptiveKLController(initial_coefficient=0.2, target=0.0, horizon=100)
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        AdaptiveKLController(initial_coefficient=0.2, target=1.0, horizon=0)
    with pytest.raises(ValueError, match=r"coefficient must be at least 0, got -0\.1"):
        FixedKLController(coefficient=-0.1)
