"""The environment of a job: what gives rewards, and where it lives."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from rlhf_ray.config.environment import EnvironmentConfig
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.config.sample import SampleConfig

JOB = {"data": {"path": "x"}, "policy": {"model": {"path": "m"}}}
WORLD = {"path": "worlds.py:Echo"}


def test_an_environment_may_be_all_that_rewards():
    for cls in (GrpoConfig, SampleConfig):
        config = cls.model_validate({**JOB, "environment": WORLD})
        assert "reward" not in config.groups and "reward" not in config.models
        assert config.groups["environment"] == config.environment.group
        assert config.environment.group.ranks == 2
        with pytest.raises(ValidationError, match=r"no reward: set .*or environment.path"):
            cls.model_validate(JOB)
    rewarded = GrpoConfig.model_validate({**JOB, "reward": {"functions": [{"path": "a:b"}]}})
    assert {"reward", "reward_worker"} & rewarded.groups.keys()
    assert "environment" not in rewarded.groups


def test_a_resolved_configuration_can_be_read_again():
    config = GrpoConfig.model_validate({**JOB, "reward": {"functions": [{"path": "a:b"}]}})
    assert GrpoConfig.model_validate(yaml.safe_load(config.model_dump_json())) == config


def test_a_reward_function_may_not_be_called_as_the_environments_reward():
    functions = [{"path": "a:b", "name": "environment"}]
    GrpoConfig.model_validate({**JOB, "reward": {"functions": functions}})
    with pytest.raises(ValidationError, match="must not be called 'environment'"):
        GrpoConfig.model_validate({**JOB, "reward": {"functions": functions}, "environment": WORLD})


def test_settings_of_no_environment_are_refused():
    with pytest.raises(ValidationError, match="these are for: max_turns, workers"):
        EnvironmentConfig(max_turns=3, workers=5)


@pytest.mark.parametrize("cls", [GrpoConfig, SampleConfig])
def test_a_call_has_time_for_all_turns(cls):
    job = {**JOB, "environment": {**WORLD, "max_turns": 32}}
    cls.model_validate({**job, "timeouts": {"call_s": 2061}})
    words = r"call_s must be above 2060 with environment.max_turns 32 and environment.timeout_s 60"
    with pytest.raises(ValidationError, match=f"{words}, got 1800"):
        cls.model_validate(job)


def test_messages_take_room_beside_own_tokens():
    world = {**WORLD, "max_turns": 3, "max_observation_tokens": 100}
    config = GrpoConfig.model_validate(
        {**JOB, "environment": world, "rollout": {"max_new_tokens": 50}}
    )
    assert config.max_response_tokens == 250
