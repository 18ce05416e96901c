"""Learning rates: a function of the step."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.config.learners import OptimConfig
from rlhf_ray.learner.optim import learning_rate

SCHEDULES = ("constant", "linear", "cosine")


@given(
    schedule=st.sampled_from(SCHEDULES),
    warmup=st.integers(0, 20),
    total=st.integers(1, 60),
    floor=st.floats(0, 1),
)
def test_rates_rise_then_fall_and_stay_in_bounds(schedule, warmup, total, floor):
    optim = OptimConfig(lr=2.0, schedule=schedule, warmup_steps=warmup, min_lr_share=floor)
    rates = [learning_rate(step, optim=optim, total_steps=total) for step in range(total + 5)]
    assert all(0 <= rate <= 2.0 + 1e-12 for rate in rates)
    assert rates[0] > 0
    rise, fall = rates[: warmup + 1], rates[warmup:]
    assert all(a < b for a, b in pairwise(rise))
    assert all(a >= b - 1e-12 for a, b in pairwise(fall))
    if warmup < len(rates):
        assert rates[warmup] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", [1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.55, 0.1]),
        ("cosine", [1.0, 0.55, 0.1]),
    ],
)
def test_start_middle_and_end(schedule, wanted):
    optim = OptimConfig(lr=1.0, schedule=schedule, min_lr_share=0.1)
    rates = [learning_rate(step, optim=optim, total_steps=10) for step in (0, 5, 10)]
    assert rates == pytest.approx(wanted)
