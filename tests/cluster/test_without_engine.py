"""An engine whose process dies amid what it is asked: nobody waits for it, and it is replaced.

It is the session's, whichever that is by now, so this file comes after all that use one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
import ray

from actors.engines.replica_spec import ReplicaSpec
from actors.engines.samples import Ending
from actors.roles.engines import engine_spec
from actors.weights.probe import probe_sequences
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.errors import RunError
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.types import Prompt

PROMPT = Prompt(prompt_id="p", token_ids_T=(1, 403, 407), text="")


def process_of_engine(replica):
    [process] = replica.engine.engine_core.resources.engine_manager.processes
    return process.pid


async def test_whoever_waits_for_an_engine_that_dies_is_told(pool, make_config, tmp_path):
    pool.place({"rollout": GroupConfig()})
    held = pool.state.roles.get("rollout")
    spec = held.spec if held else ReplicaSpec(engine=engine_spec(make_config(tmp_path)))
    [replica] = (await pool.start("rollout", spec)).actors

    def admit(draw, together):
        request = GenerationRequest(
            prompt=PROMPT, draw=draw, seeds_G=(1, 2), temperature=1.0, max_new_tokens=400
        )
        return replica.admit.remote([request], Ending(ignore_eos=True), 60.0, together)

    process = await replica.__ray_call__.remote(process_of_engine)
    await admit(1, together=True)
    os.kill(process, signal.SIGSTOP)
    asked = {
        "the answer to p/": replica.finished.remote(1),
        "the engine's pause_generation": replica.start_weight_update.remote(60.0, False),
        "admission": admit(2, together=False),
        "the engine's collective_rpc": replica.usage.remote(),
        "the answer to probe/": replica.logprobs.remote(probe_sequences([PROMPT], 1), 60.0),
    }
    done, _ = ray.wait(list(asked.values()), num_returns=1, timeout=1.0)
    assert not done
    os.kill(process, signal.SIGKILL)
    died_s = time.monotonic()
    for operation, answer in asked.items():
        with pytest.raises(RunError, match=f"{operation}.* cannot be used: its engine died"):
            await asyncio.wait_for(answer, 10)
    assert time.monotonic() - died_s < 3.0
    for answer in (admit(3, together=True), replica.sleep.remote(1, 60.0)):
        with pytest.raises(RunError, match="its engine died"):
            await asyncio.wait_for(answer, 2)
    assert (await replica.health.remote())["fault"] == "its engine died"
    await pool.heal()
    assert "rollout" not in pool.state.roles
