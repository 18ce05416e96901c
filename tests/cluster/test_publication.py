"""Published weights are the trained ones: adapters merged, in several buckets, and probed."""

from __future__ import annotations

import asyncio
import itertools
import json

import numpy as np
import pytest
from jobs import (
    TWO_RANKS_SHARED,
    inside,
    on_ranks,
    rollouts_of,
    run_loop,
    start_roles,
    train,
    weights_of,
)

from actors.engines.rollout import RolloutReplica
from rlhf_ray.data.chat.tokenizer import load_tokenizer
from rlhf_ray.errors import Disagreement, RunError
from rlhf_ray.loops.publication import publish
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.types import Prompt

LORA = {"policy": {"model": {"lora": {"rank": 4, "alpha": 16}}, "optim": {"lr": 5e-3}}}


def stretch_final_norm(rank, factor):
    import torch

    with torch.no_grad():
        rank.learner.lm.model.norm.weight.mul_(factor)


ENDLESS = {"rollout": {"stop": [], "stop_token_ids": [], "ignore_eos": True}}
LONG = 300  # tokens


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_adapters_are_published_merged(ranks, stage, pool, shared_pool, make_config, tmp_path):
    settings = {**LORA, "policy": {**LORA["policy"], "zero": {"stage": stage}}}
    if ranks == 2:
        settings["placement"] = TWO_RANKS_SHARED
    config = make_config(tmp_path, **settings)
    roles, steps = run_loop(config, pool if ranks == 1 else shared_pool)
    merged = weights_of(roles.policy.actors)
    assert not [name for name in merged if "lora" in name]
    start = on_ranks(roles.policy.actors, base_weight_of_a_layer)[0]
    layer = merged["model.layers.0.mlp.up_proj.weight"]
    assert np.linalg.norm(layer - start) > 1e-3 * np.linalg.norm(start)
    assert all(step["mismatch/logprob_abs_max"] < 1e-4 for step in steps)


def base_weight_of_a_layer(rank):
    import deepspeed

    weight = rank.learner.lm.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    with deepspeed.zero.GatheredParameters([weight]):
        return weight.detach().numpy().copy()


def test_weights_travel_in_several_buckets(pool, make_config, tmp_path):
    config = make_config(tmp_path, total_steps=1)
    folder = train(config, pool)
    [step] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[1:]]
    assert step["sync/bytes"] > config.publication.bucket_mb * 2**20
    assert step["mismatch/logprob_abs_max"] < 1e-4


def test_an_engine_with_other_weights_stops_the_run(pool, make_config, tmp_path):
    config = make_config(tmp_path)

    async def publish_to_nobody():
        roles = await start_roles(config, pool)
        assert (await publish(roles, 0)).logprob_abs_max < 1e-4

        async def compare(version):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(roles.rollout, "lacking", lambda version, exactly: [])
                patch.setattr(roles.rollout, "having", lambda version: [0])
                await roles.policy.publish(version)
                await roles.policy.compare()

        await compare(1)  # nothing has changed
        await inside(roles.policy.actors, stretch_final_norm, 1.2)
        await compare(2)

    with pytest.raises(Disagreement) as caught:
        asyncio.run(publish_to_nobody())
    assert list(caught.value.roles) == ["policy", "rollout"]
    message = str(caught.value)
    assert message.startswith("after publishing version 2, one/rollout/0 and the trainer differ")
    assert "(limit 0.001); worst tokens: {'sequence': " in message
    assert message.count("'token': ") == 5


def test_a_publication_that_carries_nan_stops_the_run(pool, make_config, tmp_path):
    config = make_config(tmp_path)

    async def publish_nan():
        roles = await start_roles(config, pool)
        nan = float("nan")
        await inside(roles.policy.actors, stretch_final_norm, nan)
        await publish(roles, 1)

    with pytest.raises(RunError, match="after publishing version 1"):
        asyncio.run(publish_nan())


def stretch_first_norm(rank, factor):
    """What every layer's keys and values follow from."""
    import torch

    with torch.no_grad():
        rank.learner.lm.model.layers[0].input_layernorm.weight.mul_(factor)


def most_tokens(replica):
    """Of what is being sampled, so far."""
    states = replica.engine.output_processor.request_states.values()
    return max((state.detokenizer.num_output_tokens() for state in states), default=0)


def requests(text, stories, num_groups, first_draw):
    """Of prompts that fill more than a block of the cache."""
    token_ids = load_tokenizer(str(stories), chat_template="", trust_remote_code=False)(text)
    prompt = Prompt(prompt_id="story", token_ids_T=tuple(token_ids["input_ids"][:160]), text=text)
    return [
        GenerationRequest(
            prompt=prompt, draw=draw, seeds_G=(2 * draw, 2 * draw + 1), temperature=1.0,
            max_new_tokens=LONG,
        )
        for draw in range(first_draw, first_draw + num_groups)
    ]  # fmt: skip


@pytest.mark.parametrize("running", ["recompute", "keep"])
def test_responses_go_on_with_new_weights(
    running, pool, make_config, stories, shared_data, tmp_path
):
    """Of six groups four find seats; new weights come amid them; the last two come after these."""
    config = make_config(tmp_path, **ENDLESS, publication={"running": running})
    text = (shared_data / "text/tinystories_sample.txt").read_text()[:4000]

    async def publish_amid():
        roles = await start_roles(config, pool)
        engines = roles.rollout.actors
        roles.rollout.dispatch.seats = 8
        await publish(roles, 0)
        answers = await roles.rollout.generate(requests(text, stories, 6, 0), together=False)
        while (await inside(engines, most_tokens))[0] < 20:
            await asyncio.sleep(0.02)
        await inside(roles.policy.actors, stretch_first_norm, 1.2)
        assert (await publish(roles, 1)).logprob_abs_max < 1e-4
        assert not any(answer.done() for answer in answers), "the probe waited for responses"
        rollouts = rollouts_of(await asyncio.gather(*answers))
        later = await roles.rollout.generate(requests(text, stories, 1, 6), together=False)
        rollouts += rollouts_of(await asyncio.gather(*later))
        score = engines.call(RolloutReplica.logprobs, timeout_s=60)
        [under_1] = await score(rollouts, 60.0)
        await inside(roles.policy.actors, stretch_first_norm, 1 / 1.2)
        # The number that other weights had: of another job, or of a run that goes on.
        roles.rollout.forget()
        await publish(roles, 1)
        answers = await roles.rollout.generate(requests(text, stories, 1, 7), together=False)
        last = rollouts_of(await asyncio.gather(*answers))
        [under_0] = await score([*rollouts, *last], 60.0)
        for rollout in reversed(last):
            assert abs(rollout.logprobs_T - under_0.pop()).max() < 1e-4, "of a cache before"
        return rollouts, under_0, under_1

    rollouts, under_0, under_1 = asyncio.run(publish_amid())
    kept_gaps = []
    for rollout, before, after in zip(rollouts, under_0, under_1, strict=True):
        versions_T = rollout.versions_T
        assert len(rollout.response_ids_T) == len(versions_T) == LONG
        assert all(a <= b for a, b in itertools.pairwise(versions_T))
        assert set(versions_T) == ({0, 1} if rollout.draw < 4 else {1})
        gap_0, gap_1 = abs(rollout.logprobs_T - before), abs(rollout.logprobs_T - after)
        if rollout.draw < 4:
            assert gap_0[versions_T == 0].max() < 1e-4
            assert gap_1[versions_T == 0].max() > 1e-3
        if running == "recompute" or rollout.draw >= 4:
            assert gap_1[versions_T == 1].max() < 1e-4
        else:
            kept_gaps.append(gap_1[versions_T == 1].max())
    assert running == "recompute" or min(kept_gaps) > 1e-3
