"""An agent in a process of its own, which knows an OpenAI-compatible URL and nothing else.

Its requests are the policy's turns. What it adds to the chat before its next request is what comes
of a turn; so its sessions are trained token by token as they were sampled, like any other rollout.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_ray.environments.agent_process import AgentProcess
from rlhf_ray.environments.endpoint import Endpoint, Session, text_of
from rlhf_ray.environments.protocol import Message, Role, Step
from rlhf_ray.environments.tool_calls import PARSERS, ToolCall
from rlhf_ray.errors import ConfigError
from rlhf_ray.types import Prompt

_SHOWN = 2_000  # characters of what an agent prints
# One server a process, in its event loop.
_ENDPOINTS: dict[asyncio.AbstractEventLoop, Endpoint] = {}


class Agent:
    """Runs a command for each rollout, and answers its requests by the policy.

    The command has `OPENAI_BASE_URL` and `OPENAI_API_KEY` in its environment, and on its standard
    input one JSON object: the row's `messages`, its other `columns`, and a `seed`. Its first
    request must have these messages, each later one all that was said so far and something new
    behind it. It ends with status 0; a last line of output such as `{"reward": 0.5}` is the
    rollout's reward.

    Attributes:
        tools: JSON schemas that prompts show; requests must have the same, or none.
        roles: Of the messages that it adds.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        roles: Sequence[Role] = (),
        parser: str = "hermes",
        timeout_s: float = 600.0,
    ) -> None:
        """Nothing runs so far.

        Args:
            command: The program and its arguments.
            tools: See `Agent.tools`.
            roles: See `Agent.roles`; without any `user`, and with tools `tool`.
            parser: How the policy writes calls of tools: `hermes` or `harmony`.
            timeout_s: For what it does between two requests, if `environment.timeout_s` is not
                shorter.

        Raises:
            ConfigError: There is no command, or no such parser.
        """
        if isinstance(command, str) or not command:
            raise ConfigError(f"command must be a list of a program and arguments, got {command!r}")
        if parser not in PARSERS:
            raise ConfigError(f"parser must be one of {', '.join(PARSERS)}, got {parser!r}")
        self._timeout_s = timeout_s
        self.command, self._parser = [str(part) for part in command], PARSERS[parser]()
        self.tools = [dict(tool) for tool in tools]
        self.roles = tuple(roles) or (("tool",) if tools else ("user",))
        self._chat: list[Message] = []
        self._session: Session | None = None
        self._process: AgentProcess | None = None

    async def reset(self, prompt: Prompt, seed: int) -> None:
        """Start it; it is there once it has asked.

        Raises:
            RuntimeError: It ended before, or asks for something else than its row.
        """
        if isinstance(prompt.text, str):
            self._chat = [{"role": "user", "content": prompt.text}]
        else:
            self._chat = [_plain(message) for message in prompt.text]
        self._session = await _endpoint().open()
        messages = self._chat if isinstance(prompt.text, str) else prompt.text
        task = {"messages": messages, "columns": dict(prompt.columns), "seed": seed}
        variables = {"OPENAI_BASE_URL": self._session.url, "OPENAI_API_KEY": "none"}
        self._process = AgentProcess(
            self.command, json.dumps(task, default=str), {**os.environ, **variables}
        )
        await self._process.listen()
        request = await self._next()
        if request is None:
            raise RuntimeError(f"the agent ended before it asked for anything: {await self._end()}")
        asked = self._messages_of(request)
        if asked != self._chat:
            raise RuntimeError(
                f"the agent's first request must have the row's messages {self._chat!r:.300}, got "
                f"{asked!r:.300}"
            )

    async def step(self, answer: str) -> Step:
        """Answer its request; what it adds to the chat, or its end.

        Raises:
            RuntimeError: It failed, or goes on from another chat than it had.
        """
        assert self._session is not None, "an agent must be started"
        calls = self._parser.calls(answer) if self.tools else []
        self._chat.append({"role": "assistant", "content": answer})
        self._session.answer(_message(answer, calls))
        request = await self._next()
        num_failed = sum(bool(call.fault) for call in calls)
        if request is None:
            reward = _reward_of(await self._end())
            return Step(
                reward=reward, is_done=True, num_calls=len(calls), num_failed_calls=num_failed
            )
        asked, num_before = self._messages_of(request), len(self._chat)
        if asked[:num_before] != self._chat or len(asked) == num_before:
            raise RuntimeError(
                "each request of an agent must have all that was said so far, and something new: "
                f"it had {self._chat!r:.300}, got {asked!r:.300}"
            )
        new = asked[num_before:]
        self._chat += new
        return Step(messages=tuple(new), num_calls=len(calls), num_failed_calls=num_failed)

    async def close(self) -> None:
        """End its process and all that came of it."""
        if self._session is not None:
            _endpoint().forget(self._session)
        if self._process is not None:
            await self._process.close()

    async def _next(self) -> Mapping[str, Any] | None:
        """Its next request; None where it ends."""
        assert self._session is not None and self._process is not None
        request_task = asyncio.ensure_future(self._session.next_request(self._timeout_s))
        end_task = asyncio.ensure_future(self._process.ended(self._timeout_s))
        either = [request_task, end_task]
        try:
            await asyncio.wait(either, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if end_task.done() and not request_task.done():
                end_task.result()
                return None
            return await request_task
        finally:
            for task in either:
                task.cancel()

    async def _end(self) -> str:
        """What it printed.

        Raises:
            RuntimeError: It ended with another status than 0.
        """
        assert self._process is not None
        printed, errors = await self._process.printed()
        if self._process.status:
            raise RuntimeError(
                f"the agent ended with status {self._process.status}: {errors[-_SHOWN:]}"
            )
        return printed

    def _messages_of(self, request: Mapping[str, Any]) -> list[Message]:
        if request.get("tools") and list(request["tools"]) != self.tools:
            raise RuntimeError(
                "a request's tools must be those of the agent's `tools`, which prompts show, got "
                f"{request['tools']!r:.300}"
            )
        return [_plain(message) for message in request["messages"]]


def _endpoint() -> Endpoint:
    return _ENDPOINTS.setdefault(asyncio.get_running_loop(), Endpoint())


def _plain(message: Mapping[str, Any]) -> Message:
    """Role and text, and of a tool's answer which call it is of."""
    kept = {key: str(message[key]) for key in ("name", "tool_call_id") if message.get(key)}
    return {"role": str(message["role"]), "content": text_of(message.get("content")), **kept}


def _message(answer: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """The policy's turn as OpenAI's clients read it; the text has the calls as well."""
    message: dict[str, Any] = {"role": "assistant", "content": answer}
    sound = [call for call in calls if not call.fault]
    if sound:
        message["tool_calls"] = [
            {
                "id": f"call{number:05d}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
            }
            for number, call in enumerate(sound)
        ]
    return message


def _reward_of(printed: str) -> float | None:
    """What the last line says, if it is JSON with a reward; else None: it gave none.

    Raises:
        ValueError: The reward is no finite number.
    """
    lines = printed.strip().splitlines()
    try:
        last = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    if not isinstance(last, Mapping) or "reward" not in last:
        return None
    reward = last["reward"]
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        raise ValueError(f"an agent's reward must be a finite number, got {reward!r}")
    return float(reward)
