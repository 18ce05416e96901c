"""A second model: untied, biased, at another temperature, its engine started from an export.

Its engine takes the place of the first one, so this file comes last of those that use one.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from jobs import (
    TWO_RANKS_SHARED,
    arrays_of,
    inside,
    laid_over,
    process_ids,
    rollouts_of,
    run_loop,
    start_roles,
    weights_of,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.engines.rollout import RolloutReplica
from actors.ranks.group import RankSpec
from actors.ranks.policy import PolicyGroup, PolicyRank
from actors.weights.probe import probe_sequences
from rlhf_ray.jobs.online import PPO
from rlhf_ray.loops.publication import publish
from rlhf_ray.own_rows import dealt
from rlhf_ray.packing import plan_update
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.rollouts.feed import sample_all
from rlhf_ray.specs import PolicySpec
from rlhf_ray.types import Experience

TEMPERATURE = 0.7
CONTEXT = 1024
ENGINE = {
    "rollout": {
        "temperature": TEMPERATURE,
        "ignore_eos": True,
        "stop": [],
        "stop_token_ids": [],
    }
}


@pytest.fixture(scope="module")
def fresh_model(stories, make_model):
    """An untied Llama with biases, random weights, and the stories' tokenizer."""
    return make_model(
        "llama",
        tokenizer_of=stories,
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=2,
        num_key_value_heads=1,
        attention_bias=True,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        initializer_range=0.15,
        pad_token_id=None,
    )


@pytest.fixture(scope="module")
def exported(fresh_model, shared_pool, make_config, tmp_path_factory):
    """That model, trained for a step on two ranks under ZeRO-3, and exported.

    Gives the folder, some rows, and their log-probabilities under the trainer's weights.
    """
    folder = tmp_path_factory.mktemp("exported")
    config = make_config(
        folder,
        **laid_over(
            ENGINE,
            {
                "placement": TWO_RANKS_SHARED,
                "policy": {"model": {"path": str(fresh_model)}, "zero": {"stage": 3}},
            },
        ),
    )
    rows = probe_sequences(PPO.load(config).prompts, 8)
    lengths = [row.num_tokens for row in rows]
    plan = plan_update(
        lengths,
        [len(row.response_ids_T) for row in rows],
        data_parallel_size=2,
        max_tokens_per_micro_batch=120,
        num_minibatches=1,
        num_epochs=1,
        seed=0,
        padded=False,
    )

    async def train_and_export():
        shared_pool.place({"policy": config.placement.policy})
        actors = await shared_pool.start("policy", RankSpec(actor_class=PolicyRank))
        spec = PolicySpec(
            learner=config.policy,
            algorithm=config.algorithm,
            temperature=1.0,
            max_new_tokens=24,
            total_steps=1,
            replay_folder="",
            seed=0,
        )
        await actors.call(PolicyRank.load, timeout_s=60)(spec)
        policy = PolicyGroup(actors=actors, config=config.policy, timeouts=config.timeouts)
        await policy.update(dealt([experience(row) for row in rows], plan), plan, 0.0)
        await actors.call(PolicyRank.export, timeout_s=60)(str(folder / "export"), str(fresh_model))
        return (await actors.call(PolicyRank.logprobs_of, timeout_s=60)(rows))[0]

    return folder / "export", rows, asyncio.run(train_and_export())


def experience(rollout):
    zeros = np.zeros(len(rollout.response_ids_T), dtype=np.float32)
    return Experience(
        rollout=replace(rollout, logprobs_T=zeros - 5),
        old_logprobs_T=zeros - 5,
        reference_logprobs_T=zeros,
        values_T=zeros,
        advantages_T=zeros + 1,
        returns_T=zeros,
    )


@pytest.fixture(scope="module")
def config(exported, make_config, tmp_path_factory):
    model = {"policy": {"model": {"path": str(exported[0])}}}
    return make_config(tmp_path_factory.mktemp("job"), **laid_over(ENGINE, model))


@pytest.fixture(scope="module")
def engine_before(shared_pool, pool):
    """Processes of the engine that the next one replaces."""
    actor = process_ids(pool)["one/rollout/0"]
    return [actor, *(child.pid for child in psutil.Process(actor).children(recursive=True))]


@pytest.fixture(scope="module")
def started(engine_before, config, pool):
    """Roles whose engine has read the export and was sent nothing."""
    return asyncio.run(start_roles(config, pool))


def test_an_export_loads_in_transformers(exported, fresh_model):
    folder, rows, trainer = exported
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    before = AutoModelForCausalLM.from_pretrained(fresh_model, dtype=torch.float32)
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)
    assert AutoTokenizer.from_pretrained(folder)("Once upon")["input_ids"] == [1, 403, 407]
    for row, ours in zip(rows, trainer, strict=True):
        token_ids = torch.tensor([[*row.prompt.token_ids_T, *row.response_ids_T.tolist()]])
        with torch.no_grad():
            logprobs_TV = model(token_ids).logits[0, :-1].log_softmax(-1)
        theirs = logprobs_TV.gather(-1, token_ids[0, 1:, None]).squeeze(-1)
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_an_export_loads_in_vllm(exported, started):
    _, rows, trainer = exported
    score = started.rollout.actors.call(RolloutReplica.logprobs, timeout_s=60)
    [engine] = asyncio.run(score(rows, 60.0))
    for ours, theirs in zip(trainer, engine, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_engine_and_trainer_agree_at_another_temperature(config, started, pool, tmp_path):
    start = weights_of(started.policy.actors)
    roles, steps = run_loop(config.model_copy(update={"run_dir": str(tmp_path)}), pool)
    assert all(step["mismatch/logprob_abs_max"] < 1e-4 for step in steps)
    assert all(step["rollout/truncated_share"] == 1.0 for step in steps), "ignore_eos"
    trained = weights_of(roles.policy.actors)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert np.linalg.norm(trained[name] - start[name]) > 1e-3 * np.linalg.norm(start[name])


def stretch(rank, factor):
    """Set the final norm to its first value times `factor`."""
    import torch

    weight = rank.learner.lm.model.norm.weight
    with torch.no_grad():
        rank.first_norm = getattr(rank, "first_norm", weight.detach().clone())
        weight.copy_(rank.first_norm * factor)


def test_a_publication_into_running_requests_loses_none(config, started, pool, tmp_path):
    num_tokens = 400
    requests = [
        GenerationRequest(
            prompt=prompt,
            draw=draw,
            seeds_G=(1, 2),
            temperature=TEMPERATURE,
            max_new_tokens=num_tokens,
        )
        for draw, prompt in enumerate(PPO.load(config).prompts[:4])
    ]

    async def publish_while_it_generates():
        roles = await start_roles(config, pool)
        await publish(roles, 100)
        generating = asyncio.create_task(sample_all(roles.rollout, requests))
        version = 100
        while not generating.done():
            await asyncio.sleep(0.3)
            version += 1
            factor = 1.0 + 0.01 * (version - 100)
            await inside(roles.policy.actors, stretch, factor)
            publication = await publish(roles, version)
            assert publication.logprob_abs_max < 1e-4
        groups = await generating
        await inside(roles.policy.actors, stretch, 1.0)
        [said] = await roles.policy.logprobs(groups, ["policy"])
        return groups, said, version

    groups, said, last = asyncio.run(publish_while_it_generates())
    rollouts, under_100 = rollouts_of(groups), arrays_of(said, groups)
    summaries_B = [summary for group in groups for summary in group.summaries_G]
    assert len(rollouts) == 8
    assert last > 101, "generation was over before two publications"
    for rollout, trainer, summary in zip(rollouts, under_100, summaries_B, strict=True):
        versions = rollout.versions_T
        assert len(rollout.response_ids_T) == len(versions) == num_tokens
        assert summary.version_min == versions[0] == 100
        assert summary.version_max == versions[-1] > 100
        assert np.all(np.diff(versions) >= 0)
        # Each token's version is that of the weights that gave its log-probability.
        gap = np.abs(rollout.logprobs_T - trainer)
        assert gap[versions == 100].max() < 1e-4
        assert gap[versions != 100].max() > 1e-3


def test_the_engine_before_it_has_left_with_all_its_processes(engine_before, started, pool):
    assert len(engine_before) > 1
    assert process_ids(pool)["one/rollout/0"] not in engine_before
    _, alive = psutil.wait_procs([p for pid in engine_before if (p := process(pid))], timeout=20)
    assert not alive


def process(pid):
    return psutil.Process(pid) if psutil.pid_exists(pid) else None
