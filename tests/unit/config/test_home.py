"""`~` is a home in every path that a job is given, and the home of the machine that runs it."""

import os
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest
from pydantic import AfterValidator

from launch import cli
from launch.package import PATH_KEYS
from rlhf_ray.config.base import ELSEWHERE, LocalPath
from rlhf_ray.config.checks.preflight import find_problems
from rlhf_ray.config.jobs import PipelineConfig
from rlhf_ray.config.tools import layers, schema
from rlhf_ray.config.tools.load import load_config, load_job
from rlhf_ray.config.tools.stages import stages_of, values_of
from rlhf_ray.config.tools.yaml_file import read_yaml
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.shape import read_shapes

JOB = """
run_dir: ~/runs/one
data: {path: "${WHERE:-~/data}/rows.jsonl"}
policy:
  model: {path: ~/model, tokenizer: ~/tokenizer, chat_template: ~/chat.jinja}
  zero: {stage: 3, offload_optimizer: nvme, nvme_path: ~/fast}
reference: {model: {path: ~/reference}}
value: {model: {path: ~/value}}
reward:
  functions: [{path: "~/rewards.py:score"}]
  model: {path: ~/reward, tokenizer: ~/reward, chat_template: ~/chat.jinja}
eval: {data: {sources: [{path: ~/held.jsonl}]}}
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WHERE", raising=False)
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


def texts(values):
    return [text for _, text in layers.texts(values)]


def is_local_path(annotation):
    markers = get_args(LocalPath)[1:]
    return get_origin(annotation) is Annotated and any(
        part in markers for part in get_args(annotation) if isinstance(part, AfterValidator)
    )


def test_every_path_of_a_file(home):
    dumped = load_config(cli.CONFIGURED["grpo"], "~/job.yaml").model_dump(mode="json")
    given = [text for text in texts(read_yaml(home / "job.yaml").values) if text.startswith("~")]
    assert len(given) == 13
    assert not [text for text in texts(dumped) if text.startswith("~")]
    for text in given:
        assert os.path.expanduser(text) in set(texts(dumped))


def test_every_path_of_a_command_line_and_of_the_environment(home, monkeypatch):
    monkeypatch.setenv("WHERE", "~/elsewhere")
    config = load_config(cli.CONFIGURED["grpo"], "~/job.yaml", ["--run-dir=~/runs/two"])
    assert config.run_dir == f"{home}/runs/two"
    assert config.data.path == f"{home}/elsewhere/rows.jsonl"


@pytest.mark.parametrize("job", cli.CONFIGURED)
def test_no_key_that_is_called_like_a_path_is_forgotten(job):
    """Whoever adds a key for a file declares it as one."""
    cls = cli.CONFIGURED[job]
    for path in schema.all_paths(cls):
        named = path[-1] in (*PATH_KEYS, "run_dir") or path[-1].endswith(("_path", "_dir"))
        assert is_local_path(schema.at_path(cls, path)) == named, ".".join(path)
    for index in ("sources", "functions", "stages"):
        for path in schema.all_paths(cls):
            if path[-1] == index:
                section = schema.at_path(cls, (*path, "0"))
                key = "config" if index == "stages" else "path"
                assert is_local_path(schema.child(section, key))


def test_what_runs_elsewhere_keeps_it(home):
    config = load_config(cli.CONFIGURED["grpo"], home / "job.yaml", elsewhere=True)
    values = values_of(config)
    assert values["policy"]["model"]["path"] == "~/model"
    assert values["reward"]["functions"][0]["path"] == "~/rewards.py:score"
    assert cli.CONFIGURED["grpo"].model_validate(values).run_dir == f"{home}/runs/one"


def test_a_pipelines_files_and_values(home):
    stage = {"name": "one", "job": "grpo", "config": "~/job.yaml"}
    other = {**stage, "name": "two", "set": {"policy": {"model": {"path": "~/other"}}}}
    config = PipelineConfig.model_validate({"run_dir": "~/runs", "stages": [stage, other]})
    one, two = stages_of(config, check_files=False)
    assert one.config.run_dir == f"{home}/runs/one"
    assert one.config.policy.model.path == f"{home}/model"
    assert two.config.policy.model.path == f"{home}/other"

    there = {"run_dir": "~/runs", "stages": [stage, other]}
    elsewhere = PipelineConfig.model_validate(there, context={ELSEWHERE: True})
    values = values_of(elsewhere)
    assert values["stages"][0]["set"]["policy"]["model"]["path"] == "~/model"


def test_files_there_are_found_before_the_start(home):
    config = load_config(cli.CONFIGURED["grpo"], home / "job.yaml")
    before = {str(problem) for problem in find_problems(config)}
    (home / "rewards.py").write_text("def score(completions): ...\n")
    (home / "chat.jinja").write_text("x")
    after = {str(problem) for problem in find_problems(config)}
    assert {text.partition(":")[0] for text in before - after} >= {
        "reward.functions.0.path",
        "policy.model.chat_template",
    }
    assert not [text for text in before if "~" in text]


def test_files_beside_a_configuration(home):
    assert load_job("~/job.yaml", "grpo").data.path == f"{home}/data/rows.jsonl"
    (home / "model.json").write_text("{}")
    for given in ("~/model.json", "~/model=~/model.json"):
        with pytest.raises(ConfigError) as caught:
            read_shapes({"policy.model.path": f"{home}/model"}, [given])
        assert "~" not in str(caught.value)
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(cli.CONFIGURED["sft"], Path("~/nothing.yaml"))
