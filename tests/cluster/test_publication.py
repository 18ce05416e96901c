"""Published weights are the trained ones: adapters merged, in several buckets, and probed."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from jobs import TWO_RANKS_SHARED, inside, on_ranks, run_loop, start_roles, train, weights_of

from actors.cluster.role_handle import RoleHandle
from rlhf_ray.errors import RunError
from rlhf_ray.loops.publication import publish

LORA = {"policy": {"model": {"lora": {"rank": 4, "alpha": 16}}, "optim": {"lr": 5e-3}}}


def stretch_final_norm(rank, factor):
    import torch

    with torch.no_grad():
        rank.learner.lm.model.norm.weight.mul_(factor)


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
        nobody = RoleHandle("rollout")

        async def compare(version):
            roles.policy.replicas = nobody
            await roles.policy.publish(version)
            roles.policy.replicas = roles.rollout.actors
            await roles.policy.compare()

        await compare(1)  # nothing has changed
        await inside(roles.policy.actors, stretch_final_norm, 1.2)
        await compare(2)

    with pytest.raises(RunError) as caught:
        asyncio.run(publish_to_nobody())
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
