"""Agents in processes of their own, which know an OpenAI URL: trained as any other rollout."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace

import acting
import aiohttp
import psutil
import pytest

from rlhf_ray.data.chat.borders import written_tokens
from rlhf_ray.environments import agent_process
from rlhf_ray.environments.agent import Agent
from rlhf_ray.environments.endpoint import Endpoint
from rlhf_ray.environments.play import Limits, play
from rlhf_ray.environments.transcript import Transcript
from rlhf_ray.errors import ConfigError, GroupFailed

TEMPLATE = acting.of_tokenizer(acting.byte_tokenizer(acting.CHATML), ["<|im_end|>"])
[END] = TEMPLATE.end_ids
PROMPT = acting.prompt_of(TEMPLATE, {"role": "user", "content": "Which?"})
LIMITS = Limits(max_turns=4, max_observation_tokens=64, timeout_s=20.0)
# As agents are written: nothing of this project is known to it.
CLIENT = """
import json, os, sys, urllib.error, urllib.request

def ask(messages, **more):
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions",
        json.dumps({"model": "x", "messages": messages, **more}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)["choices"][0]

task = json.load(sys.stdin)
chat = task["messages"]
"""
TWICE = """
first = ask(chat, temperature=0.3)["message"]
chat = [*chat, first, {"role": "user", "content": [{"type": "text", "text": "Sure?"}]}]
second = ask(chat)
print(json.dumps({"reward": len(second["message"]["content"]) + task["seed"]}))
"""


@pytest.fixture
def agent(tmp_path):
    """`agent(script, **arguments)`: one that runs it behind `CLIENT`."""

    def make(script, **arguments):
        file = tmp_path / "agent.py"
        file.write_text(CLIENT + script)
        return Agent([sys.executable, str(file)], **arguments)

    return make


def tokens(text):
    return [*written_tokens(TEMPLATE.tokenizer, text), END]


async def rollout_of(made, *turns, template=TEMPLATE, prompt=PROMPT):
    engine = acting.Engine(turns, template.end_ids)
    transcript = Transcript(prompt=prompt, draw=0, sample=0, max_new_tokens=200, max_tokens=10_000)
    return await play(made, engine.sample, transcript, template, LIMITS, seed=40), engine


async def test_its_requests_are_turns_token_by_token(agent):
    # "ab" and "a" spell the same as "a" and "ba"; what was sampled stays.
    a, b = (TEMPLATE.tokenizer.convert_tokens_to_ids(token) for token in "ab")
    first, second = [a, b, a, END], tokens("yes")
    assert written_tokens(TEMPLATE.tokenizer, "aba") != [a, b, a]
    made = agent(TWICE)
    rollout, engine = await rollout_of(made, first, second)
    between = TEMPLATE.tokens(END, [{"role": "user", "content": "Sure?"}])
    assert engine.asked[1] == [*PROMPT.token_ids_T, *first, *between]
    assert rollout.response_ids_T.tolist() == [*first, *between, *second]
    assert [turn.reward for turn in rollout.turns] == [None, 43.0]
    assert [message["content"] for message in rollout.messages] == ["aba", "Sure?", "yes"]
    assert rollout.finish_reason == "stop"
    assert made._process.status is not None


async def test_calls_of_tools_come_as_its_client_reads_them(agent):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    script = """
choice = ask(chat, tools=%s)
[call] = choice["message"]["tool_calls"]
assert choice["finish_reason"] == "tool_calls"
total = sum(json.loads(call["function"]["arguments"]).values())
answer = {"role": "tool", "tool_call_id": call["id"], "content": str(total)}
assert "tool_calls" not in ask([*chat, choice["message"], answer])["message"]
"""
    made = agent(script % tools, tools=tools)
    call = '<tool_call>{"name": "add", "arguments": {"x": 2, "y": 3}}</tool_call>'
    rollout, _ = await rollout_of(made, tokens(call), tokens("five"))
    assert rollout.messages[1] == {
        "role": "tool", "tool_call_id": "call00000", "content": "5"
    }  # fmt: skip
    assert [turn.num_calls for turn in rollout.turns] == [1, 0]
    assert rollout.environment_reward is None, "it printed none"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sys.exit('no ' + 'key')", r"reset: RuntimeError: the agent ended with status 1: no key"),
        ("", "the agent ended before it asked"),
        ("ask([{'role': 'user', 'content': 'Other'}])", "must have the row's messages"),
        ("ask(chat); ask(chat)", "turn 1: .*each request of an agent must have all that was said"),
        (
            "m = ask(chat)['message']; ask([*chat, {**m, 'content': 'X'}, chat[0]])",
            "turn 1: .*must have all that was said so far",
        ),
        ("ask(chat, tools=[{}])", "tools must be those of the agent's `tools`"),
        ("ask(chat); print(json.dumps({'reward': 'x'}))", "must be a finite number, got 'x'"),
        ("ask([{'role': 'user', 'content': [{'type': 'image_url'}]}])", "must be texts"),
    ],
)
async def test_what_it_does_wrong_fails_the_rollout(script, words, agent):
    made = agent(script)
    with pytest.raises(GroupFailed, match=words) as caught:
        await rollout_of(made, tokens("a"), tokens("b"))
    assert caught.value.cause == "raised"
    assert made._process.status is not None


async def test_one_that_does_nothing_is_late(agent):
    with pytest.raises(GroupFailed, match="its next request: no answer from the agent"):
        await rollout_of(agent("import time; time.sleep(60)", timeout_s=0.5), tokens("a"))


CHILD = """
import subprocess
child = subprocess.Popen(["sleep", "600"], start_new_session={session})
open({pids!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
"""


async def gone(pids):
    async with asyncio.timeout(10):
        for pid in map(int, pids.read_text().split()):
            while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("session", [True, False])
async def test_nothing_of_it_is_left_behind(session, agent, tmp_path):
    pids = tmp_path / "pids"
    made = agent(CHILD.format(session=session, pids=str(pids)) + "ask(chat)")
    await made.reset(PROMPT, 0)
    async with asyncio.timeout(8):
        await made.close()
    await gone(pids)


@pytest.mark.parametrize("session", [True, False])
async def test_its_end_is_that_of_its_process_whoever_else_has_its_output(session, agent, tmp_path):
    pids = tmp_path / "pids"
    ends = 'ask(chat); print(json.dumps({"reward": 0.5}), flush=True)'
    made = agent(CHILD.format(session=session, pids=str(pids)) + ends)
    async with asyncio.timeout(15):
        rollout, _ = await rollout_of(made, tokens("a"))
    assert rollout.environment_reward == 0.5
    await gone(pids)


async def test_an_end_that_is_late_is_logged(agent, monkeypatch, caplog):
    monkeypatch.setattr(agent_process, "_END_S", 0.0)
    made = agent("ask(chat)")
    await made.reset(PROMPT, 0)
    await made.close()
    assert "an agent is killed: its end: no answer from the agent" in caplog.text
    async with asyncio.timeout(10):
        await made._process.ended(10.0)


async def test_it_may_leave_its_input_unread(agent):
    made = agent("")
    made.command = [sys.executable, "-c", "import time; time.sleep(600)"]
    prompt = replace(PROMPT, columns={"page": "x" * 2**20})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await made.reset(prompt, 0)
    await made.close()
    assert made._process.status == 128 + signal.SIGTERM


async def test_an_endpoint_says_what_it_cannot_do():
    endpoint = Endpoint()
    session = await endpoint.open()
    asks = [{"role": "user", "content": "?"}]
    async with aiohttp.ClientSession() as client:

        async def post(url, body):
            async with client.post(f"{url}/chat/completions", json=body) as answer:
                return answer.status, (await answer.json()).get("error", {}).get("message", "")

        async with client.get(f"{session.url}/models") as answer:
            assert (await answer.json())["data"][0]["id"] == "policy"
        assert (await post(session.url, {"messages": asks, "n": 2}))[1] == "n must be 1, got 2"
        assert (await post(session.url, {"messages": ["x"]}))[0] == 400
        assert (await post(session.url, [1]))[0] == 400
        other = session.url.replace("/0/", "/77/")
        assert (await post(other, {"messages": asks}))[0] == 404
        waiting = asyncio.ensure_future(post(session.url, {"messages": asks}))
        assert (await session.next_request(20.0))["messages"] == asks
        assert (await post(session.url, {"messages": asks}))[0] == 409
        endpoint.forget(session)
        assert await waiting == (410, "this session is over")
    await endpoint.close()


async def test_a_stream_has_the_answer_as_one_event():
    endpoint = Endpoint()
    session = await endpoint.open()
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    async with aiohttp.ClientSession() as client:
        body = {"messages": [{"role": "user", "content": "?"}], "stream": True}
        asking = asyncio.ensure_future(client.post(f"{session.url}/chat/completions", json=body))
        await session.next_request(20.0)
        session.answer({"role": "assistant", "content": "so", "tool_calls": [call]})
        answer = await asking
        assert answer.content_type == "text/event-stream"
        first, done = (await answer.text()).strip().split("\n\n")
    assert done == "data: [DONE]"
    chunk = json.loads(first.removeprefix("data: "))
    assert chunk["object"] == "chat.completion.chunk"
    [choice] = chunk["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["delta"] == {
        "role": "assistant", "content": "so", "tool_calls": [{"index": 0, **call}],
    }  # fmt: skip
    await endpoint.close()


def test_a_command_is_a_list():
    with pytest.raises(ConfigError, match="command must be a list"):
        Agent("python agent.py")
    with pytest.raises(ConfigError, match="parser must be one of"):
        Agent(["true"], parser="x")
    assert Agent(["true"], tools=[{}]).roles == ("tool",)
    assert Agent(["true"]).roles == ("user",) and os.environ.get("OPENAI_BASE_URL") is None
