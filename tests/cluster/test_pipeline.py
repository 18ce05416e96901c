"""SFT, reward model and PPO on one pool: each starts from what another left in memory."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from jobs import TWO_RANKS_SHARED, on_ranks, process_ids
from safetensors.numpy import load_file

from actors.pool.pool import Pool
from actors.ranks.group import RankSpec
from actors.ranks.policy import PolicyRank
from actors.ranks.reference import ReferenceRank
from actors.ranks.reward import RewardRank
from actors.roles.start import role_specs, start_all
from actors.weights.bucket import unpack
from launch.job import prepare, run_on
from rlhf_ray.config.jobs import PipelineConfig
from rlhf_ray.config.learners import ReferenceConfig
from rlhf_ray.config.tools.stages import Stage, groups_of, stages_of
from rlhf_ray.data.chat.answers import tokenize_answer
from rlhf_ray.data.chat.tokenizer import load_tokenizer
from rlhf_ray.jobs.rm import RM
from rlhf_ray.specs import PolicySpec, ReferenceSpec
from rlhf_ray.types import Prompt, Rollout

NUM_PAIRS = 12


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A pipeline that ran, and what was seen on the way.

    Attributes:
        process_ids: Before the first stage and after each.
        outcomes_B: What the reward model, just trained, made of the pairs.
        pairs: The rows of the pairs.
    """

    stages: list[Stage]
    process_ids: list[dict[str, int]]
    outcomes_B: list[tuple[float, ...]]
    pairs: list[dict[str, str]]


@pytest.fixture(scope="module")
def ran(pool, make_config, shared_data, tmp_path_factory) -> Ran:
    folder = tmp_path_factory.mktemp("pipeline")
    texts = (shared_data / "text/tinystories_sample.txt").read_text().split("<|endoftext|>")
    stories = [text.strip() for text in texts if len(text) > 200]
    pairs = [
        {"prompt": own[:50], "chosen": own[50:90], "rejected": other[50:80]}
        for own, other in zip(stories[:NUM_PAIRS], stories[NUM_PAIRS:], strict=False)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "stories.jsonl").write_text(
        "".join(
            json.dumps({"prompt": s[:40], "completion": s[40:120]}) + "\n" for s in stories[:24]
        )
    )
    ppo = make_config(folder).model_dump(mode="json", exclude_unset=True)
    model = ppo["policy"]["model"]
    optim = {"lr": 1e-2}
    stages = stages_of(
        PipelineConfig.model_validate(
            {
                "run_dir": str(folder / "run"),
                "timeouts": ppo["timeouts"],
                "stages": [
                    {
                        "name": "sft",
                        "job": "sft",
                        "set": {
                            "total_steps": 2,
                            "batch_size": 8,
                            "data": {"path": str(folder / "stories.jsonl")},
                            "policy": {"model": model, "optim": optim},
                        },
                    },
                    {
                        "name": "rm",
                        "job": "rm",
                        "set": {
                            "total_steps": 2,
                            "batch_size": 4,
                            "data": {"path": str(folder / "pairs.jsonl"), "shuffle": False},
                            "reward": {"model": {**model, "path": "stage:sft"}, "optim": optim},
                            "checkpoint": {"export": "never"},
                        },
                    },
                    {
                        "name": "ppo",
                        "job": "ppo",
                        "set": {
                            **{key: ppo[key] for key in ppo if key not in ("run_dir", "timeouts")},
                            "total_steps": 1,
                            "policy": {**ppo["policy"], "model": {**model, "path": "stage:sft"}},
                            "reward": {"model": {"path": "stage:rm"}},
                        },
                    },
                ],
            }
        )
    )
    return asyncio.run(run_all(stages, pool, pairs))


async def run_all(stages: list[Stage], pool: Pool, pairs: list[dict[str, str]]) -> Ran:
    groups = groups_of(stages)
    await start_all(pool, groups, role_specs(groups, *(stage.rooted for stage in stages)))
    processes, outcomes_B = [process_ids(pool)], []
    await pool.want(stage.result for stage in stages[:2])
    for stage in stages:
        await run_on(pool, prepare(stage.config))
        processes.append(process_ids(pool))
        if stage.job == "rm":
            rankings = list(RM.load(stage.config).rows)
            plan = ((tuple(range(len(rankings))),),)
            evaluate = pool.state.roles["reward"].call(RewardRank.evaluate, timeout_s=60)
            [evaluated] = await evaluate(rankings, plan)
            outcomes_B = list(evaluated.outcomes_B)
    return Ran(stages=stages, process_ids=processes, outcomes_B=outcomes_B, pairs=pairs)


def held_weights(pool: Pool, path: str) -> dict[str, Any]:
    buckets = ray.get(list(pool.state.models[path].bucket_refs), timeout=60)
    return {name: weight.numpy() for bucket in buckets for name, weight in unpack(bucket)}


def assert_same_bits(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
    assert not different


def test_no_process_is_started_or_ended_between_stages(ran):
    first, *later = ran.process_ids
    assert {"one/policy/0", "one/reward/0", "one/rollout/0", "one/value/0"} < first.keys()
    assert later == [first] * len(ran.stages) != []


def test_stages_step_soon_after_they_start(ran):
    # A quiet machine takes 1 to 3 s; two busy cores several times that.
    for stage in ran.stages:
        lines = Path(stage.config.run_dir, "metrics.jsonl").read_text().splitlines()
        [first] = [row for row in map(json.loads, lines) if row["step"] == 1]
        assert first["time_s"] < 45


def test_what_is_in_memory_is_what_was_exported(ran, pool):
    exported = load_file(f"{ran.stages[0].result}/model.safetensors")
    assert_same_bits(held_weights(pool, ran.stages[0].result), exported)


def test_a_result_in_memory_has_its_description_but_no_weights_on_disk(ran):
    names = {path.name for path in Path(ran.stages[1].result).iterdir()}
    assert {"config.json", "tokenizer.json", "reward_statistics.json"} <= names
    assert not [name for name in names if name.endswith((".safetensors", ".bin"))]


def test_the_reference_is_the_stage_that_the_policy_started_from(ran, pool):
    def gather(rank: Any) -> dict[str, Any]:
        lm = rank.learner.model.lm
        return {name: weight.detach().numpy().copy() for name, weight in lm.named_parameters()}

    [reference] = on_ranks(pool.state.roles["reference"], gather)
    assert_same_bits(reference, load_file(f"{ran.stages[0].result}/model.safetensors"))


def sampled(tokenizer, prompt, answer, *, draw):
    prompt_ids_T, answer_ids_T = tokenize_answer(tokenizer, prompt, answer)
    num_tokens = len(answer_ids_T)
    return Rollout(
        prompt=Prompt(prompt_id=prompt, token_ids_T=tuple(prompt_ids_T), text=prompt),
        draw=draw,
        sample=0,
        response_ids_T=np.array(answer_ids_T, dtype=np.int32),
        logprobs_T=np.zeros(num_tokens, dtype=np.float32),
        versions_T=np.zeros(num_tokens, dtype=np.int32),
        action_mask_T=np.ones(num_tokens, dtype=np.bool_),
        finish_reason="stop",
        text=answer,
    )


def test_the_trained_reward_model_scores_in_ppo_as_it_did_in_training(ran, pool, stories):
    tokenizer = load_tokenizer(str(stories))
    answers = [
        sampled(tokenizer, pair["prompt"], pair[side], draw=row)
        for row, pair in enumerate(ran.pairs)
        for side in ("chosen", "rejected")
    ]
    [scores] = on_ranks(pool.state.roles["reward"], lambda rank: rank.model.score(answers))
    scores = [score.value for score in scores]
    trained = [score for outcome in ran.outcomes_B for score in outcome]
    assert np.std(trained) > 0.01
    assert scores == pytest.approx(trained, abs=1e-5)


def test_weights_spread_over_ranks_are_kept_whole_and_loaded_again(
    shared_pool, make_config, stories, tmp_path
):
    config = make_config(tmp_path, placement=TWO_RANKS_SHARED, policy={"zero": {"stage": 3}})
    spec = PolicySpec(
        learner=config.policy,
        algorithm=config.algorithm,
        temperature=1.0,
        max_new_tokens=8,
        total_steps=1,
        replay_folder="",
        seed=0,
    )
    result = str(tmp_path / "export")

    async def keep_and_load() -> dict[str, Any]:
        shared_pool.place(config.groups)
        await shared_pool.start("policy", RankSpec(actor_class=PolicyRank))
        await shared_pool.start("reference", RankSpec(actor_class=ReferenceRank))
        await shared_pool.load("policy", spec, path=str(stories))
        await shared_pool.want([result])
        finished = config.model_copy(
            update={"checkpoint": config.checkpoint.model_copy(update={"export": "never"})}
        )
        await shared_pool.finish(finished, "policy", str(stories))
        model = config.reference.model.model_copy(update={"path": result})
        reference = ReferenceSpec(reference=ReferenceConfig(model=model), temperature=1.0)
        await shared_pool.load("reference", reference, path=result)
        held = held_weights(shared_pool, result)
        await shared_pool.want([])
        assert not shared_pool.state.models
        return held

    held = asyncio.run(keep_and_load())
    original = load_file(f"{stories}/model.safetensors")
    assert_same_bits(held, {name: original[name] for name in held})

    def gather(rank: Any) -> dict[str, Any]:
        assert not rank.kept
        lm = rank.learner.model.lm
        return {name: weight.detach().numpy().copy() for name, weight in lm.named_parameters()}

    assert_same_bits(on_ranks(shared_pool.state.roles["reference"], gather)[0], held)
