"""On NVIDIA GPUs: every check of `make gpu-check`, each as a test.

`pytest tests/gpu -m gpu`. The checks that are picked run together, in as few processes as they
need, before the first of these tests.
"""

from __future__ import annotations

import pytest

from benchmarks.gpu_check.checks import CHECKS
from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.report import limit_of, value_of
from benchmarks.gpu_check.runner import Runner

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

# Beyond that of `make gpu-check`: here nobody waits for an answer.
TOTAL_S = 1500.0


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory):
    machine = Machine.here()
    if not machine.cards:
        pytest.skip("needs an NVIDIA GPU")
    picked = {item.callspec.params["check"] for item in request.session.items if is_of_check(item)}
    runner = Runner(
        machine,
        folder=tmp_path_factory.mktemp("checks"),
        scale="card",
        total_s=TOTAL_S,
        tell=lambda outcome: None,
    )
    runner.run([check for check in CHECKS if check in picked])
    return runner.outcomes


def is_of_check(item):
    return getattr(item, "originalname", "") == test_what_the_check_says_holds_here.__name__


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_what_the_check_says_holds_here(check, outcomes):
    outcome = outcomes[check.name]
    if outcome.verdict == "not applicable":
        pytest.skip(outcome.reason)
    beyond = [
        f"{one.name}: {value_of(one)}, {limit_of(one)}"
        for one in outcome.measurements
        if not one.is_within
    ]
    assert outcome.verdict == "passed", "\n".join([*beyond, outcome.reason, outcome.output])
