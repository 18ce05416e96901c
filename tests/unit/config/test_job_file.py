"""What a configuration file is of, where nobody has said so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.jobs import PipelineConfig
from rlhf_ray.config.online import GrpoConfig, PpoConfig
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.config.tools.load import load_job
from rlhf_ray.config.tools.yaml_file import write_yaml
from rlhf_ray.errors import ConfigError

MODEL = {"policy": {"model": {"path": "org/name"}}, "data": {"path": "org/rows"}}
ONLINE = {**MODEL, "reward": {"functions": [{"path": "rewards:score"}]}}


@pytest.fixture
def written(tmp_path):
    def write(values: dict[str, Any], *, folder: str = "mine") -> str:
        path = Path(tmp_path, folder, "job.yaml")
        path.parent.mkdir(exist_ok=True)
        write_yaml(values, path)
        return str(path)

    return write


def test_a_pipeline_has_stages(written):
    stages = {"stages": [{"name": "one", "job": "sft", "set": MODEL}]}
    assert type(load_job(written(stages))) is PipelineConfig


def test_a_job_is_in_a_folder_of_its_name(written):
    assert type(load_job(written(ONLINE, folder="ppo"))) is PpoConfig
    assert type(load_job(written(ONLINE, folder="grpo"))) is GrpoConfig


def test_what_is_said_comes_first(written):
    assert type(load_job(written(MODEL, folder="sft"), "dpo")) is DpoConfig


def test_keys_that_one_job_alone_has_tell_it(written):
    assert type(load_job(written({**MODEL, "loss_type": "nll"}))) is SftConfig


def test_what_several_jobs_might_be_is_asked_for(written):
    path = written(ONLINE)
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    assert str(caught.value).startswith(f"{path} may configure ppo or grpo or sample: say which by")
    with pytest.raises(ConfigError, match="may configure no job: say which by --job"):
        load_job(written({"policy": 3}))
