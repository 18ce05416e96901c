"""The folder of a run knows whether there is anything left to do."""

import logging

import pytest

from launch import job
from launch.run.folder import is_finished, run_folder
from rlhf_ray.config.jobs import JOB_CONFIGS
from rlhf_ray.config.tools.load import load_config
from rlhf_ray.errors import RunError
from rlhf_ray.jobs.status import state_of

SHIPPED = {
    "grpo": "configs/grpo/tiny-cpu.yaml",
    "sft": "configs/sft/stories-cpu.yaml",
    "dpo": "configs/dpo/sharegpt-cpu.yaml",
}


@pytest.fixture(params=SHIPPED)
def config(request, tmp_path):
    loaded = load_config(JOB_CONFIGS[request.param], SHIPPED[request.param])
    return loaded.model_copy(update={"run_dir": str(tmp_path / "run"), "resume": "auto"})


def test_only_the_same_run_that_came_to_its_end_is_finished(config):
    assert not is_finished(config)
    with pytest.raises(RunError), run_folder(config):
        raise RunError("no")
    assert not is_finished(config)
    with run_folder(config) as folder:
        assert state_of(config.run_dir) == "running"
        assert not is_finished(config)
    assert not is_finished(config), "its export is gone"
    (folder / "export").mkdir()
    assert is_finished(config)
    assert not is_finished(config.model_copy(update={"resume": "never"}))
    assert not is_finished(config.model_copy(update={"seed": 10_001}))


def test_nothing_is_started_for_a_finished_run(config, monkeypatch, caplog):
    with run_folder(config) as folder:
        (folder / "export").mkdir()

    def unexpected(*arguments):
        raise AssertionError("there is nothing to do")

    monkeypatch.setattr(job, "JOBS", {})
    monkeypatch.setattr(job, "connected", unexpected)
    with caplog.at_level(logging.INFO):
        assert job.run(config) == 0
    assert caplog.messages == [f"{config.run_dir} is finished: nothing is left to do"]
