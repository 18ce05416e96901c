"""Environments by number: what they raise or miss is a failure that can travel."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
import time

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
        if given == "cancels":
            raise asyncio.CancelledError
        return given

    async def close(self):
        self.num_closed += 1
        if self.script == ["fails at its end"]:
            raise OSError("no")


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("cannot be pickled")


NAMES = itertools.count()


async def begun(sessions, draw, sample=0):
    """The name of a session that is open."""
    name = f"session-{next(NAMES)}"
    await sessions.open(name, draw, sample, PROMPT, 7)
    return name


async def settled():
    """What is closed beside others is closed."""
    for _ in range(10):
        await asyncio.sleep(0)


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
    one, other = [await begun(sessions, 3, sample) for sample in (0, 1)]
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
    first = await begun(sessions, 3)
    other = await begun(sessions, 4)
    again = await begun(sessions, 3)
    await settled()
    assert [world.num_closed for world in worlds] == [1, 0, 0]
    with pytest.raises(GroupFailed, match=f"{first} is closed") as caught:
        await sessions.step(first, "a")
    assert caught.value.cause == "crashed"
    clock[0] = 90.0
    await sessions.step(other, "a")
    clock[0] = 110.0
    await begun(sessions, 5)
    await settled()
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
        ("cancels", "raised", "step: it cancelled itself"),
        ({"reward": 1}, "raised", "step must give a Step, got dict"),
        (Step(messages=({"content": "x"},)), "raised", "must have a role and content"),
        (Step(is_done=True, num_calls="two"), "raised", "num_calls of a step must be an int"),
        (Step(messages=(4,)), "raised", "must have a role and content, got 4"),
        (Step(messages=4), "raised", "step: TypeError: 'int' object is not iterable"),
        (
            Step(messages=({"role": "user", "content": 4},)),
            "raised",
            "content of a message must be a string, got 4",
        ),
        (
            Step(messages=({"role": "user", "content": "", "name": b"x"},)),
            "raised",
            "name of a message must be a string, got b'x'",
        ),
        (
            Step(messages=({"role": "user", "content": "", "tool_calls": [{"id": "x"}]},)),
            "raised",
            r"tool_calls of a message must be a string, got \[\{'id'",
        ),
        (
            Step(messages=({"role": "user", "content": "a\ud800"},)),
            "raised",
            r"content of a message must be text that UTF-8 can encode, got '\\ud800' at char",
        ),
        (
            Step(messages=({"role": "user", "content": "", "\udfff": "x"},)),
            "raised",
            "a key of a message must be text that UTF-8 can encode",
        ),
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
    number = await begun(sessions, 3)
    with pytest.raises(GroupFailed, match=words) as caught:
        await sessions.step(number, "a")
    there = pickle.loads(pickle.dumps(caught.value))
    assert (there.cause, str(there)) == (cause, str(caught.value))
    await sessions.close(number)


async def test_one_without_coroutines_fails_as_others_do(opened, monkeypatch):
    sessions, _ = opened()

    def step(self, answer):
        raise LookupError("no such page")

    monkeypatch.setattr(World, "step", step)
    number = await begun(sessions, 3)
    with pytest.raises(GroupFailed, match="step: LookupError: no such page"):
        await sessions.step(number, "a")


async def test_what_cannot_begin_leaves_nothing(opened, monkeypatch):
    sessions, worlds = opened()

    async def reset(self, prompt, seed):
        raise OSError("no room")

    monkeypatch.setattr(World, "reset", reset)
    with pytest.raises(GroupFailed, match="reset: OSError: no room"):
        await begun(sessions, 3)
    await settled()
    assert not len(sessions) and worlds[0].num_closed == 1
    sessions = Sessions(lambda: 1 / 0, roles=(), timeout_s=1.0, idle_s=1.0)
    with pytest.raises(GroupFailed, match="its beginning: ZeroDivisionError"):
        await begun(sessions, 3)


async def test_an_end_that_fails_is_told_to_whoever_asks_for_it_alone(opened):
    sessions, worlds = opened("fails at its end")
    number = await begun(sessions, 3)
    with pytest.raises(GroupFailed, match="close: OSError: no"):
        await sessions.close(number)
    await begun(sessions, 3)
    await begun(sessions, 3)
    await sessions.close_all()
    assert [world.num_closed for world in worlds] == [1, 1, 1]


class Machine(World):
    """Starts in its `reset`, and may go on when that is cancelled; writes down what it does."""

    def __init__(self, goes_on_s):
        super().__init__([MORE])
        self.goes_on_s, self.log, self.begins = goes_on_s, [], asyncio.Event()

    async def reset(self, prompt, seed):
        self.log.append("reset begins")
        self.begins.set()
        try:
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            if not self.goes_on_s:
                raise
            ends_s = time.monotonic() + self.goes_on_s
            while time.monotonic() < ends_s:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.01)
        self.log.append("started")

    async def step(self, answer):
        self.log.append("step begins")
        self.begins.set()
        try:
            await asyncio.sleep(60)
        finally:
            self.log.append("step ends")

    async def close(self):
        self.log.append("close")


@pytest.mark.parametrize("how", ["close", "another attempt", "all"])
async def test_one_that_begins_is_closed_behind_its_beginning(how):
    machine = Machine(0.0)
    machines = [machine, World([])]
    sessions = Sessions(lambda: machines.pop(0), roles=(), timeout_s=5.0, idle_s=100.0)
    opening = asyncio.create_task(sessions.open("first", 3, 0, PROMPT, 7))
    await machine.begins.wait()
    if how == "close":
        await sessions.close("first")
    elif how == "all":
        await sessions.close_all()
    else:
        await begun(sessions, 3)
    with pytest.raises(GroupFailed, match="session first is closed"):
        await opening
    await settled()
    assert machine.log == ["reset begins", "close"]


async def test_what_goes_on_when_it_is_cancelled_is_closed_once_more():
    machine = Machine(0.3)
    sessions = Sessions(lambda: machine, roles=(), timeout_s=0.1, idle_s=100.0)
    opening = asyncio.create_task(sessions.open("first", 3, 0, PROMPT, 7))
    await machine.begins.wait()
    await sessions.close("first")
    assert machine.log == ["reset begins", "close"]
    with pytest.raises(GroupFailed):
        await opening
    await settled()
    assert machine.log == ["reset begins", "close", "started", "close"]


async def test_one_that_is_amid_a_step_is_closed_behind_it():
    machine = Machine(0.0)
    sessions = Sessions(lambda: machine, roles=(), timeout_s=5.0, idle_s=100.0)
    await sessions.open("first", 3, 0, PROMPT, 7)
    machine.log.clear()
    machine.begins.clear()
    stepping = asyncio.create_task(sessions.step("first", "a"))
    await machine.begins.wait()
    await sessions.close("first")
    with pytest.raises(GroupFailed, match="session first is closed"):
        await stepping
    assert machine.log == ["step begins", "step ends", "close"]


async def test_nobody_waits_for_ends_that_hang(clock, monkeypatch):
    async def close(self):
        await asyncio.sleep(60)

    worlds = []

    def world():
        worlds.append(World([]))
        return worlds[-1]

    sessions = Sessions(world, roles=(), timeout_s=0.5, idle_s=100.0, clock=lambda: clock[0])
    for draw in range(6):
        await begun(sessions, draw)
    monkeypatch.setattr(World, "close", close)
    clock[0] = 200.0
    started_s = time.monotonic()
    await begun(sessions, 7)
    assert time.monotonic() - started_s < 0.4, "one that opens waits for none of them"
    await sessions.close_all()
    assert time.monotonic() - started_s < 1.5, "they end side by side"


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
