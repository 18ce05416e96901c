"""Which passes a step makes for log-probabilities, and where the others come from."""

from __future__ import annotations

import pytest
from fake_sink import FakeSink
from fakes import Company, make_config, make_prompts

from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.metrics import MetricsLog

IN_LOSS = {"coefficient": 0.1, "where": "loss"}
ADAPTED = {"model": {"path": "model", "lora": {"rank": 4}}}


class LearningCompany(Company):
    """Its updates say what a policy's own pass does."""

    async def update(self, experience, plan, kl_coefficient):
        metrics = await super().update(experience, plan, kl_coefficient)
        return {**metrics, "kl_ref": 0.4, "mismatch/logprob_abs_max": 0.3}


async def steps_of(tmp_path, algorithm, **settings):
    config = make_config(tmp_path, algorithm=algorithm, **settings)
    company, sink = LearningCompany(config, lambda prompt_id, sample: float(sample)), FakeSink()
    roles = company.roles(reference=config.uses_reference_role)
    log = MetricsLog([sink])
    await OnlineLoop(config, roles, make_prompts(9), Evaluation(config, []), log).run(None)
    return company, sink.steps[config.total_steps]


@pytest.mark.parametrize(
    ("algorithm", "settings", "models", "role"),
    [
        ({"old_logprobs": "trainer"}, {}, ["policy"], True),
        ({"old_logprobs": "engine"}, {}, [], True),
        ({"old_logprobs": "update", "minibatches": 1, "kl": IN_LOSS}, {}, [], True),
        ({"old_logprobs": "trainer"}, {"policy": ADAPTED}, ["policy", "base"], False),
        ({"old_logprobs": "engine"}, {"policy": ADAPTED}, ["base"], False),
        ({"old_logprobs": "engine", "kl": {"coefficient": 0}}, {"policy": ADAPTED}, [], False),
    ],
)
async def test_only_passes_that_are_needed_are_made(tmp_path, algorithm, settings, models, role):
    company, _ = await steps_of(tmp_path, algorithm, total_steps=2, **settings)
    assert company.calls.count("policy.logprobs") == 2 * bool(models)
    assert company.calls.count("reference.logprobs") == 2 * role
    assert company.calls.count("policy.update") == 2
    if models:
        assert company.models == models
    assert company.old == (["by policy"] if "policy" in models else None)
    if not role:
        assert company.reference == (["by base"] if "base" in models else None)


async def test_what_the_update_measured_stands_for_what_no_pass_did(tmp_path):
    """Also for the controller: its fake learner's rate is the coefficient."""
    kl = {**IN_LOSS, "controller": "adaptive", "target": 0.01, "horizon": 8}
    _, before = await steps_of(tmp_path / "a", {"kl": kl}, total_steps=3)
    _, told = await steps_of(
        tmp_path / "b", {"kl": kl, "old_logprobs": "update", "minibatches": 1}, total_steps=3
    )
    assert (before["policy/kl_ref"], told["policy/kl_ref"]) == (0.2, 0.4)
    assert told["policy/kl_coefficient"] == before["policy/kl_coefficient"] > 0.1
    assert told["mismatch/logprob_abs_max"] == 0.3
    assert not any(name.startswith("policy/mismatch") for name in told)
