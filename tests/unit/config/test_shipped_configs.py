"""Every configuration in configs/ is valid and asks for the hardware that it says it needs."""

import re
from functools import cache
from pathlib import Path

import pytest

from rlhf_ray.config.checks import references
from rlhf_ray.config.checks.preflight import find_problems
from rlhf_ray.config.jobs import JOB_CONFIGS, PipelineConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.supervised import RmConfig
from rlhf_ray.config.tools.load import load_config
from rlhf_ray.config.tools.stages import stages_of

ROOT = Path(__file__).parents[3]
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*/*.yaml") if p.parent.name in JOB_CONFIGS)
PIPELINES = sorted((ROOT / "configs/pipeline").glob("*.yaml"))
GPUS = {"1gpu": 1, "8gpu": 8, "4x8gpu": 32, "cpu": 0}


def ids(path):
    return f"{path.parent.name}/{path.stem}"


@cache
def loaded(path):
    """As `rlhf-ray` loads it; the environment is that of the test run."""
    return load_config(JOB_CONFIGS[path.parent.name], path)


def configs_where(applies):
    """Every configuration that a check is about: without one the check would hold of nothing."""
    chosen = [path for path in CONFIGS if applies(loaded(path))]
    assert chosen, "no shipped configuration is of the kind that is checked"
    return pytest.mark.parametrize("path", chosen, ids=ids)


def model_of(config):
    role = config.reward if isinstance(config, RmConfig) else config.policy
    return role.model.path


def is_online(config):
    return isinstance(config, OnlineConfig)


def set_of(split):
    return split.partition("[")[0]


def evaluates_on_its_own_set(config):
    """Whether held-out rows come from the set that is trained: of one file and one split."""
    trained, held_out = config.data, config.eval.data
    same_file = trained.path and trained.path == held_out.path
    return bool(same_file) and set_of(trained.split) == set_of(held_out.split)


def test_every_job_has_the_promised_files():
    names = {ids(path) for path in CONFIGS}
    trained = ("tiny-cpu", "qwen2.5-0.5b-1gpu", "llama3-8b-8gpu")
    assert {f"{job}/{name}" for job in JOB_CONFIGS if job != "sample" for name in trained} <= names
    assert {f"{job}/stories-cpu" for job in ("sft", "grpo", "ppo")} <= names
    assert {"grpo/llama3-70b-4x8gpu", "ppo/llama3-70b-4x8gpu", "sample/tiny-cpu"} <= names


@pytest.mark.parametrize("path", [*CONFIGS, *PIPELINES], ids=ids)
def test_the_first_line_names_hardware_and_result(path):
    first = path.read_text().splitlines()[0]
    assert re.match(r"# \d.*(GPU|CPU)", first)
    assert "not yet measured" in first or "minute" in first


@configs_where(lambda config: True)
def test_it_asks_for_the_gpus_of_its_name(path):
    config = loaded(path)
    groups = config.groups.values()
    asked = sum(group.ranks * group.gpus_per_rank for group in groups if not group.share)
    assert asked == GPUS[path.stem.rpartition("-")[2]]


@configs_where(lambda config: is_online(config) and config.rollout.max_model_len)
def test_the_engine_has_room_for_prompt_and_response(path):
    config = loaded(path)
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    assert config.data.max_prompt_tokens > 0
    assert longest <= config.rollout.max_model_len


@configs_where(is_online)
def test_its_reward_functions_exist(path):
    functions = loaded(path).reward.functions
    assert functions
    faults = [references.function_fault(function.path) for function in functions]
    assert faults == [None] * len(functions)


@configs_where(evaluates_on_its_own_set)
def test_training_leaves_held_out_rows_of_its_own_set_alone(path):
    trained, held_out = loaded(path).data, loaded(path).eval.data
    if trained.split != held_out.split:  # train[:67%] and train[67%:]
        _, end = trained.split[len("train[") : -1].split(":")
        begin, _ = held_out.split[len("train[") : -1].split(":")
        assert end == begin != ""
    else:
        assert 0 < held_out.limit <= trained.skip


@configs_where(lambda config: not evaluates_on_its_own_set(config) and config.eval.data.is_named)
def test_other_held_out_rows_are_of_another_set(path):
    trained, held_out = loaded(path).data, loaded(path).eval.data
    names = [
        (data.path or data.sources[0].path, set_of(data.split)) for data in (trained, held_out)
    ]
    assert names[0] != names[1]


@pytest.mark.parametrize("path", PIPELINES, ids=ids)
def test_every_stage_of_a_pipeline_is_valid(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    # The demo makes model and data on the spot.
    monkeypatch.setattr("rlhf_ray.config.tools.stages.find_problems", lambda config: [])
    config = load_config(PipelineConfig, path, ["--run-dir", str(tmp_path)])
    stages = stages_of(config)
    assert [stage.name for stage in stages] == [stage.name for stage in config.stages]


@configs_where(lambda config: "stories260K" in model_of(config))
def test_stories_pass_every_check_before_the_start(path, monkeypatch, shared_data):
    monkeypatch.chdir(ROOT)
    config = loaded(path)
    if not Path(config.data.path).exists():
        pytest.skip(f"RLHF_RAY_DATA names no folder with {config.data.path}")
    assert find_problems(config) == []
