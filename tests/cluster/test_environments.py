"""Policies in environments, on the real engine: tokens, log-probabilities, seeds, failures."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import vllm._custom_ops  # noqa: F401  (vLLM's kernels)
from jobs import TEMPLATE, arrays_of, metrics_of, rollouts_of, start_roles, train
from transformers import AutoModelForCausalLM

from actors.engines.draws import draw
from rlhf_ray.data.chat.tokenizer import load_tokenizer
from rlhf_ray.environments.turns import TurnTemplate
from rlhf_ray.environments.verifiers import agent as verifiers
from rlhf_ray.errors import RunError
from rlhf_ray.jobs.online import PPO
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.loops.publication import publish
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.rollouts.groups import Sampling, Tries
from rlhf_ray.rollouts.seeds import turn_seed

WORLD = f"{Path(__file__).with_name('worlds.py')}:Echo"
ENDS = (1, 2)  # `<s>` and `</s>`, which the tokenizer and the model name


@pytest.fixture
def in_a_world(make_config, tmp_path):
    """`in_a_world(**environment)`: a job in it."""

    def make(folder=None, ahead=None, **environment):
        sections = {
            **(ahead or {}),
            "total_steps": 2,
            "policy": {"model": {"chat_template": TEMPLATE}},
            "environment": {"path": WORLD, "timeout_s": 5.0, **environment},
            "reward": (ahead or {}).get("reward", {"functions": []}),
            "data": {"chat": True},
        }
        return make_config(folder or tmp_path / "run", **sections)

    return make


def requests_of(config, *, num_samples=2):
    prompts = PPO.load(config).prompts
    return [
        GenerationRequest(
            prompt=prompts[number],
            draw=number,
            seeds_G=tuple(100 * number + sample for sample in range(num_samples)),
            temperature=1.0,
            max_new_tokens=40,
        )
        for number in range(4)
    ]


def sampled(config, pool):
    """Groups, and what the trainer says of them."""

    async def run():
        roles = await start_roles(config, pool)
        await publish(roles, 0)
        sampling = Sampling(roles.rollout, Tries(config.failures.row))
        groups = await sampling.all(requests_of(config))
        [said] = await roles.policy.logprobs(groups, ["policy"])
        return groups, said

    return asyncio.run(run())


def test_rollouts_are_what_the_engine_was_asked_and_gave(in_a_world, pool, stories):
    config = in_a_world()
    groups, said = sampled(config, pool)
    assert not any(group.failed for group in groups)
    tokenizer = load_tokenizer(str(stories), chat_template=TEMPLATE, trust_remote_code=False)
    template = TurnTemplate(tokenizer=tokenizer, end_ids=frozenset(ENDS))
    model = AutoModelForCausalLM.from_pretrained(stories)
    seeds = [seed for request in requests_of(config) for seed in request.seeds_G]
    several = 0
    for rollout, seed, theirs_T in zip(
        rollouts_of(groups), seeds, arrays_of(said, groups), strict=True
    ):
        own_T = rollout.action_mask_T
        np.testing.assert_allclose(rollout.logprobs_T[own_T], theirs_T[own_T], atol=1e-4)
        assert not rollout.logprobs_T[~own_T].any() and (rollout.versions_T[own_T] == 0).all()
        assert (rollout.versions_T[~own_T] == -1).all()
        response = rollout.response_ids_T.tolist()
        ids_T = [*rollout.prompt.token_ids_T, *response]
        with torch.no_grad():
            logits_TV = model(torch.tensor([ids_T])).logits[0].float()
        at, num_turns = len(rollout.prompt.token_ids_T), len(rollout.turns)
        told = [message for message in rollout.messages if message["role"] == "user"]
        for number, turn in enumerate(rollout.turns):
            end = at + turn.num_tokens
            noise = np.full(turn.num_tokens, turn_seed(seed, number), np.uint64)
            drawn = draw(
                logits_TV[at - 1 : end - 1].contiguous(),
                noise,
                np.arange(turn.num_tokens, dtype=np.uint64),
            )
            assert drawn.tolist() == ids_T[at:end]
            if number < num_turns - 1:
                between = template.tokens(ids_T[end - 1], [told[number]])
                assert ids_T[end : end + len(between)] == between
                at = end + len(between)
        assert end == len(ids_T) and own_T.sum() == sum(t.num_tokens for t in rollout.turns)
        assert own_T.sum() <= 40
        assert len({message["content"][-1] for message in told}) <= 1, "one seed a draw"
        several += num_turns > 1
    assert several > 2


# On the same engine, which has these seats together (see the tests of recovery).
AHEAD = {
    "max_staleness": 2,
    "rollout": {"max_num_seqs": 48},
    "publication": {"probe_sequences": 16},
}


@pytest.mark.parametrize(
    "ahead", [{}, pytest.param(AHEAD, marks=pytest.mark.long)], ids=["in step", "ahead"]
)
def test_a_job_is_trained_on_what_environments_give(ahead, in_a_world, pool, tmp_path):
    folder = train(in_a_world(ahead=ahead, max_turns=2), pool)
    steps = [step for step in metrics_of(folder) if step["step"]]
    assert len(steps) == 2
    for step in steps:
        assert step["reward/environment"] == pytest.approx(step["rollout/reward_mean"])
        assert 1 < step["environment/turns_mean"] <= 2
        assert step["environment/tokens_mean"] > 1
        assert "environment/failed_raised" not in step, "nothing failed"
        assert step["mismatch/logprob_abs_max"] < 1e-3


@pytest.fixture(scope="module")
def undisturbed():
    """What is sampled where nothing fails, once it is known."""
    return []


@pytest.mark.parametrize(
    ("fails", "causes"),
    [
        ("raises", ["raised"]),
        # It may be any group's doing that a worker is gone.
        ("exits", []),
        pytest.param("blocks", [], marks=pytest.mark.long),
    ],
)
def test_a_group_whose_environment_fails_is_sampled_again(
    fails, causes, undisturbed, in_a_world, pool, tmp_path
):
    if not undisturbed:
        undisturbed += rollouts_of(sampled(in_a_world(), pool)[0])
    arguments = {"counts": str(tmp_path / "counts"), "fails": fails, "at": 3}
    groups, _ = sampled(in_a_world(arguments=arguments), pool)
    assert (tmp_path / "counts").stat().st_size > 3
    assert [cause for group in groups for cause in group.failed] == causes
    for one, other in zip(undisturbed, rollouts_of(groups), strict=True):
        assert one.response_ids_T.tolist() == other.response_ids_T.tolist()
        assert one.environment_reward == other.environment_reward


def test_a_draw_that_no_environment_could_be_played_for_is_not_met_again(
    in_a_world, pool, tmp_path, monkeypatch
):
    """The run breaks down behind it; resumed, it goes on from the journal, without that draw."""
    world = {"path": WORLD.replace("Echo", "Poisoned"), "max_turns": 2}
    arguments = {"folder": str(tmp_path), "at": 10}  # those of step 1
    # With a reward function: an answer that is cut at once has nothing of its environment.
    ahead = {"failures": {"row": {"retries": 1}}, "checkpoint": {"every": 1}, "reward": {}}
    config = in_a_world(ahead=ahead, arguments=arguments, **world)
    update = OnlineLoop._update

    async def breaks_down(loop, step, scored, kl_coefficient):
        if step == 2:
            raise RunError("the machine broke down")
        return await update(loop, step, scored, kl_coefficient)

    with monkeypatch.context() as patched:
        patched.setattr(OnlineLoop, "_update", breaks_down)
        with pytest.raises(RunError, match="the machine broke down"):
            train(config, pool)
    assert (tmp_path / "poisoned").read_text()
    num_resets = (tmp_path / "resets").stat().st_size
    folder = train(config.model_copy(update={"resume": "auto"}), pool)
    assert (tmp_path / "resets").stat().st_size == num_resets, "nobody acts again"
    _, first, second = metrics_of(folder)
    assert "environment/failed_raised" not in first and first["rollout/trained_groups"] == 5
    assert second["environment/failed_raised"] == 2
    assert second["environment/skipped_groups"] == 1
    assert (second["rollout/trained_groups"], second["rollout/left_out_groups"]) == (4, 1)
    assert second["rollout/unscored"] == 0 and "reward/skipped_groups" not in second


def test_an_agent_that_knows_a_url_is_trained_as_it_is(in_a_world, pool):
    agent = {
        "path": "rlhf_ray.environments.agent:Agent",
        "arguments": {"command": [sys.executable, str(Path(__file__).with_name("an_agent.py"))]},
        "max_turns": 2,
        "timeout_s": 20.0,
    }
    groups, said = sampled(in_a_world(**agent), pool)
    assert not any(group.failed for group in groups)
    rollouts = rollouts_of(groups)
    for rollout, theirs_T in zip(rollouts, arrays_of(said, groups), strict=True):
        own_T = rollout.action_mask_T
        np.testing.assert_allclose(rollout.logprobs_T[own_T], theirs_T[own_T], atol=1e-4)
        if rollout.finish_reason == "stop":
            first, told, second = (message["content"] for message in rollout.messages)
            assert told == f"{len(first)} letters"
            assert rollout.environment_reward == pytest.approx(len(second) / 100)
    assert any(rollout.finish_reason == "stop" for rollout in rollouts)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_environment_of_verifiers_is_trained(make_config, pool, tmp_path, monkeypatch):
    """By a Python that has the package, which this one cannot have: RLHF_RAY_VERIFIERS."""
    python = os.environ.get("RLHF_RAY_VERIFIERS")
    if not python:
        pytest.skip("RLHF_RAY_VERIFIERS names no Python with the package verifiers")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("verifiers_tasks")))
    command = [python, verifiers.__file__, "many_letters"]
    rows = tmp_path / "rows.jsonl"
    subprocess.run([*command, "--rows", str(rows)], check=True, timeout=300)
    config = make_config(
        tmp_path / "run",
        total_steps=1,
        prompts_per_step=2,
        data={"path": str(rows), "chat": True},
        policy={"model": {"chat_template": TEMPLATE}},
        reward={"functions": []},
        environment={
            "path": "rlhf_ray.environments.agent:Agent",
            "arguments": {"command": ["env", f"PYTHONPATH={os.environ['PYTHONPATH']}", *command]},
            "max_turns": 1,
            "timeout_s": 300.0,
        },
        timeouts={"call_s": 1000},
    )
    _, step = metrics_of(train(config, pool))
    assert step["environment/turns_mean"] == 1
    assert 0 <= step["reward/environment"] < 1
    assert "environment/skipped_groups" not in step


@pytest.mark.parametrize("acts", [True, False], ids=["environment", "single turn"])
def test_a_task_of_reasoning_gym_is_trained_by_its_name(
    acts, make_config, pool, tmp_path, monkeypatch
):
    pytest.importorskip("reasoning_gym")
    monkeypatch.setenv("RLHF_RAY_CACHE", str(tmp_path / "cache"))
    verified = [{"path": "rlhf_ray.rewards.reasoning_gym:verified"}]
    config = make_config(
        tmp_path / "run",
        total_steps=2,
        data={"path": "reasoning_gym:chain_sum,size=16"},
        policy={"model": {"chat_template": TEMPLATE}},
        reward={"functions": [] if acts else verified},
        environment={"reasoning_gym": "chain_sum", "timeout_s": 5} if acts else {},
    )
    steps = [step for step in metrics_of(train(config, pool)) if step["step"]]
    name = "reward/environment" if acts else "reward/verified"
    assert len(steps) == 2 and all(0 <= step[name] <= 1 for step in steps)
    if acts:  # what ended by a token was wrong, and may be given again
        assert all(step["environment/turns_mean"] > 1 for step in steps)
