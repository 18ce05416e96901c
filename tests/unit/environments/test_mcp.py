"""Tools of real MCP servers, over standard streams and HTTP."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import psutil
import pytest
from servers import served

from rlhf_ray.config.environment import EnvironmentConfig
from rlhf_ray.environments.loading import environment_maker
from rlhf_ray.environments.mcp import McpTools
from rlhf_ray.environments.protocol import message_roles, tool_schemas
from rlhf_ray.environments.sessions import Sessions
from rlhf_ray.errors import ConfigError, GroupFailed

COMMAND = [sys.executable, str(Path(__file__).with_name("mcp_server.py"))]


@pytest.fixture(scope="module")
def url():
    with served("mcp_server.py") as (address, _):
        yield f"{address}/mcp"


@pytest.fixture(params=["stdio", "http"])
def server(request):
    if request.param == "stdio":
        return {"command": COMMAND}
    return {"url": request.getfixturevalue("url")}


def call(name, **arguments):
    said = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{said}\n</tool_call>"


async def said(world, answer):
    step = await world.step(answer)
    return [message["content"] for message in step.messages], step.num_failed_calls


async def test_a_servers_tools_are_called(server):
    world = McpTools(**server, call_timeout_s=20.0)
    await world.reset(None, 0)
    try:
        assert await said(world, call("add", a=2, b=3) + call("add", a=-1, b=1)) == (["5", "0"], 0)
        [refused], num_failed = await said(world, call("add", a="two"))
        assert refused.startswith("error: ") and "valid integer" in refused and num_failed == 1
        assert await said(world, call("fails")) == (["error: Error executing tool fails"], 1)
        [unknown], _ = await said(world, call("nothing"))
        assert unknown == ("error: there is no tool 'nothing', only add, keep, fails, hangs, dies")
        assert (await world.step("5")).is_done
    finally:
        await world.close()


async def test_a_late_call_is_told_and_the_session_goes_on(server):
    world = McpTools(**server, call_timeout_s=1.0)
    await world.reset(None, 0)
    try:
        assert await said(world, call("hangs")) == (["error: hangs took more than 1 s"], 1)
        assert await said(world, call("add", a=2, b=3)) == (["5"], 0)
    finally:
        await world.close()


async def test_a_server_that_is_started_has_a_rollouts_state():
    worlds = [McpTools(command=COMMAND) for _ in range(2)]
    for world in worlds:
        await world.reset(None, 0)
    try:
        for world, word in zip(worlds, "ab", strict=True):
            [[kept], _] = await said(world, call("keep", word=word))
            assert kept == word
    finally:
        for world in worlds:
            await world.close()


async def test_what_a_server_starts_ends_with_it(tmp_path):
    file = tmp_path / "pid"
    script = f'setsid sleep 600 >&2 & echo $! > {file}; exec "$@"'
    world = McpTools(command=["sh", "-c", script, "sh", *COMMAND])
    await world.reset(None, 0)
    started = psutil.Process(int(file.read_text()))
    await world.close()
    async with asyncio.timeout(10):
        while started.is_running() and started.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["stdio", "http"])
async def test_a_server_that_ends_fails_the_group_as_a_crash(kind):
    with served("mcp_server.py") as (address, _):
        given = {"command": COMMAND} if kind == "stdio" else {"url": f"{address}/mcp"}
        sessions = Sessions(lambda: McpTools(**given), roles=(), timeout_s=30.0, idle_s=60.0)
        await sessions.open("a", 0, 0, None, 0)
        for _ in range(2):
            with pytest.raises(GroupFailed, match=r"step: the MCP server .* ended, or") as caught:
                await sessions.step("a", call("dies"))
            assert caught.value.cause == "crashed"
        await sessions.close("a")


async def test_a_server_that_is_not_there_fails_the_group_as_a_crash():
    for given in ({"url": "http://127.0.0.1:9/mcp"}, {"command": ["/no/such/program"]}):
        world = McpTools(**given)
        async with asyncio.timeout(20):
            with pytest.raises(GroupFailed, match="cannot be reached") as caught:
                await world.reset(None, 0)
            assert caught.value.cause == "crashed"
            await world.close()


async def test_a_server_that_never_answers_is_given_up_with_its_session():
    world = McpTools(command=[sys.executable, "-c", "import time; time.sleep(600)"])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await world.reset(None, 0)
    async with asyncio.timeout(20):
        await world.close()


async def test_a_configuration_names_a_server_and_shows_its_tools(server):
    config = EnvironmentConfig(mcp=server, arguments={"call_timeout_s": 3})
    assert config.is_named
    world = environment_maker(config)()
    first, *others = tool_schemas(world)
    assert first["type"] == "function" and len(others) == 4
    assert first["function"]["name"] == "add"
    assert first["function"]["description"] == "Add two numbers."
    assert first["function"]["parameters"]["properties"]["a"]["type"] == "integer"
    assert message_roles(world) == ("tool",)


def test_what_is_no_server_is_refused():
    with pytest.raises(ConfigError, match="either a command or a url"):
        McpTools()
    with pytest.raises(ConfigError, match="must be a list of a program"):
        McpTools(command="python server.py")
    with pytest.raises(ConfigError, match="parser must be one of"):
        McpTools(url="http://host/mcp", parser="other")
    with pytest.raises(ConfigError, match=r"must list its tools: .*cannot be reached"):
        _ = McpTools(url="http://127.0.0.1:9/mcp").tools
    with pytest.raises(ValueError, match="either a command or a url, got both"):
        EnvironmentConfig(mcp={"command": ["a"], "url": "http://b/mcp"})
    with pytest.raises(ValueError, match=r"has one of path, .* got \['path', 'mcp'\]"):
        EnvironmentConfig(path="a.b:C", mcp={"command": ["a"]})
