"""An engine's requests: admitted in groups, answered group by group, ended group by group."""

from __future__ import annotations

import asyncio

import pytest
from fake_vllm import FakeEngine, Tokenizer

from actors.engines.samples import Ending
from actors.engines.sampling import SamplingEngine
from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.errors import RunError
from rlhf_ray.metrics.spans import PROCESS
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.types import Prompt


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


async def admit(replica, *draws, timeout_s=60.0, together=True):
    await replica.admit([request(draw) for draw in draws], Ending(), timeout_s, together)


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def until_added(replica, num_requests):
    while len(replica.engine.called("add")) < num_requests:
        await asyncio.sleep(0)


async def test_requests_of_a_wave_are_added_while_the_engine_stands(replica):
    await admit(replica, 7, 8)
    added = ["add p7/1", "add p7/2", "add p8/3", "add p8/4"]
    assert replica.engine.calls == ["pause", *added, "resume"]


async def test_a_group_alone_is_added_while_the_engine_runs(replica):
    await admit(replica, 7, together=False)
    assert replica.engine.calls == ["add p7/1", "add p7/2"]


async def test_whoever_is_admitted_waits_for_a_wave_and_for_new_weights(replica):
    replica.engine.hangs = "pause"
    wave = asyncio.ensure_future(admit(replica, 7, 8, timeout_s=0.05))
    await asyncio.sleep(0)
    alone = asyncio.ensure_future(admit(replica, 9, together=False))
    await settle()
    assert replica.engine.calls == ["pause"]
    with pytest.raises(DeadlineError, match=r"pause_generation|admission"):
        await wave
    await alone
    assert replica.engine.calls == ["pause", "resume", "add p9/1", "add p9/2"]
    replica.engine.hangs = ""
    await replica.take_scheduler("new weights", 60.0)
    with pytest.raises(DeadlineError, match="admission: no answer from job/rollout/0"):
        await admit(replica, 10, timeout_s=0.05)
    assert set(replica.groups) == {9}
    late = asyncio.ensure_future(admit(replica, 10))
    await settle()
    replica.scheduler.release()
    await late
    assert set(replica.groups) == {9, 10}


async def test_a_group_is_answered_before_others_and_again(replica):
    await admit(replica, 7, 8)
    for request_id in ("p8/4", "p8/3"):
        replica.engine.answer(request_id)
    for others in ([9], [10], []):
        summaries_G, rollouts_G = await replica.finished(8)
        assert [(r.draw, r.sample) for r in rollouts_G] == [(8, 0), (8, 1)]
        assert [s.sample for s in summaries_G] == [0, 1]
        assert {s.version_min for s in summaries_G} == {3}
        await admit(replica, *others, together=False)
    assert not replica.groups[7].task.done()
    calls = list(replica.engine.calls)
    await replica.drop([8])
    assert replica.engine.calls == calls, "nothing of it runs"
    with pytest.raises(RunError, match="asked for draw 8, which it does not sample"):
        await replica.finished(8)
    await admit(replica, 8)


async def test_a_group_is_a_span_that_says_what_it_waited_for(replica):
    PROCESS.take()
    await admit(replica, 7)
    for name in ("p7/1", "p7/2"):
        replica.engine.answer(name)
    await replica.finished(7)
    [sampled] = [one for one in PROCESS.take().ended if one.operation == "sample"]
    assert sampled.labels == {"draw": 7, "queued_s": 0.5, "prefill_s": 0.5, "decode_s": 2.0}


async def test_each_token_has_the_version_that_sampled_it(replica):
    await admit(replica, 7)
    replica.version = 4
    replica.engine.answer("p7/1", versions=("3", "4"))
    replica.engine.answer("p7/2", versions=("default", "4"))
    summaries_G, rollouts_G = await replica.finished(7)
    assert [r.versions_T.tolist() for r in rollouts_G] == [[3, 4], [-1, 4]]
    assert [(s.version_min, s.version_max) for s in summaries_G] == [(3, 4), (-1, 4)]


async def test_whoever_gives_up_waiting_ends_nothing(replica):
    await admit(replica, 7)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(replica.finished(7), 0.01)
    await admit(replica, 8, together=False)
    for request_id in ("p7/1", "p7/2"):
        replica.engine.answer(request_id)
    _, rollouts_G = await replica.finished(7)
    assert len(rollouts_G) == 2


@pytest.mark.parametrize("how", ["dropped", "failed", "late"])
async def test_a_group_that_ends_ends_its_own_requests(replica, how):
    await admit(replica, 7, timeout_s=0.05 if how == "late" else 60.0)
    await admit(replica, 8)
    if how == "dropped":
        waiting = asyncio.ensure_future(replica.finished(7))
        await asyncio.sleep(0)
        await replica.drop([7])
        error, message = RunError, "draw 7 was dropped"
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
    assert replica.engine.called("abort") == ended
    assert replica.running == {"p8/3", "p8/4"}


async def test_a_draw_is_not_sampled_twice_at_a_time(replica):
    await admit(replica, 7)
    with pytest.raises(RunError, match=r"samples draws \[7\] already"):
        await admit(replica, 7, 8)
    assert set(replica.groups) == {7}


async def fails(replica, draw):
    await admit(replica, draw)
    for request_id in sorted(replica.running):
        replica.engine.answer(request_id, reason="error")
    with pytest.raises(RunError, match="vLLM ended the request"):
        await replica.finished(draw)


async def test_a_draw_that_failed_is_sampled_again_once_it_is_dropped(replica):
    """Ray may deliver the second admission before the drop."""
    await fails(replica, 7)
    again = asyncio.ensure_future(admit(replica, 7))
    await asyncio.sleep(0.01)
    assert not again.done()
    await replica.drop([7])
    await again
    assert set(replica.groups) == {7} and not replica.groups[7].is_dropped
    assert replica.running == {"p7/3", "p7/4"}


async def test_a_draw_that_failed_and_is_not_dropped_is_not_sampled_again(replica):
    await fails(replica, 7)
    with pytest.raises(DeadlineError, match=r"draws \[7\] to be dropped"):
        await admit(replica, 7, timeout_s=0.05)


async def test_what_a_job_left_behind_is_dropped(replica):
    await admit(replica, 7, 8)
    await replica.drop_requests()
    assert (replica.groups, replica.running) == ({}, set())
    assert replica.engine.calls[-4:] == ["abort p7/1", "abort p7/2", "abort p8/3", "abort p8/4"]
    await admit(replica, 7)


@pytest.mark.parametrize("together", [True, False], ids=["together", "alone"])
@pytest.mark.parametrize("num_added", [1, 2, 3])
async def test_what_is_dropped_while_it_is_admitted_leaves_no_request(replica, num_added, together):
    admission = asyncio.ensure_future(admit(replica, 7, 8, 9, together=together))
    await until_added(replica, num_added)
    await replica.drop([7, 8])
    await admission
    assert set(replica.groups) == {9}
    assert {request_id.partition("/")[0] for request_id in replica.running} == {"p9"}


async def test_a_draw_that_is_dropped_and_comes_again_is_another_group(replica):
    first = asyncio.ensure_future(admit(replica, 7))
    await until_added(replica, 1)
    await replica.drop([7])
    second = asyncio.ensure_future(admit(replica, 7))
    await asyncio.gather(first, second)
    assert len(replica.running) == 2
    # Who waits for the one before is told late, and takes nothing of the new one with it.
    waiting = asyncio.ensure_future(replica.finished(7))
    await asyncio.sleep(0)
    await replica.drop([7])
    await admit(replica, 7)
    with pytest.raises(RunError, match="draw 7 was dropped"):
        await waiting
    await admit(replica, 8, together=False)
    for request_id in replica.groups[7].request_ids:
        replica.engine.answer(request_id)
    assert len((await replica.finished(7))[1]) == 2


async def test_a_group_that_is_not_admitted_whole_leaves_no_request(replica):
    replica.engine.refused = "p8/4"
    with pytest.raises(ValueError, match="p8/4 is too long"):
        await admit(replica, 7, 8, 9)
    assert replica.engine.called("abort") == [
        "abort p8/3", "abort p8/4", "abort p7/1", "abort p7/2"
    ]  # fmt: skip
    assert (replica.groups, replica.running) == ({}, set())
    await admit(replica, 7)


@pytest.mark.parametrize("together", [True, False], ids=["together", "alone"])
async def test_an_admission_that_is_cancelled_anywhere_leaves_nothing(replica, together):
    for num_steps in range(24):
        admission = asyncio.ensure_future(admit(replica, 7, 8, together=together))
        for _ in range(num_steps):
            await asyncio.sleep(0)
        admission.cancel()
        await asyncio.wait([admission])
        if not admission.cancelled():
            await replica.drop([7, 8])
        assert (replica.groups, replica.running, replica.fault) == ({}, set(), "")
        assert not replica.scheduler.locked()
        added = {call.removeprefix("add ") for call in replica.engine.called("add")}
        assert added == {call.removeprefix("abort ") for call in replica.engine.called("abort")}
        assert len(replica.engine.called("pause")) <= len(replica.engine.called("resume"))


async def test_an_engine_without_a_model_admits_nothing(replica):
    replica.sleeping.has_model = False
    with pytest.raises(RunError, match="asked to sample without a model"):
        await admit(replica, 7)
    assert replica.engine.calls == []
    assert replica.groups == {}
