"""An engine that acts: turn by turn, and what becomes of a group whose environment fails."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from acting import CHATML, byte_tokenizer, of_tokenizer, prompt_of
from fake_vllm import FakeEngine
from ray.exceptions import RayActorError, RayTaskError

from actors.engines.acting import Acting, RemoteEnvironment
from actors.engines.samples import Ending
from actors.engines.trajectory import ActingEngine
from rlhf_ray.environments.play import Limits
from rlhf_ray.environments.protocol import Step
from rlhf_ray.errors import GroupFailed, RunError
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.rollouts.seeds import environment_seed, sample_seeds, turn_seed

TEMPLATE = of_tokenizer(byte_tokenizer(CHATML), ["<|im_end|>"])
[END] = TEMPLATE.end_ids
PROMPT = prompt_of(TEMPLATE, {"role": "user", "content": "Which?"})
SAID = {"role": "user", "content": "Another?"}


class Engine(FakeEngine):
    """Keeps what each request was asked with; answers with two tokens, the last one an end."""

    def __init__(self):
        super().__init__()
        self.asked = {}

    async def add_request(self, request_id, prompt, params, *, priority):
        self.asked[request_id] = (prompt["prompt_token_ids"], params)
        return await super().add_request(request_id, prompt, params, priority=priority)

    def answer(self, request_id, reason="stop", versions=("3", "3")):
        super().answer(request_id, reason, versions)
        [output] = self.answers[request_id]._queue[0].outputs
        output.token_ids = [50, END]


class Worker:
    """A handle of an environment worker, whose steps are prepared."""

    def __init__(self, *steps):
        self.steps, self.calls, self.opens = list(steps), [], asyncio.Event()
        self.opens.set()

    def __getattr__(self, method):
        return SimpleNamespace(remote=lambda *given: self._call(method, *given))

    async def _call(self, method, *given):
        self.calls.append((method, *given))
        await asyncio.sleep(0)
        if method == "open":
            await self.opens.wait()
        if method == "step":
            step = self.steps.pop(0)
            if isinstance(step, BaseException):
                raise step
            return step if isinstance(step, Step) else await step
        return None


@pytest.fixture
def replica():
    replica = ActingEngine("job/rollout/0")
    replica.engine, replica.version = Engine(), 3
    replica.tokenizer = byte_tokenizer("")
    return replica


def request(draw=7, num_samples=1):
    return GenerationRequest(
        prompt=PROMPT,
        draw=draw,
        seeds_G=tuple(range(40, 40 + num_samples)),
        temperature=1.0,
        max_new_tokens=5,
    )


def acting(*workers, max_turns=8):
    return Acting(
        workers=workers,
        limits=Limits(max_turns=max_turns, max_observation_tokens=64, timeout_s=5.0),
        end_ids=TEMPLATE.end_ids,
        chat_template=CHATML,
        tools=(),
        max_tokens=1000,
        closing_s=1.0,
    )


async def admit(replica, workers, *requests, timeout_s=60.0, **limits):
    ending = Ending(end_token_ids=(END,))
    await replica.admit(list(requests), ending, timeout_s, True, acting(*workers, **limits))


async def until_asked(replica, name):
    async with asyncio.timeout(5):
        while name not in replica.engine.answers:
            await asyncio.sleep(0)


async def test_a_turn_is_asked_with_the_tokens_so_far_and_a_seed_of_its_own(replica):
    worker = Worker(Step(messages=(SAID,), reward=0.5), Step(reward=1.0, is_done=True))
    await admit(replica, [worker], request())
    replica.engine.answer("p/1")
    await until_asked(replica, "p/2")
    between = TEMPLATE.tokens(END, [SAID])
    first, second = (replica.engine.asked[name] for name in ("p/1", "p/2"))
    assert second[0] == [*first[0], 50, END, *between] == [*PROMPT.token_ids_T, 50, END, *between]
    assert (first[1].seed, second[1].seed) == (40, turn_seed(40, 1))
    assert (first[1].max_tokens, second[1].max_tokens) == (5, 3)
    replica.engine.answer("p/2", versions=("3", "4"))
    summaries, [rollout] = await replica.finished(7)
    assert rollout.response_ids_T.tolist() == [50, END, *between, 50, END]
    assert rollout.versions_T[rollout.action_mask_T].tolist() == [3, 3, 3, 4]
    assert [turn.reward for turn in rollout.turns] == [0.5, 1.0]
    assert summaries[0].environment_reward == 1.5 and summaries[0].num_turns == 2
    assert worker.calls[0][2:] == (7, 0, PROMPT, environment_seed((40,)))
    assert [call[0] for call in worker.calls] == ["open", "step", "step", "close"]
    assert len({call[1] for call in worker.calls}) == 1
    assert not replica.running


async def test_first_turns_of_a_wave_are_admitted_together_and_samples_go_to_workers_in_turn(
    replica,
):
    workers = [Worker(Step(is_done=True)), Worker(Step(is_done=True))]
    await admit(replica, workers, request(0, 2))
    assert replica.engine.calls == ["pause", "add p/1", "add p/2", "resume"]
    for name in ("p/1", "p/2"):
        replica.engine.answer(name)
    await replica.finished(0)
    assert [worker.calls[0][2:4] for worker in workers] == [(0, 0), (0, 1)]
    assert workers[0].calls[0][1] != workers[1].calls[0][1]


async def test_no_turn_begins_amid_an_exchange_of_weights(replica):
    await admit(replica, [Worker(Step(messages=(SAID,)), Step(is_done=True))], request())
    await replica.take_scheduler("new weights", 60.0)
    replica.engine.answer("p/1")
    for _ in range(50):
        await asyncio.sleep(0)
    assert "p/2" not in replica.engine.answers
    replica.scheduler.release()
    await until_asked(replica, "p/2")


@pytest.mark.parametrize(
    ("given", "cause", "words"),
    [
        (GroupFailed.of("step: no answer", cause="hung"), "hung", "turn 1: step: no answer"),
        (RayActorError(), "crashed", "turn 1: its worker died"),
    ],
)
async def test_a_failure_ends_the_group_and_names_the_rollout(given, cause, words, replica):
    if cause == "hung":  # as it comes from another process
        given = RayTaskError("step", "trace", given)
    workers = [Worker(given), Worker(Step(messages=(SAID,)))]
    await admit(replica, workers, request(0, 2))
    replica.engine.answer("p/2")
    await until_asked(replica, "p/3")
    replica.engine.answer("p/1")
    with pytest.raises(GroupFailed, match=f"draw 0, sample 0, .*{words}") as caught:
        await replica.finished(0)
    assert caught.value.cause == cause
    assert replica.engine.called("abort") == ["abort p/3"] and not replica.running
    assert [call[0] for call in workers[1].calls] == ["open", "step", "close"]


async def test_a_group_that_is_dropped_leaves_nothing_running(replica):
    worker = Worker(Step(messages=(SAID,)))
    await admit(replica, [worker], request())
    replica.engine.answer("p/1")
    await until_asked(replica, "p/2")
    await replica.drop([7])
    for _ in range(20):
        await asyncio.sleep(0)
    assert not replica.running and worker.calls[-1][0] == "close"


async def test_turns_that_take_too_long_together_fail_the_group_before_its_engine_is_late(replica):
    async def slow():
        await asyncio.sleep(0.15)
        return Step(messages=(SAID,))

    async def answer_all():
        answered = set()
        while True:
            for name in replica.engine.answers.keys() - answered:
                answered.add(name)
                replica.engine.answer(name)
            await asyncio.sleep(0.01)

    worker = Worker(*[slow() for _ in range(8)])
    await admit(replica, [worker], replace(request(), max_new_tokens=100), timeout_s=1.4)
    answering = asyncio.create_task(answer_all())
    words = r"draw 7, .*not done after 0.4 s.*max_turns \(8\)"
    with pytest.raises(GroupFailed, match=words) as late:
        await replica.finished(7)
    answering.cancel()
    assert late.value.cause == "hung"
    assert worker.calls[-1][0] == "close" and not replica.running
    for step in worker.steps:
        step.close()


async def test_a_session_that_is_given_up_amid_its_beginning_is_closed(replica):
    worker = Worker()
    worker.opens.clear()
    await admit(replica, [worker], request())
    for _ in range(20):
        await asyncio.sleep(0)
    await replica.drop([7])
    for _ in range(20):
        await asyncio.sleep(0)
    [opened, closed] = worker.calls
    assert (opened[0], closed) == ("open", ("close", opened[1]))


async def test_an_engine_that_dies_is_no_failure_of_the_environment(replica):
    await admit(replica, [Worker(Step(is_done=True))], request())
    replica.engine.errored = True
    with pytest.raises(RunError, match="its engine died") as caught:
        await replica.finished(7)
    assert not isinstance(caught.value, GroupFailed)


async def test_an_environment_that_was_never_opened_is_not_closed():
    worker = Worker()
    await RemoteEnvironment(worker, draw=1, sample=0).close()
    assert not worker.calls


def test_seeds_of_turns_differ_and_those_of_first_turns_are_the_samples():
    seeds = sample_seeds(seed=0, draw=1, prompt_id="p", num_samples=64)
    turns = {turn_seed(seed, turn) for seed in seeds for turn in range(8)}
    assert len(turns) == 64 * 8 and set(seeds) <= turns
    assert all(0 <= seed < 2**31 for seed in turns)
    assert [turn_seed(seed, 0) for seed in seeds] == list(seeds)
    assert environment_seed(seeds) == environment_seed(seeds[:1]) != environment_seed(seeds[1:])
