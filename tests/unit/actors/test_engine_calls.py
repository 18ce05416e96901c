"""An engine that dies, hangs or fails amid a call: who waits is told, and nobody waits again."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from fake_vllm import FakeEngine, Tokenizer

from actors.engines.rollout import RolloutReplica
from actors.engines.samples import Ending
from actors.engines.spec import EngineSpec
from rlhf_ray.config.rollout import EngineConfig
from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.errors import RunError
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.types import Prompt, Rollout

PROMPT = Prompt(prompt_id="p", token_ids_T=(1, 2), text="")
ROLLOUT = Rollout(
    prompt=PROMPT,
    draw=1,
    sample=0,
    response_ids_T=np.array([3], dtype=np.int32),
    logprobs_T=np.zeros(1, dtype=np.float32),
    versions_T=np.zeros(1, dtype=np.int32),
    action_mask_T=np.ones(1, dtype=np.bool_),
    finish_reason="stop",
    text="",
)


@pytest.fixture
def replica(monkeypatch):
    monkeypatch.setattr("actors.engines.rollout.use_cluster_network", lambda: None)
    spec = EngineSpec(
        model_path="m", tokenizer_path="m", revision="", identity="", trust_remote_code=False,
        engine=EngineConfig(), max_model_len=64, num_gpus=1, weight_backend="nccl", sleeps=True,
    )  # fmt: skip
    replica = RolloutReplica("job/rollout/0", {}, spec)
    replica.engine, replica.tokenizer = FakeEngine(), Tokenizer()
    return replica


async def admit(replica, draw=1, timeout_s=60.0, together=True):
    request = GenerationRequest(
        prompt=PROMPT, draw=draw, seeds_G=(1, 2), temperature=1.0, max_new_tokens=4
    )
    await replica.admit([request], Ending(), timeout_s, together)


def admit_another(replica):
    return admit(replica, draw=2)


async def publish(replica, version=5, timeout_s=60.0):
    await replica.start_weight_update(timeout_s, keeps_cache=False)
    await replica.update_weights({})
    return await replica.finish_weight_update(version, "")


async def finish(replica):
    await admit(replica)
    await replica.finished(1)


async def wake(replica):
    await replica.sleep(1, 60.0)
    await replica.wake_up(None, 60.0)


def score(replica):
    return replica.logprobs([ROLLOUT], 60.0)


# What hangs, and who waits for it.
CALLS = {
    "pause_generation": admit,
    "add_request": admit,
    "resume_generation": admit,
    r"the answer to p/\d": finish,
    "the answer to probe/1": score,
    "abort": lambda replica: finish_and_drop(replica),
    "start_weight_update": publish,
    "update_weights": publish,
    "finish_weight_update": publish,
    "sleep": lambda replica: replica.sleep(2, 60.0),
    "wake_up": wake,
    "collective_rpc": lambda replica: replica.usage(),
    "shutdown_weight_transfer_engine": lambda replica: replica.init_weight_transfer({}, 60.0),
    "init_weight_transfer_engine": lambda replica: replica.init_weight_transfer({}, 60.0),
}
METHODS = {"pause_generation": "pause", "resume_generation": "resume", "add_request": "add"}


async def finish_and_drop(replica):
    await admit(replica)
    await replica.drop([1])


@pytest.mark.parametrize("operation", CALLS)
async def test_whoever_waits_for_an_engine_that_dies_is_told(replica, operation):
    replica.engine.hangs = METHODS.get(operation, operation)
    waiting = [asyncio.ensure_future(CALLS[operation](replica))]
    await asyncio.sleep(0.05)
    if replica.scheduler.locked():
        waiting.append(asyncio.ensure_future(replica.sleep(1, 60.0)))
        await asyncio.sleep(0.05)
    assert not any(call.done() for call in waiting)
    replica.engine.errored, died_s = True, time.monotonic()
    for call, named in zip(waiting, (operation, "sleep"), strict=False):
        with pytest.raises(RunError, match=f"{named}: job/rollout/0 cannot be used: its engine d"):
            await call
    assert time.monotonic() - died_s < 1.0
    assert not replica.scheduler.locked()
    for call in (admit_another, score, publish, wake):
        started_s = time.monotonic()
        with pytest.raises(RunError, match="its engine died"):
            await call(replica)
        assert time.monotonic() - started_s < 1.0  # at once: no wait, whose deadline is a minute
    assert (await replica.health())["fault"] == "its engine died"


@pytest.mark.parametrize("how", ["hangs", "fails"])
@pytest.mark.parametrize(
    ("method", "operation"),
    [
        ("pause and forget", "pause_generation"),
        ("start_weight_update", "start_weight_update"),
        ("update_weights", "update_weights"),
        ("finish_weight_update", "finish_weight_update"),
        ("resume", "resume_generation"),
    ],
    ids=lambda name: name.replace(" ", "_"),
)
async def test_an_engine_that_is_left_amid_a_publication_is_not_used_again(
    replica, how, method, operation
):
    await admit(replica)
    running = asyncio.ensure_future(replica.finished(1))
    await asyncio.sleep(0)
    setattr(replica.engine, how, method.partition(" ")[0])
    error = RunError if how == "hangs" else ValueError
    with pytest.raises(error, match=operation if how == "hangs" else "is not possible"):
        await publish(replica, timeout_s=0.05)
    # What runs on it ends as well, not at its deadline: it will never be resumed.
    with pytest.raises(RunError, match=r"the answer to p/\d: job/rollout/0 cannot be used: "):
        await running
    health = await replica.health()
    # The first call has the deadline of all.
    whole = "a publication to it did not end"
    assert health["fault"].startswith((f"its {operation} failed", whole * (how == "hangs")))
    assert not health["updating"]
    setattr(replica.engine, how, "")
    for call in (publish, admit_another, score, wake):
        with pytest.raises(RunError, match="cannot be used"):
            await call(replica)


async def test_a_publication_that_nobody_ends_ends_by_its_deadline(replica):
    await replica.start_weight_update(0.05, keeps_cache=True)
    assert replica.engine.calls == ["pause", "start_weight_update"], "the cache is kept"
    assert (await replica.health())["updating"]
    with pytest.raises(RunError, match="admission: job/rollout/0 cannot be used"):
        await admit(replica)
    assert (await replica.health())["fault"] == "a publication to it did not end"
    assert not replica.scheduler.locked()


async def test_a_publication_that_ended_leaves_no_deadline_behind(replica):
    for version in (5, 6):
        assert await publish(replica, version, timeout_s=0.05) == version
    await asyncio.sleep(0.1)
    assert await replica.health() == {
        "name": "job/rollout/0", "version": 6, "fault": "", "updating": False
    }  # fmt: skip
    await admit(replica)


async def test_an_admission_that_does_not_resume_the_engine_is_its_last(replica):
    replica.engine.fails = "resume"
    with pytest.raises(ValueError, match="resume is not possible"):
        await admit(replica)
    assert not replica.scheduler.locked()
    assert (await replica.health())["fault"].startswith("its resume_generation failed")
    assert (replica.groups, replica.running) == ({}, set())


async def test_an_admission_that_cannot_pause_lets_others_go_on(replica):
    replica.engine.fails = "pause"
    with pytest.raises(ValueError, match="pause is not possible"):
        await admit(replica)
    assert replica.engine.calls == ["pause", "resume"]
    await admit(replica, together=False)


@pytest.mark.parametrize("method", ["sleep", "wake_up"])
async def test_an_engine_between_sleep_and_work_is_not_used_again(replica, method):
    replica.engine.hangs = method
    with pytest.raises(DeadlineError, match=f"the engine's {method}|waking up|sleep"):
        await replica.sleep(1, 0.05)
        await replica.wake_up(None, 0.05)
    assert not replica.scheduler.locked()
    assert (await replica.health())["fault"].startswith(f"its {method} failed")
    with pytest.raises(RunError, match=f"its {method} failed"):
        await admit(replica)


async def test_an_engine_that_is_not_started_says_so(replica):
    replica.engine = None
    assert (await replica.health())["fault"] == "it is not started"
