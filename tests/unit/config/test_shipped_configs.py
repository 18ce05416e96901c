"""Every configuration in configs/ is valid and asks for the hardware that it says it needs."""

import re
from pathlib import Path

import pytest

from rlhf_ray.config import references
from rlhf_ray.config.jobs import JOBS
from rlhf_ray.config.load import load_config
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.pipeline import PipelineConfig
from rlhf_ray.config.preflight import preflight
from rlhf_ray.config.stages import resolve_stages

ROOT = Path(__file__).parents[3]
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*/*.yaml") if p.parent.name in JOBS)
PIPELINES = sorted((ROOT / "configs/pipeline").glob("*.yaml"))
GPUS = {"1gpu": 1, "8gpu": 8, "4x8gpu": 32, "cpu": 0}


def ids(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(params=CONFIGS, ids=ids)
def path(request):
    return request.param


def test_every_job_has_the_promised_files():
    names = {ids(path) for path in CONFIGS}
    trained = ("tiny-cpu", "qwen2.5-0.5b-1gpu", "llama3-8b-8gpu")
    assert {f"{job}/{name}" for job in JOBS if job != "sample" for name in trained} <= names
    assert {f"{job}/stories-cpu" for job in ("sft", "grpo", "ppo")} <= names
    assert {"grpo/llama3-70b-4x8gpu", "ppo/llama3-70b-4x8gpu", "sample/tiny-cpu"} <= names


@pytest.mark.parametrize("path", [*CONFIGS, *PIPELINES], ids=ids)
def test_the_first_line_names_hardware_and_result(path):
    first = path.read_text().splitlines()[0]
    assert re.match(r"# \d.*(GPU|CPU)", first)
    assert "not yet measured" in first or "minute" in first


def test_it_asks_for_the_gpus_of_its_name(path):
    config = load_config(JOBS[path.parent.name], path)
    groups = config.groups.values()
    asked = sum(group.ranks * group.gpus_per_rank for group in groups if not group.share)
    assert asked == GPUS[path.stem.rpartition("-")[2]]


def test_the_engine_has_room_for_prompt_and_response(path):
    config = load_config(JOBS[path.parent.name], path)
    if isinstance(config, OnlineConfig) and config.rollout.max_model_len:
        longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
        assert longest <= config.rollout.max_model_len


def test_its_reward_functions_exist(path):
    config = load_config(JOBS[path.parent.name], path)
    for function in config.reward.functions if isinstance(config, OnlineConfig) else ():
        assert references.function_fault(function.path) is None


def test_training_leaves_held_out_prompts_alone(path):
    config = load_config(JOBS[path.parent.name], path)
    trained, held_out = config.data, config.eval.data
    if not trained.path or held_out.path != trained.path:
        return
    if trained.split.partition("[")[0] != held_out.split.partition("[")[0]:
        return
    if trained.split != held_out.split:  # train[:67%] and train[67%:]
        _, end = trained.split[len("train[") : -1].split(":")
        begin, _ = held_out.split[len("train[") : -1].split(":")
        assert end == begin
    else:
        assert 0 < held_out.limit <= trained.skip


@pytest.mark.parametrize("path", PIPELINES, ids=ids)
def test_every_stage_of_a_pipeline_is_valid(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    # The demo makes model and data on the spot.
    monkeypatch.setattr("rlhf_ray.config.stages.find_problems", lambda config: [])
    config = load_config(PipelineConfig, path, ["--run-dir", str(tmp_path)])
    stages = resolve_stages(config)
    assert [stage.name for stage in stages] == [stage.name for stage in config.stages]


def test_stories_pass_every_check_before_the_start(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    if path.stem == "stories-cpu":
        config = load_config(JOBS[path.parent.name], path)
        if not Path(config.data.path).exists():
            pytest.skip(f"RLHF_RAY_DATA names no folder with {config.data.path}")
        preflight(config)
