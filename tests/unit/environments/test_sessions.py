"""Environments by number: what they raise or miss is a failure that can travel."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from rlhf_ray.environments.protocol import Step, message_roles
from rlhf_ray.environments.sessions import Sessions
from rlhf_ray.errors import ConfigError, GroupFailed
from rlhf_ray.types import Prompt

PROMPT = Prompt(prompt_id="p", token_ids_T=(1,), text="?")
MORE = Step(messages=({"role": "user", "content": "more"},))


class World:
    """Answers by `script`: a step, an error to raise, or what is to be waited for."""

    def __init__(self, script):
        self.script, self.seeds, self.num_closed = list(script), [], 0

    async def reset(self, prompt, seed):
        self.seeds.append(seed)

    async def step(self, answer):
        given = self.script.pop(0)
        if isinstance(given, BaseException):
            raise given
        if given == "hang":
            await asyncio.Event().wait()
        return given

    async def close(self):
        self.num_closed += 1
        if self.script == ["fails at its end"]:
            raise OSError("no")


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("cannot be pickled")


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def opened(clock):
    """`opened(*script, roles=())`: sessions and the worlds that they make, all of this script."""

    def make(*script, roles=(), timeout_s=0.05):
        worlds = []

        def world():
            worlds.append(World(script))
            return worlds[-1]

        sessions = Sessions(
            world, roles=roles, timeout_s=timeout_s, idle_s=100.0, clock=lambda: clock[0]
        )
        return sessions, worlds

    return make


async def test_a_session_is_a_world_of_its_own(opened):
    sessions, worlds = opened(MORE, Step(reward=2.0, is_done=True))
    one, other = [await sessions.open(3, sample, PROMPT, 7) for sample in (0, 1)]
    assert one != other and [world.seeds for world in worlds] == [[7], [7]]
    assert await sessions.step(one, "a") == MORE
    assert await sessions.step(other, "b") == MORE
    assert (await sessions.step(one, "a")).reward == 2.0
    await sessions.close(one)
    await sessions.close(one)
    assert [world.num_closed for world in worlds] == [1, 0] and len(sessions) == 1
    await sessions.close_all()
    assert worlds[1].num_closed == 1 and not len(sessions)


async def test_an_attempt_that_was_given_up_is_closed_and_so_is_what_nobody_asks(opened, clock):
    sessions, worlds = opened(MORE, MORE)
    first = await sessions.open(3, 0, PROMPT, 7)
    other = await sessions.open(4, 0, PROMPT, 7)
    again = await sessions.open(3, 0, PROMPT, 7)
    assert [world.num_closed for world in worlds] == [1, 0, 0]
    with pytest.raises(GroupFailed, match=f"session {first} is closed") as caught:
        await sessions.step(first, "a")
    assert caught.value.cause == "crashed"
    clock[0] = 90.0
    await sessions.step(other, "a")
    clock[0] = 110.0
    await sessions.open(5, 0, PROMPT, 7)
    assert [world.num_closed for world in worlds] == [1, 0, 1, 0]
    with pytest.raises(GroupFailed, match="is closed"):
        await sessions.step(again, "a")


@pytest.mark.parametrize(
    ("given", "cause", "words"),
    [
        (KeyError("x"), "raised", "step: KeyError: 'x'"),
        (SystemExit(3), "raised", "step: SystemExit: 3"),
        (Unpicklable("odd"), "raised", "step: Unpicklable: odd"),
        (TimeoutError("theirs"), "raised", "step: TimeoutError: theirs"),
        ("hang", "hung", r"step: no answer from the environment after 0 s \(deadline 0.05 s\)"),
        ({"reward": 1}, "raised", "step must give a Step, got dict"),
        (Step(messages=({"content": "x"},)), "raised", "must have a role and content"),
        (Step(messages=({"role": "user", "content": 4},)), "raised", "both strings"),
        (
            Step(messages=({"role": "tool", "content": "x"},)),
            "raised",
            "must have the role user, for which the chat template was checked, got 'tool'",
        ),
    ],
    ids=str,
)
async def test_what_goes_wrong_is_a_failure_with_a_cause(given, cause, words, opened):
    sessions, _ = opened(given, roles=("user",))
    number = await sessions.open(3, 0, PROMPT, 7)
    with pytest.raises(GroupFailed, match=words) as caught:
        await sessions.step(number, "a")
    there = pickle.loads(pickle.dumps(caught.value))
    assert (there.cause, str(there)) == (cause, str(caught.value))
    await sessions.close(number)


async def test_what_cannot_begin_leaves_nothing(opened, monkeypatch):
    sessions, worlds = opened()

    async def reset(self, prompt, seed):
        raise OSError("no room")

    monkeypatch.setattr(World, "reset", reset)
    with pytest.raises(GroupFailed, match="reset: OSError: no room"):
        await sessions.open(3, 0, PROMPT, 7)
    assert not len(sessions) and worlds[0].num_closed == 1
    sessions = Sessions(lambda: 1 / 0, roles=(), timeout_s=1.0, idle_s=1.0)
    with pytest.raises(GroupFailed, match="its beginning: ZeroDivisionError"):
        await sessions.open(3, 0, PROMPT, 7)


async def test_an_end_that_fails_is_told_to_whoever_asks_for_it_alone(opened):
    sessions, worlds = opened("fails at its end")
    number = await sessions.open(3, 0, PROMPT, 7)
    with pytest.raises(GroupFailed, match="close: OSError: no"):
        await sessions.close(number)
    await sessions.open(3, 0, PROMPT, 7)
    await sessions.open(3, 0, PROMPT, 7)
    await sessions.close_all()
    assert [world.num_closed for world in worlds] == [1, 1, 1]


def test_an_environment_says_which_roles_its_messages_have():
    world = World([])
    assert message_roles(world) == ("user",)
    world.tools = [{"type": "function"}]
    assert message_roles(world) == ("tool",)
    world.roles = ["tool", "user"]
    assert message_roles(world) == ("tool", "user")
    world.roles = ["system"]
    with pytest.raises(ConfigError, match="must be tool or user, got 'system'"):
        message_roles(world)
