"""A name that leads out of its folder is refused wherever it is given."""

import pytest

from launch import pool
from launch.run.cluster import connect
from launch.run.names import check_name
from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError

BAD = ("a/b", "../x", ".hidden", "-option", "two words", "")


@pytest.mark.parametrize("name", BAD)
def test_no_other_folder_and_no_hidden_file(name):
    with pytest.raises(ConfigError, match="--name must be of letters"):
        check_name("--name", name)


def test_names_as_users_give_them():
    for name in ("default", "lab-2.b_3", "7"):
        check_name("--name", name)


@pytest.mark.parametrize("command", ["up nowhere.yaml", "down", "status"])
def test_pools_are_named_so(command):
    with pytest.raises(ConfigError, match=r"--name must be of letters.*\.\./x"):
        pool.main([*command.split(), "--name", "../x"])


def test_a_job_names_its_pool_so():
    with pytest.raises(ConfigError, match=r"ray\.pool must be of letters"):
        connect(RunConfig.model_validate({"ray": {"pool": "a/b"}}), {})
