"""Where log-probabilities of the policy and the reference come from, by configuration."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.online import GrpoConfig, PpoConfig

GPU = {"gpus_per_rank": 1}
ON_GPUS = {"placement": {"policy": GPU, "rollout": GPU}}
ONE_STEP = {"epochs": 1, "minibatches": 1}
TWO_STEPS = {"epochs": 1, "minibatches": 2}
IN_REWARD = {"kl": {"coefficient": 0.1, "where": "reward"}}
LORA = {"model": {"path": "model", "lora": {"rank": 4}}}


def job(kind, algorithm=None, **settings):
    return kind.model_validate(
        {
            "data": {"path": "prompts.jsonl"},
            "policy": {"model": {"path": "model"}},
            "reward": {"functions": [{"path": "a:b"}]},
            "algorithm": algorithm or {},
            **settings,
        }
    )


@pytest.mark.parametrize(
    ("kind", "algorithm", "settings", "source"),
    [
        (GrpoConfig, {}, {}, "update"),
        (GrpoConfig, {"kl": {"coefficient": 0.1}}, ON_GPUS, "update"),
        (GrpoConfig, {}, {"max_staleness": 2}, "update"),
        (GrpoConfig, TWO_STEPS, {}, "engine"),
        (GrpoConfig, {"epochs": 2}, {}, "engine"),
        (GrpoConfig, {**ONE_STEP, **IN_REWARD}, {}, "engine"),
        (PpoConfig, {}, {}, "engine"),
        (PpoConfig, {}, {"rollout": {"temperature": 0.7}}, "engine"),
        (PpoConfig, {}, {"max_staleness": 1}, "trainer"),
        (PpoConfig, {}, ON_GPUS, "trainer"),
        (PpoConfig, {}, {**ON_GPUS, "publication": {"max_logprob_gap": 1e-3}}, "engine"),
        (PpoConfig, {}, {"publication": {"max_logprob_gap": 0.1}}, "trainer"),
        (PpoConfig, {}, {"rollout": {"dtype": "bfloat16"}}, "trainer"),
        (PpoConfig, {}, {"rollout": {"engine": {"logprobs_mode": "raw_logprobs"}}}, "trainer"),
        (PpoConfig, {}, {"rollout": {"engine": {"logits_processors": ["a:B"]}}}, "trainer"),
        (PpoConfig, {"old_logprobs": "engine"}, ON_GPUS, "engine"),
        (PpoConfig, {"old_logprobs": "trainer"}, {}, "trainer"),
    ],
)
def test_the_first_that_is_exact_is_taken(kind, algorithm, settings, source):
    assert job(kind, algorithm, **settings).old_logprobs == source


@pytest.mark.parametrize(
    ("algorithm", "settings", "said"),
    [
        ({**TWO_STEPS, "old_logprobs": "update"}, {}, "needs epochs 1, minibatches 1"),
        ({**IN_REWARD, "old_logprobs": "update"}, {}, "no KL in the reward"),
        ({"old_logprobs": "engine"}, {"max_staleness": 1}, "with max_staleness 1"),
        (
            {"old_logprobs": "engine"},
            {"rollout": {"engine": {"logprobs_mode": "raw_logprobs"}}},
            "logprobs_mode is raw_logprobs",
        ),
        ({"old_logprobs": "engine"}, {"rollout": {"temperature": 0.001}}, "below 0.01"),
    ],
)
def test_what_would_be_another_policys_is_refused(algorithm, settings, said):
    with pytest.raises(ValidationError, match=said):
        job(GrpoConfig, algorithm, **settings)


@pytest.mark.parametrize(
    ("settings", "models", "has_role"),
    [
        ({}, (), True),
        ({"policy": LORA}, ("base",), False),
        ({"policy": LORA, "reference": {"model": {"path": "model"}}}, ("base",), False),
        ({"policy": LORA, "reference": {"model": {"path": "other"}}}, (), True),
        ({"policy": LORA, "reference_kind": "role"}, (), True),
        ({"policy": LORA, "max_staleness": 1}, ("policy", "base"), False),
    ],
)
def test_a_policy_with_an_adapter_has_its_reference_below(settings, models, has_role):
    config = job(PpoConfig, **settings)
    assert config.scored_models == models
    assert ("reference" in config.groups) == ("reference" in config.models) == has_role
    of_pairs = DpoConfig.model_validate(
        {
            "data": {"path": "pairs.jsonl"},
            "policy": {"model": {"path": "model"}},
            **{key: value for key, value in settings.items() if key != "max_staleness"},
        }
    )
    assert of_pairs.uses_reference_role == has_role


def test_without_an_adapter_there_is_nothing_below():
    with pytest.raises(ValidationError, match=r"needs policy\.model\.lora\.rank above 0"):
        job(PpoConfig, reference_kind="adapter_off")
