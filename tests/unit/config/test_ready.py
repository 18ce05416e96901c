"""A configuration by name: a file that is there, else one of those that come with the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from launch import cli
from launch.cli import CONFIGURED, default_run_dir
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.jobs import PipelineConfig
from rlhf_ray.config.online import GrpoConfig, PpoConfig
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.config.tools.load import find_config, load_config, load_job, ready_configs
from rlhf_ray.config.tools.stages import stages_of, values_of
from rlhf_ray.config.tools.yaml_file import write_yaml
from rlhf_ray.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("job", CONFIGURED)
def test_the_repositorys_files_are_ready_by_their_names(job):
    files = {path.stem if path.suffix == ".yaml" else "" for path in (CONFIGS / job).iterdir()}
    assert files == ready_configs(job).keys() != set()
    for name, path in ready_configs(job).items():
        assert path.read_text() == (CONFIGS / job / f"{name}.yaml").read_text()
        assert find_config(job, name) == path


@pytest.mark.parametrize("given", ["tiny-cpu", "mine.yaml", "~/mine.yaml", "a/b.yaml"])
def test_a_file_that_is_there_wins_over_a_name(given, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = Path(given).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("total_steps: 3\n")
    assert find_config("grpo", given).samefile(file)


def test_a_folder_of_its_name_does_not():
    Path("tiny-cpu").mkdir()
    assert find_config("grpo", "tiny-cpu") == ready_configs("grpo")["tiny-cpu"]


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("tiny-cp", "tiny-cpu"),
        ("tiny-cpu.yaml", "tiny-cpu"),
        ("configs/grpo/tiny-cpu.yaml", "tiny-cpu"),
        ("llama3-8b-1gpu", "llama3-8b-8gpu"),
        ("qwen2.5-0.5b-8gpu", "qwen2.5-0.5b-1gpu"),
    ],
)
def test_a_name_that_is_none_is_told_the_nearest_and_all(given, near):
    expected = f"{given}: no such configuration file, .* did you mean {near}?"
    with pytest.raises(ConfigError, match=expected.replace("?", r"\?")) as error:
        find_config("grpo", given)
    assert all(name in str(error.value) for name in ready_configs("grpo"))


@pytest.mark.parametrize("given", ["", ".", "no", "../grpo/tiny-cpu"])
def test_what_is_near_no_name_is_told_all(given):
    expected = rf"{re.escape(given)}: .*no ready configuration of pipeline[,;] .*ready are tiny-cpu"
    with pytest.raises(ConfigError, match=expected):
        find_config("pipeline", given)


def test_a_run_is_named_after_the_whole_name():
    """`Path("qwen2.5-0.5b-1gpu").stem` ends at its last point."""
    folder = default_run_dir("grpo", find_config("grpo", "qwen2.5-0.5b-1gpu"))
    assert folder.startswith("runs/grpo-qwen2.5-0.5b-1gpu-")


def test_stages_of_a_pipeline_are_found_by_name(tmp_path):
    config = load_config(PipelineConfig, find_config("pipeline", "tiny-cpu"))
    assert {stage.config for stage in config.stages} == {"tiny-cpu"}
    config = config.model_copy(update={"run_dir": str(tmp_path / "run")})
    stages = stages_of(config, check_files=False)
    sft = load_config(CONFIGURED["sft"], find_config("sft", "tiny-cpu"))
    assert stages[0].config.total_steps == sft.total_steps
    # What is sent to a cluster names no file of this machine.
    sent = values_of(config)["stages"]
    assert [stage["config"] for stage in sent] == [""] * len(stages)
    assert sent[0]["set"]["total_steps"] == sft.total_steps


def test_a_stage_whose_name_is_none_is_a_problem_of_the_stage(tmp_path):
    config = PipelineConfig.model_validate(
        {"stages": [{"name": "one", "job": "sft", "config": "tiny-gpu"}]}
    )
    with pytest.raises(ConfigError, match=r"stages\.one\.config.* did you mean tiny-cpu\?"):
        stages_of(config)


def test_where_no_job_is_said_the_name_tells_it_or_not():
    assert type(load_job("tiny-cpu", "grpo")) is GrpoConfig
    with pytest.raises(ConfigError, match="ready for ppo, grpo: say which by --job"):
        load_job("llama3-70b-4x8gpu")
    with pytest.raises(ConfigError, match="nowhere: no such configuration file, and no ready"):
        load_job("nowhere")


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "grpo", "tiny-cp"],
        ["data", "grpo", "tiny-cp"],
        ["submit", "grpo", "tiny-cp"],
        ["pool", "up", "tiny-cp", "--job", "grpo"],
        ["grpo", "tiny-cp"],
    ],
    ids=" ".join,
)
def test_every_command_that_takes_a_configuration_takes_a_name(words, capsys):
    assert cli.main(words) == 2
    assert "did you mean tiny-cpu?" in capsys.readouterr().err


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
