"""Adapters that engines get without the weights below, from two ranks of ZeRO-3."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from jobs import DEADLINES, TWO_RANKS_SHARED, run_loop, weights_of

from actors.pool.pool import Pool
from rlhf_ray.config.fault_tolerance import TimeoutConfig

SETTINGS = {
    "policy": {
        "model": {"lora": {"rank": 4, "alpha": 16}},
        "optim": {"lr": 5e-3},
        "zero": {"stage": 3},
    },
    "publication": {"adapters": "apart"},
    "placement": TWO_RANKS_SHARED,
}


@pytest.fixture
def own_pool(cluster):
    pool = Pool("apart", TimeoutConfig.model_validate(DEADLINES))
    yield pool
    asyncio.run(pool.close())


# An engine of its own takes a minute to start.
@pytest.mark.long
def test_engines_sample_with_the_adapters_that_were_trained(own_pool, make_config, tmp_path):
    roles, steps = run_loop(make_config(tmp_path, **SETTINGS), own_pool)
    merged = weights_of(roles.policy.actors)
    below = weights_of(roles.policy.actors, merged=False)
    layer = "model.layers.0.mlp.up_proj.weight"
    moved = np.linalg.norm(merged[layer] - below[layer])
    assert moved > 1e-3 * np.linalg.norm(below[layer])
    whole = sum(weight.nbytes for weight in merged.values())
    assert all(0 < step["sync/bytes"] < 0.2 * whole for step in steps)
    # The probe's gap after each publication, and that of the rollouts' own tokens.
    assert all(step["mismatch/logprob_abs_max"] < 1e-4 for step in steps)
