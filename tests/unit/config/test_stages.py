"""A pipeline's stages: how they name one another, and what is said when they cannot run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.jobs import PipelineConfig
from rlhf_ray.config.tools.stages import groups_of, stages_of
from rlhf_ray.errors import ConfigError
from rlhf_ray.jobs.stages import stages_left


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    return str(path)


@pytest.fixture
def make(pairs, stories, tmp_path):
    """`make(stage, ..., key=value)`: a pipeline of `stage(...)`s."""

    def make(*stages: Any, **keys: Any) -> PipelineConfig:
        return PipelineConfig.model_validate(
            {"run_dir": str(tmp_path / "run"), "stages": stages, **keys}
        )

    return make


@pytest.fixture
def stage(pairs, stories):
    """`stage(job, model)`: a stage named like its job; `keys` are laid over it."""

    def stage(job: str, model: str = str(stories), **keys: Any) -> dict[str, Any]:
        role = "reward" if job == "rm" else "policy"
        values: dict[str, Any] = {"data": {"path": pairs}, role: {"model": {"path": model}}}
        if job in ("ppo", "grpo", "sample"):
            values["reward"] = {"functions": [{"path": "rlhf_ray.rewards.gsm8k:correct_answer"}]}
        return {"name": job, "job": job, "set": {**values, **keys}}

    return stage


def refused(config: PipelineConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        stages_of(config)
    return str(caught.value)


def test_a_model_is_another_stages_export_and_descends_from_its_root(make, stage, stories):
    sft, dpo, ppo = stages_of(
        make(stage("sft"), stage("dpo", "stage:sft"), stage("ppo", "stage:dpo"))
    )
    assert dpo.config.policy.model.path == sft.result
    assert ppo.config.policy.model.path == dpo.result
    assert ppo.rooted.policy.model.path == dpo.rooted.policy.model.path == str(stories)
    assert (sft.sources, ppo.sources) == (frozenset(), {"dpo"})
    assert Path(ppo.config.run_dir).name == "ppo"


def test_a_reward_model_scores_and_a_file_of_a_stage_is_data(make, stage, tmp_path):
    reward = {"model": {"path": "stage:rm"}}
    ppo = stage("ppo", "stage:sft", reward=reward, data={"path": "stage:sample/pairs.jsonl"})
    stages = stages_of(make(stage("sft"), stage("sample"), stage("rm", "stage:sft"), ppo))
    assert stages[-1].config.reward.model.path == stages[2].result
    assert stages[-1].config.data.path == str(tmp_path / "run/sample/pairs.jsonl")
    assert stages[-1].sources == {"sft", "rm"}


def test_what_is_given_for_all_stages_gives_way_to_a_stage(make, stage):
    first, second = stages_of(
        make(
            stage("sft"),
            stage("rm", seed=5),
            seed=3,
            timeouts={"call_s": 9},
            placement={"policy": {"ranks": 2}, "reward": {"share": "policy"}},
        )
    )
    assert (first.config.seed, second.config.seed) == (3, 5)
    assert first.config.timeouts.call_s == second.config.timeouts.call_s == 9
    groups = groups_of([first, second])
    assert groups["policy"].ranks == 2
    assert groups["reward"].share == "policy"


@pytest.mark.parametrize(
    ("job", "model", "message"),
    [
        ("dpo", "stage:sfft", "no stage 'sfft', did you mean 'sft'? earlier stages are sft"),
        ("dpo", "stage:grpo", "stage 'grpo' must come earlier"),
        ("dpo", "stage:sft/export", "a model is a whole stage's result: stage:sft"),
        ("dpo", "stage:rm", "must be the result of sft or dpo or ppo or grpo, stage 'rm' is rm"),
        ("dpo", "./nowhere", "no such folder, and no hub name (org/name, or a name without dots)"),
    ],
)
def test_a_model_that_cannot_be_is_refused(make, stage, job, model, message):
    given = [stage("sft"), stage("rm", "stage:sft"), stage(job, model), stage("grpo")]
    if job == "dpo" and "sfft" in model:
        given.pop(1)
    assert f"stages.dpo.policy.model.path: {message}" in refused(make(*given))


def test_all_problems_of_all_stages_are_in_one_message(make, stage, tmp_path):
    file = tmp_path / "sft.yaml"
    file.write_text("total_steps: 5\nbatch_size: -1\n")
    bad = {**stage("sft"), "config": str(file)}
    message = refused(
        make(bad, stage("rm", "stage:dpo"), stage("ppo", data={"path": "gone.jsonl"}))
    )
    assert "pipeline: 3 problems" in message
    assert f"stages.sft.batch_size (line 2 of {file}): must be" in message
    assert "stages.rm.reward.model.path: no stage 'dpo'" in message
    assert "stages.ppo.data.path: no such file or folder: 'gone.jsonl'" in message


def test_a_role_has_one_shape(make, stage):
    wide = stage("dpo", "stage:sft", placement={"policy": {"ranks": 2}})
    assert "a pool has one shape for all" in refused(make(stage("sft"), wide))


def test_two_stages_of_one_name_are_refused(stage, make):
    with pytest.raises(ValueError, match="got 'sft' twice"):
        make(stage("sft"), stage("sft"))


@pytest.fixture
def three_stages(make, stage):
    """SFT, a reward model on it, and PPO on both, to be resumed."""
    return stages_of(
        make(
            stage("sft"),
            stage("rm", "stage:sft"),
            stage("ppo", "stage:sft", reward={"model": {"path": "stage:rm"}}),
            resume="auto",
        )
    )


def tell(stage: Any, state: str) -> None:
    """Have a stage's folder say how it ended."""
    folder = Path(stage.config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps({"state": state}))


def left(stages: list[Any]) -> list[str]:
    return [stage.name for stage in stages_left(stages)]


def test_a_resumed_pipeline_runs_what_is_left_and_what_that_needs(three_stages):
    sft, rm, ppo = three_stages
    assert left(three_stages) == ["sft", "rm", "ppo"]
    tell(sft, "finished")
    tell(rm, "failed")
    assert left(three_stages) == ["sft", "rm", "ppo"], "what SFT left in memory is gone"
    Path(sft.result).mkdir()
    (Path(sft.result) / "model.safetensors").touch()
    assert left(three_stages) == ["rm", "ppo"]
    tell(rm, "finished")
    tell(ppo, "finished")
    assert left(three_stages) == []


def test_a_stage_is_stale_that_was_made_from_one_that_would_be_made_anew(three_stages):
    sft, rm, ppo = three_stages
    for stage in (rm, ppo):
        tell(stage, "finished")
    with pytest.raises(ConfigError) as caught:
        stages_left(three_stages)
    message = f"{rm.config.run_dir}, {ppo.config.run_dir}: made from a stage that is gone"
    assert str(caught.value).startswith(message)

    # One that goes on from a checkpoint is not made anew: it ends as it would have.
    tell(sft, "failed")
    Path(sft.config.run_dir, "checkpoints/step_00000001").mkdir(parents=True)
    assert left(three_stages) == ["sft"]
