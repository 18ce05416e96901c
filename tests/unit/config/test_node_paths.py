"""Which files a role's actors read where they are."""

from __future__ import annotations

import pytest

from rlhf_ray.config.checks.preflight import node_paths
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.online import PpoConfig
from rlhf_ray.config.supervised import RmConfig, SftConfig


@pytest.fixture
def there(tmp_path):
    """A folder or file that exists, by name."""

    def make(name: str) -> str:
        (tmp_path / name).touch()
        return str(tmp_path / name)

    return make


def told(config):
    return {
        role: {path.key: path.path.rpartition("/")[2] for path in paths}
        for role, paths in node_paths(config).items()
    }


def test_every_role_of_an_online_job_has_its_own(there):
    config = PpoConfig.model_validate(
        {
            "data": {"path": there("prompts.jsonl")},
            "policy": {"model": {"path": there("base"), "tokenizer": there("tokens")}},
            "value": {"model": {"path": there("critic")}},
            "reward": {
                "functions": [{"path": f"{there('mine.py')}:f"}, {"path": "package.module:f"}],
                "model": {"path": there("scorer")},
            },
        }
    )
    base = {"policy.model.path": "base", "policy.model.tokenizer": "tokens"}
    assert told(config) == {
        "policy": base,
        "rollout": base,
        "reference": base,
        "value": {"value.model.path": "critic"},
        "reward": {"reward.model.path": "scorer"},
        "reward_worker": {"reward.functions.0.path": "mine.py"},
    }


def test_a_hubs_name_is_left_alone(there):
    model = {"path": "org/model", "tokenizer": there("tokens")}
    config = SftConfig.model_validate({"data": {"path": "x"}, "policy": {"model": model}})
    assert told(config) == {"policy": {"policy.model.tokenizer": "tokens"}}


def test_a_reward_model_is_read_where_it_is_trained(there):
    model = {"path": there("base")}
    config = RmConfig.model_validate({"data": {"path": "x"}, "reward": {"model": model}})
    assert told(config) == {"reward": {"reward.model.path": "base"}}


@pytest.mark.parametrize("given", [True, False])
def test_dpos_reference_is_its_own_or_the_policys_start(there, given):
    values = {"data": {"path": "x"}, "policy": {"model": {"path": there("base")}}}
    if given:
        values["reference"] = {"model": {"path": there("other")}}
    expected = {"reference.model.path": "other"} if given else {"policy.model.path": "base"}
    assert told(DpoConfig.model_validate(values))["reference"] == expected
