"""An environment of OpenEnv, which a server of its own has; and its tasks as a file of data.

A rollout is one session of the server's WebSocket `/ws`: `reset`, then `step` after `step`.
Source: https://github.com/meta-pytorch/OpenEnv, the messages of its server, as of 0.3.

The command: `python -m rlhf_ray.environments.openenv http://host:8000 prompts.jsonl --size 1000`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp

from rlhf_ray.deadlines import deadline
from rlhf_ray.environments.protocol import Step, readable
from rlhf_ray.errors import ConfigError, GroupFailed
from rlhf_ray.types import Prompt

logger = logging.getLogger(__name__)

# The seed that a row was made with, where `main` made it.
SEED_COLUMN = "openenv_seed"
_MOST_BYTES = 100 * 2**20  # as OpenEnv's own client: observations may be pages
# Between two questions whether a session is free.
_SEAT_POLL_S = 0.5
# For a row of data.
_ROW_S = 60.0


class OpenEnv:
    """A session of a server. An answer of the policy is an action, an observation its answer.

    Which of an action's fields the answer is, `action` says. Without that it is the only one that
    an action must have, or else the answer is a JSON object with all of them. What is no action is
    a message to the policy; a server that is gone, or fails at one, fails the group.
    """

    def __init__(
        self,
        url: str,
        *,
        action: str = "",
        observation: str = "",
        columns: Sequence[str] = (),
    ) -> None:
        """Connect to nothing so far.

        Args:
            url: Of the server, such as `http://host:8000`.
            action: The field of an action that an answer's text is.
            observation: The field of an observation that the policy is shown; empty for all of
                them, as JSON.
            columns: Of the row, which `reset` gets beside the seed.

        Raises:
            ConfigError: The address is of another kind.
        """
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"openenv must be an address such as http://host:8000, got {url!r}")
        self._url = url.rstrip("/")
        self._action, self._observation, self._columns = action, observation, columns
        self._fields: Mapping[str, Any] = {}
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def reset(self, prompt: Prompt, seed: int) -> None:
        """Begin an episode, once the server has a session for it.

        Raises:
            ConfigError: The row lacks a column, or actions have no such field.
            GroupFailed: The server is gone, or cannot be reached.
            RuntimeError: It fails, or the episode is over before the policy has acted.
        """
        if missing := [name for name in self._columns if name not in prompt.columns]:
            raise ConfigError(
                f"{prompt.prompt_id}: no column {missing[0]!r}, which reset is to get"
            )
        given = {name: prompt.columns[name] for name in self._columns}
        first = await self.begin({"seed": prompt.columns.get(SEED_COLUMN, seed), **given})
        if first.get("done"):
            raise RuntimeError("the episode is over before the policy has acted")

    async def begin(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """What comes of `reset`: observation, reward, done."""
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        try:
            async with self._http.get(f"{self._url}/schema") as answer:
                answer.raise_for_status()
                schema = (await answer.json())["action"]
        except (aiohttp.ClientError, OSError) as error:
            raise self._gone(error) from error
        self._fields = schema.get("properties", {})
        if not self._action and len(required := schema.get("required", ())) == 1:
            [self._action] = required
        if self._action and self._action not in self._fields:
            known = ", ".join(self._fields)
            raise ConfigError(
                f"action must be one of {known}, which actions have, got {self._action!r}"
            )
        return await self._seated(arguments)

    async def step(self, answer: str) -> Step:
        """What the server says of an action, or what is wrong with it.

        Raises:
            GroupFailed: The server is gone.
            RuntimeError: It failed at the action.
        """
        try:
            action = self._action_of(answer.rpartition("</think>")[2].strip())
        except ValueError as error:
            return _refused(str(error))
        said = await self._ask("step", action)
        if said["type"] == "error":
            data = said["data"]
            if data.get("code") == "VALIDATION_ERROR":
                return _refused(_faults_of(data))
            raise _failure(data)
        found = said["data"]
        shown = {"role": "user", "content": readable(self.text(found))}
        reward = found.get("reward")
        return Step(
            messages=(shown,),
            reward=None if reward is None else float(reward),
            is_done=bool(found.get("done")),
            num_calls=1,
        )

    async def close(self) -> None:
        """End the session."""
        if self._socket is not None:
            await self._socket.close()
        if self._http is not None:
            await self._http.close()

    aclose = close

    def text(self, found: Mapping[str, Any]) -> str:
        """An observation as the policy reads it.

        Raises:
            ConfigError: It has no field of the name.
        """
        observation = found["observation"]
        if not self._observation:
            return json.dumps(observation, ensure_ascii=False)
        if self._observation not in observation:
            known = ", ".join(observation)
            raise ConfigError(
                f"observation must be one of {known}, which observations have, got "
                f"{self._observation!r}"
            )
        shown = observation[self._observation]
        return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)

    def _action_of(self, said: str) -> dict[str, Any]:
        """Raises ValueError, in words for the policy, where it is none."""
        if self._action and self._fields[self._action].get("type") == "string":
            return {self._action: said}
        try:
            value = json.loads(said)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the answer must be JSON: {error}") from error
        if self._action:
            return {self._action: value}
        if not isinstance(value, dict):
            raise ValueError(f"the answer must be a JSON object with {', '.join(self._fields)}")
        return value

    async def _seated(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Reset, once a session is free; whoever calls has a deadline."""
        assert self._http is not None
        is_told = False
        while True:
            try:
                self._socket = await self._http.ws_connect(
                    f"{self._url}/ws", max_msg_size=_MOST_BYTES
                )
            except (aiohttp.ClientError, OSError) as error:
                raise self._gone(error) from error
            said = await self._ask("reset", arguments)
            if said["type"] != "error":
                return dict(said["data"])
            if said["data"].get("code") != "CAPACITY_REACHED":
                raise _failure(said["data"])
            if not is_told:
                logger.warning("%s; its max_concurrent_envs says how many", said["data"]["message"])
                is_told = True
            await self._socket.close()
            await asyncio.sleep(_SEAT_POLL_S)

    async def _ask(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        assert self._socket is not None, "an episode must have begun"
        error: Exception | None = None
        try:
            await self._socket.send_json({"type": kind, "data": dict(data)})
        except (aiohttp.ClientError, OSError) as failed:
            error = failed  # a server that has no session says so, and closes at once
        message = await self._socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise self._gone(error or "it closed the connection")
        answer: dict[str, Any] = json.loads(message.data)
        return answer

    def _gone(self, cause: object) -> GroupFailed:
        what = f"{type(cause).__name__}: {cause}" if isinstance(cause, BaseException) else cause
        message = f"the OpenEnv server {self._url} ended, or cannot be reached: {what}"
        return GroupFailed.of(message, cause="crashed")


def _refused(why: str) -> Step:
    shown = {"role": "user", "content": readable(f"error: {why}")}
    return Step(messages=(shown,), num_calls=1, num_failed_calls=1)


def _faults_of(data: Mapping[str, Any]) -> str:
    """Of an action that is none: each field with what is wrong, as pydantic says it."""
    faults = data.get("errors", ())
    said = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults]
    return "; ".join(said) or str(data.get("message"))


def _failure(data: Mapping[str, Any]) -> RuntimeError:
    return RuntimeError(f"the OpenEnv server says {data.get('code')}: {data.get('message')}")


async def rows(
    url: str, *, size: int, seed: int = 0, observation: str = ""
) -> list[dict[str, Any]]:
    """A row for each of `size` seeds: what the world shows first, as the prompt.

    Raises:
        GroupFailed: The server is gone, or cannot be reached.
    """
    made = []
    for number in range(seed, seed + size):
        async with (
            deadline(_ROW_S, actor=url, operation=f"its episode of seed {number}"),
            aclosing(OpenEnv(url, observation=observation)) as world,
        ):
            shown = world.text(await world.begin({"seed": number}))
            made.append({"prompt": [{"role": "user", "content": shown}], SEED_COLUMN: number})
    return made


def main() -> None:
    """Write the prompts of an environment."""
    parser = argparse.ArgumentParser(description="Prompts of an environment of OpenEnv.")
    parser.add_argument("url", help="of its server")
    parser.add_argument("file", type=Path, help="JSON lines are written there")
    parser.add_argument("--size", type=int, default=1000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the first one's")
    parser.add_argument("--observation", default="", help="the field that is shown; all without")
    given = parser.parse_args()
    made = asyncio.run(
        rows(given.url, size=given.size, seed=given.seed, observation=given.observation)
    )
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in made]
    given.file.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
