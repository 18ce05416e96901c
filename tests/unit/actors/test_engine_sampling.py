"""An engine's requests: admitted together, answered group by group, ended group by group."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from actors.engines.sampling import Ending, SamplingEngine
from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.errors import RunError
from rlhf_ray.roles import GenerationRequest
from rlhf_ray.types import Prompt


class Tokenizer:
    def decode(self, token_ids, **_):
        return " ".join(map(str, token_ids))


class FakeEngine:
    """VLLM's calls, written down; a request is answered when a test says so."""

    def __init__(self):
        self.calls, self.answers = [], {}
        self.refused = ""

    async def pause_generation(self, **_):
        self.calls.append("pause")

    async def resume_generation(self):
        self.calls.append("resume")

    async def add_request(self, request_id, prompt, params):
        self.calls.append(f"add {request_id}")
        await asyncio.sleep(0)
        if request_id == self.refused:
            raise ValueError(f"{request_id} is too long")
        self.answers[request_id] = asyncio.Queue()
        return self.answers[request_id]

    async def abort(self, request_ids):
        self.calls += [f"abort {request_id}" for request_id in sorted(request_ids)]

    def answer(self, request_id, reason="stop"):
        tokens = [5, 6]
        logprobs = SimpleNamespace(logprobs=[-1.0, -2.0], start_indices=[0, 1])
        output = SimpleNamespace(
            finish_reason=reason, stop_reason=None, token_ids=tokens, logprobs=logprobs,
            weight_versions=None,
        )  # fmt: skip
        self.answers[request_id].put_nowait(SimpleNamespace(finished=True, outputs=[output]))


@pytest.fixture
def replica():
    replica = SamplingEngine("job/rollout/0")
    replica.engine, replica.tokenizer, replica.version = FakeEngine(), Tokenizer(), 3
    return replica


def request(draw, num_samples=2):
    return GenerationRequest(
        prompt=Prompt(prompt_id=f"p{draw}", token_ids_T=(1, 2), text=""),
        draw=draw,
        seeds_G=tuple(range(num_samples)),
        temperature=1.0,
        max_new_tokens=4,
    )


async def admit(replica, *draws, timeout_s=60.0):
    await replica.admit([request(draw) for draw in draws], Ending(), timeout_s)


async def test_requests_of_a_wave_are_added_while_the_engine_stands(replica):
    await admit(replica, 7, 8)
    added = ["add p7/1", "add p7/2", "add p8/3", "add p8/4"]
    assert replica.engine.calls == ["pause", *added, "resume"]


async def test_a_group_is_answered_before_others_and_again(replica):
    await admit(replica, 7, 8)
    for request_id in ("p8/4", "p8/3"):
        replica.engine.answer(request_id)
    for _ in range(2):
        summaries_G, rollouts_G = await replica.finished(8)
        assert [(r.draw, r.sample) for r in rollouts_G] == [(8, 0), (8, 1)]
        assert [s.sample for s in summaries_G] == [0, 1]
        assert {s.version_min for s in summaries_G} == {3}
    assert not replica.groups[7].task.done()
    # It was answered: it goes when others are admitted, and its draw may come again.
    await admit(replica, 9)
    with pytest.raises(RunError, match="asked for draw 8, which it does not sample"):
        await replica.finished(8)


async def test_whoever_gives_up_waiting_ends_nothing(replica):
    await admit(replica, 7)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(replica.finished(7), 0.01)
    for request_id in ("p7/1", "p7/2"):
        replica.engine.answer(request_id)
    _, rollouts_G = await replica.finished(7)
    assert len(rollouts_G) == 2


@pytest.mark.parametrize("how", ["aborted", "failed", "late"])
async def test_a_group_that_ends_ends_its_own_requests(replica, how):
    await admit(replica, 7, timeout_s=0.05 if how == "late" else 60.0)
    await admit(replica, 8)
    if how == "aborted":
        waiting = asyncio.ensure_future(replica.finished(7))
        await asyncio.sleep(0)
        await replica.abort([7])
        error, message = RunError, "draw 7 was aborted"
    else:
        waiting = replica.finished(7)
        if how == "failed":
            for request_id in ("p7/1", "p7/2"):
                replica.engine.answer(request_id, reason="error")
        error = DeadlineError if how == "late" else RunError
        message = "the answer to p7/1" if how == "late" else "p7: vLLM ended the request: error"
    with pytest.raises(error, match=message):
        await waiting
    ended = ["abort p7/1", "abort p7/2"] if how != "failed" else []
    assert [call for call in replica.engine.calls if call.startswith("abort")] == ended
    assert replica.running == {"p8/3", "p8/4"}


async def test_a_draw_is_not_sampled_twice_at_a_time(replica):
    await admit(replica, 7)
    with pytest.raises(RunError, match=r"samples draws \[7\] already"):
        await admit(replica, 7, 8)
    assert set(replica.groups) == {7}


async def test_what_a_job_left_behind_is_dropped(replica):
    await admit(replica, 7, 8)
    await replica.drop_requests()
    assert (replica.groups, replica.running) == ({}, set())
    assert sorted(replica.engine.calls[-4:]) == [
        "abort p7/1", "abort p7/2", "abort p8/3", "abort p8/4"
    ]  # fmt: skip
    await admit(replica, 7)


@pytest.mark.parametrize("num_added", [1, 2, 3])
async def test_what_is_aborted_while_it_is_admitted_leaves_no_request(replica, num_added):
    admission = asyncio.ensure_future(admit(replica, 7, 8, 9))
    while sum(call.startswith("add") for call in replica.engine.calls) < num_added:
        await asyncio.sleep(0)
    await replica.abort([7, 8])
    await admission
    assert (set(replica.groups), replica.admitting) == ({9}, set())
    assert {request_id.partition("/")[0] for request_id in replica.running} == {"p9"}


async def test_a_group_that_is_not_admitted_whole_leaves_no_request(replica):
    replica.engine.refused = "p7/2"
    with pytest.raises(ValueError, match="p7/2 is too long"):
        await admit(replica, 7)
    assert replica.engine.calls[-2:] == ["abort p7/1", "resume"]
    assert (replica.groups, replica.admitting) == ({}, set())


async def test_an_engine_without_a_model_admits_nothing(replica):
    replica.sleeping.has_model = False
    with pytest.raises(RunError, match="asked to sample without a model"):
        await admit(replica, 7)
    assert replica.engine.calls == []
    assert replica.groups == {}
