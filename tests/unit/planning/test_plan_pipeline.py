"""All stages of a pipeline on their one pool."""

from __future__ import annotations

import json

import pytest
from plan_jobs import EIGHT_B, MODELS, ROOT, SHAPES, job, node

from launch import cli
from rlhf_ray.config.tools.stages import Stage, groups_of
from rlhf_ray.learner.deepspeed.memory import GPU_CONTEXT_BYTES
from rlhf_ray.planning.advice import advise
from rlhf_ray.planning.layout import smallest_cluster
from rlhf_ray.planning.plan import RESULTS, plan_job, plan_jobs

ON_POLICY = {"gpus_per_rank": 1, "ranks": 8, "share": "policy"}
GROUP = {"gpus_per_rank": 1, "ranks": 8}
SAVING = {"zero": {"stage": 3}, "model": {"gradient_checkpointing": True}}


def staged(name, config, sources=()):
    return Stage(name=name, config=config, rooted=config, sources=frozenset(sources))


def stages(**of_ppo):
    """SFT, reward model, PPO: the reward model has GPUs of its own, all else is the policy's."""
    sft = job("sft", policy=SAVING, placement={"policy": GROUP})
    rm = job("rm", reward=SAVING, placement={"reward": GROUP})
    ppo = job(
        "ppo",
        policy=SAVING,
        value=SAVING,
        reward={"model": {"path": EIGHT_B}},
        rollout={"gpu_memory_share": 0.35},
        placement={
            "policy": GROUP,
            "reward": GROUP,
            "rollout": ON_POLICY,
            "reference": ON_POLICY,
            "value": ON_POLICY,
        },
        reference={"zero": {"stage": 3}},
        **of_ppo,
    )
    return [
        staged("sft", sft),
        staged("rm", rm, sources={"sft"}),
        staged("ppo", ppo, sources={"sft", "rm"}),
    ]


def planned(jobs, **cluster):
    return plan_jobs(jobs, SHAPES, smallest_cluster(groups_of(jobs), node(**cluster)))


def test_a_gpu_counts_at_its_worst_moment_of_all_stages():
    jobs = stages()
    plan = planned(jobs)
    assert plan.problems == ()
    assert [stage.name for stage in plan.stages] == ["sft", "rm", "ppo"]
    for gpu in plan.gpus:
        moments = [
            moment
            for stage in plan.stages
            for moment in stage.gpus
            if (moment.node, moment.gpu) == (gpu.node, gpu.gpu)
        ]
        assert gpu.total == max(moment.total for moment in moments)
    [alone] = [plan_job(jobs[1].config, SHAPES, node()).roles[0].memory.total]
    assert {gpu.total for gpu in plan.gpus if gpu.stage == "rm"} == {alone}


def test_what_a_stage_does_not_use_leaves_the_gpus_that_it_uses():
    sft = planned(stages()).stages[0]
    for gpu in sft.gpus:
        idle = {role: held for role, held in gpu.moment.held.items() if role != "policy"}
        engine = idle.pop("rollout")
        assert set(idle.values()) == {GPU_CONTEXT_BYTES}
        assert 0 < engine < gpu.total / 4
    # GPUs on which nothing works are not in a stage's table.
    assert {gpu.node for gpu in sft.gpus} == {0}


def test_results_that_later_stages_start_from_count_on_the_nodes_of_who_made_them():
    plan = planned(stages())
    num = SHAPES[EIGHT_B].num_parameters("lm")
    held = {result.stage: result for result in plan.held}
    assert held["sft"].used_by == ("rm", "ppo")
    assert held["sft"].bytes == 2 * num
    assert held["rm"].role == "reward"
    assert held["rm"].bytes == 2 * SHAPES[EIGHT_B].num_parameters("score")
    # Each with the ranks that made it.
    assert [host[RESULTS] for host in plan.hosts] == pytest.approx(
        [held["sft"].bytes, held["rm"].bytes], abs=8
    )


def test_a_node_has_room_for_the_largest_of_a_roles_stages():
    jobs = [
        staged("small", job("sft", policy={"model": {"path": "tiny"}})),
        staged("large", job("sft", policy={"model": {"path": "llama-134m"}})),
    ]
    plan = planned(jobs, gpus=0)
    sizes = [stage.roles[0].memory.total for stage in plan.stages]
    assert sizes[1] > sizes[0]
    assert plan.hosts[0]["policy"] == sizes[1]


def test_a_stage_that_does_not_fit_is_named_and_mended_by_its_own_keys():
    jobs = stages()
    values = {"zero": {"stage": 3}, "max_tokens_per_micro_batch": 60_000}
    rm = job("rm", reward=values, batch_size=2048, placement={"reward": GROUP})
    jobs[1] = staged("rm", rm, sources=jobs[1].sources)
    plan = planned(jobs)
    [problem] = plan.problems
    assert problem.message.startswith("stage rm: reward needs ")
    assert problem.part == "activations"
    ways = advise(jobs, SHAPES, plan)
    assert {"stages.1.set.reward.model.gradient_checkpointing": True} in [w.change for w in ways]
    assert all(way.plan.fits for way in ways)


PIPELINE = """
stages:
  - name: sft
    job: sft
    set:
      data: {path: rows.jsonl}
      max_length: 2048
      policy: {model: {path: model}, max_tokens_per_micro_batch: 131072, zero: {stage: 3}}
      placement: {policy: {ranks: 8, gpus_per_rank: 1}}
      batch_size: 1024
  - name: pairs
    job: sample
    set:
      data: {path: prompts.jsonl, max_prompt_tokens: 512}
      policy: {model: {path: "stage:sft"}, zero: {stage: 3}}
      reward: {functions: [{path: "m:f"}]}
      rollout: {max_model_len: 2048, gpu_memory_share: 0.5}
      placement:
        policy: {ranks: 8, gpus_per_rank: 1}
        rollout: {share: policy, ranks: 8, gpus_per_rank: 1}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(MODELS[EIGHT_B]))
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    return tmp_path


def test_the_command_plans_a_pipeline_without_its_data(folder, capsys):
    command = ["plan", "pipeline", "pipeline.yaml"]
    assert cli.main(command) == 2
    printed = capsys.readouterr().out
    assert "GPU 0-7  policy 0-7, rollout 0-7" in printed
    assert "policy updates in sft" in printed
    assert "stage sft: policy needs " in " ".join(printed.split())
    advice = printed.split("these changes:")[1].split("(")[0].split()
    assert advice[0].startswith("--stages.0.set.policy.")
    assert cli.main([*command, *advice]) == 0
    assert "It fits: " in capsys.readouterr().out


def test_the_demos_pipeline_is_planned_from_the_one_model_that_it_begins_with(
    folder, capsys, monkeypatch
):
    (folder / "model" / "config.json").write_text(json.dumps(MODELS["tiny"]))
    monkeypatch.chdir(ROOT)
    config = str(ROOT / "configs/pipeline/tiny-cpu.yaml")
    arguments = ["--model-config", f"runs/demo/model={folder}/model/config.json"]
    assert cli.main(["plan", "pipeline", config, *arguments]) == 0
    printed = capsys.readouterr().out
    for stage in ("sft", "pairs", "rm", "ppo", "dpo", "dpo-judged"):
        assert f"\n  {stage} " in printed
    assert "GPU" not in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_what_would_make_room_is_said(folder, capsys):
    text = PIPELINE.replace("share: policy, ", "").replace("131072", "8192")
    (folder / "pipeline.yaml").write_text(text)
    command = ["plan", "pipeline", "pipeline.yaml", "--nodes", "1"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "16 GPU asked, 8 there" in error
    advice = error.split("Enough would be: ")[1].split("(")[0].split()
    assert cli.main([*command, *advice]) == 0
