"""Environments of OpenEnv, behind a server in a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing

import numpy as np
import pytest
from servers import served

from rlhf_ray.config.environment import EnvironmentConfig
from rlhf_ray.environments import openenv
from rlhf_ray.environments.loading import environment_maker
from rlhf_ray.environments.openenv import OpenEnv
from rlhf_ray.environments.sessions import Sessions
from rlhf_ray.errors import ConfigError, GroupFailed
from rlhf_ray.types import Prompt


@pytest.fixture(scope="module")
def url():
    with served("openenv_server.py") as (address, _):
        yield address


def prompt(**columns):
    return Prompt(prompt_id="p", text="Guess.", token_ids_T=np.array([1]), columns=columns)


def shown(step):
    return [message["content"] for message in step.messages]


async def test_an_answer_is_an_action_and_an_observation_a_message(url):
    async with aclosing(OpenEnv(url, observation="hint", columns=["shift"])) as world:
        await world.reset(prompt(shift=2), 13)
        step = await world.step("<think>3 or 7?</think>\n3")
        assert shown(step) == ["higher"] and step.messages[0]["role"] == "user"
        assert (step.reward, step.is_done, step.num_calls) == (-0.1, False, 1)
        assert (await world.step("97")).reward is None, "the server gave none"
        step = await world.step("5")
        assert (step.reward, step.is_done) == (1.0, True)


async def test_what_is_no_action_is_told_to_the_policy(url):
    async with aclosing(OpenEnv(url)) as world:
        await world.reset(prompt(), 3)
        [no_json], [no_integer] = shown(await world.step("three")), shown(await world.step('"3"'))
        assert no_json.startswith("error: the answer must be JSON")
        assert no_integer == "error: guess: Input should be a valid integer"
        [half] = shown(await world.step(json.dumps(chr(0xD800))))
        half.encode()
        step = await world.step("3")
        assert shown(step) == ['{"hint": "right", "tries": 1}'] and step.is_done


async def test_who_finds_no_session_free_waits_for_one(url):
    first, second, third = (OpenEnv(url) for _ in range(3))
    for world in (first, second):
        await world.reset(prompt(), 1)
    waiting = asyncio.create_task(third.reset(prompt(), 1))
    await asyncio.sleep(1.0)
    assert not waiting.done()
    await first.close()
    async with asyncio.timeout(10):
        await waiting
    assert (await third.step("1")).is_done
    for world in (second, third):
        await world.close()


async def test_what_fails_at_the_server_fails_the_group_with_its_cause():
    with served("openenv_server.py") as (address, process):
        sessions = Sessions(lambda: OpenEnv(address), roles=(), timeout_s=20.0, idle_s=60.0)
        await sessions.open("a", 0, 0, prompt(), 1)
        with pytest.raises(GroupFailed, match="says EXECUTION_ERROR: no luck") as caught:
            await sessions.step("a", "98")
        assert caught.value.cause == "raised"
        with pytest.raises(GroupFailed, match="before the policy has acted") as caught:
            await sessions.open("b", 0, 1, prompt(openenv_seed=999), 1)
        assert caught.value.cause == "raised"
        with pytest.raises(GroupFailed, match=r"step: the OpenEnv server .* ended, or") as caught:
            await sessions.step("a", "99")
        assert caught.value.cause == "crashed"
        process.wait(10)
        with pytest.raises(GroupFailed, match=r"reset: .* cannot be reached") as caught:
            await sessions.open("c", 0, 0, prompt(), 1)
        assert caught.value.cause == "crashed"
        await sessions.close_all()


async def test_its_tasks_are_rows_whose_seeds_begin_the_same_again(url, tmp_path, monkeypatch):
    file = tmp_path / "prompts.jsonl"
    argv = ["openenv", url, str(file), "--size", "2", "--seed", "7", "--observation", "hint"]
    monkeypatch.setattr(sys, "argv", argv)
    await asyncio.to_thread(openenv.main)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["prompt"][0]["content"] for row in rows] == ["seed 7", "seed 8"]
    async with aclosing(OpenEnv(url)) as world:
        await world.reset(prompt(**rows[1]), 0)
        assert (await world.step("8")).is_done


async def test_a_configuration_names_a_server(url):
    config = EnvironmentConfig(openenv=url, arguments={"action": "guess", "observation": "hint"})
    world = environment_maker(config)()
    assert isinstance(world, OpenEnv)
    with pytest.raises(ConfigError, match="must be an address such as"):
        OpenEnv("localhost:8000")
    for given, words in [
        ({"action": "move"}, "action must be one of guess, metadata, which actions have"),
        ({"columns": ["board"]}, "no column 'board', which reset is to get"),
    ]:
        async with aclosing(OpenEnv(url, **given)) as world:
            with pytest.raises(ConfigError, match=words):
                await world.reset(prompt(), 0)
    async with aclosing(OpenEnv(url, observation="board")) as world:
        await world.reset(prompt(), 0)
        with pytest.raises(ConfigError, match="observation must be one of hint, tries"):
            await world.step("1")
