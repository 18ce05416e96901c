"""The world that a policy acts in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from rlhf_ray.config.base import Config, LabelSelector, LocalPath
from rlhf_ray.config.placement import GroupConfig

# Of a task of reasoning-gym, where `arguments` have no others.
DEFAULT_ATTEMPTS = 2

# A worker's death may be the doing of any group on it. So often it counts for none of them.
FREE_DEATHS = 2

# What an engine waits for a worker beyond the worker's own deadline: then its loop is blocked.
SLACK_S = 10.0

# What makes an environment of each kind that is named by another key than `path`.
_MADE_BY = {
    "reasoning_gym": "rlhf_ray.environments.reasoning_gym:ReasoningGym",
    "mcp": "rlhf_ray.environments.mcp:McpTools",
    "openenv": "rlhf_ray.environments.openenv:OpenEnv",
}


class McpConfig(Config):
    """A server of the Model Context Protocol; none without a command or a URL.

    Attributes:
        command: Starts one that speaks over its standard streams, for each rollout: a program and
            its arguments.
        url: Of one that speaks streamable HTTP, such as `http://host:8000/mcp`.
    """

    alternatives = (frozenset({"command", "url"}),)

    command: list[str] = []
    url: str = ""

    def _faults(self) -> Iterator[str]:
        if self.command and self.url:
            yield "an MCP server has either a command or a url, got both"


class EnvironmentConfig(Config):
    """An environment, by import path (`package.module:name` or `file.py:name`); none without one.

    What it gives for turns is a reward of weight 1 beside those of `reward`, which may then be
    empty.

    Attributes:
        path: Of a class or function that makes one for each rollout, when it is called with
            `arguments`.
        reasoning_gym: In place of a path the name of a task of reasoning-gym, whose rows `python -m
            rlhf_ray.environments.reasoning_gym` writes; a wrong answer may be given again.
        mcp: In place of a path a server whose tools the policy may call.
        openenv: In place of a path the address of a server of OpenEnv, such as `http://host:8000`.
        max_turns: Of the policy in a rollout. `rollout.max_new_tokens` is for all turns together.
        max_observation_tokens: Of each message of the environment; longer ones are cut.
        timeout_s: For each answer of the environment; a late one fails the rollout's group, and
            `failures.row` says what becomes of that. All turns and the policy's answers have
            `timeouts.call_s` together.
        workers: Processes that environments run in, on any nodes.
        cpus_per_worker: Cores that each reserves.
        labels: Of the nodes that workers may go to, as in `placement`.
        template: `checked` refuses a chat template that renders earlier answers anew as the chat
            goes on. `append` takes any: what was sampled stays as it is, and what the template
            would write behind an answer stands behind it.
    """

    alternatives = (frozenset({"path", "reasoning_gym", "mcp", "openenv"}),)

    path: LocalPath = ""
    reasoning_gym: str = ""
    mcp: McpConfig = McpConfig()
    openenv: str = ""
    arguments: dict[str, Any] = {}
    max_turns: PositiveInt = 8
    max_observation_tokens: PositiveInt = 512
    timeout_s: PositiveFloat = 60.0
    workers: PositiveInt = 2
    cpus_per_worker: PositiveFloat = 1.0
    labels: dict[str, LabelSelector] = {}
    template: Literal["checked", "append"] = "checked"

    def _faults(self) -> Iterator[str]:
        if len(self._names) > 1:
            yield f"an environment has one of path, {', '.join(_MADE_BY)}, got {self._names}"
        attempts = self.arguments.get("attempts", DEFAULT_ATTEMPTS)
        if self.reasoning_gym and isinstance(attempts, int) and attempts > self.max_turns:
            yield (
                "arguments.attempts: each attempt is a turn: it must not exceed max_turns "
                f"({self.max_turns}), got {attempts}"
            )
        if self.is_named:
            return
        fields = type(self).model_fields.items()
        if given := [name for name, field in fields if getattr(self, name) != field.default]:
            yield f"path must name the environment that these are for: {', '.join(given)}"

    @property
    def is_named(self) -> bool:
        """Whether there is one."""
        return bool(self._names)

    @property
    def _names(self) -> list[str]:
        """The keys that name it: one at most."""
        given = {
            "path": self.path,
            "reasoning_gym": self.reasoning_gym,
            "mcp": self.mcp.command or self.mcp.url,
            "openenv": self.openenv,
        }
        return [key for key, value in given.items() if value]

    @property
    def made_by(self) -> str:
        """The import path of what makes it."""
        [name] = self._names
        return self.path or _MADE_BY[name]

    @property
    def made_with(self) -> dict[str, Any]:
        """The arguments of what makes it."""
        named: dict[str, Any] = {}
        match self._names:
            case ["reasoning_gym"]:
                named = {"task": self.reasoning_gym}
            case ["mcp"]:
                named = self.mcp.model_dump(exclude_defaults=True)
            case ["openenv"]:
                named = {"url": self.openenv}
        return {**self.arguments, **named}

    @property
    def group(self) -> GroupConfig:
        """Where its workers live."""
        return GroupConfig(
            ranks=self.workers,
            cpus_per_rank=self.cpus_per_worker,
            strategy="SPREAD",
            labels=self.labels,
        )

    @property
    def answer_s(self) -> float:
        """What an engine waits for an answer."""
        return self.timeout_s + SLACK_S

    @property
    def closing_s(self) -> float:
        """What an engine needs at most to end a rollout that is given up, and to say so."""
        return self.answer_s + SLACK_S

    @property
    def most_s(self) -> float:
        """What a rollout may take without the policy's own answers: a beginning, turns, an end."""
        return (self.max_turns + 1) * self.timeout_s + self.closing_s

    def time_faults(self, call_s: float) -> Iterator[str]:
        """Whether a call of so long has time for all turns."""
        if self.is_named and call_s <= self.most_s:
            yield (
                f"timeouts.call_s must be above {self.most_s:g} with environment.max_turns "
                f"{self.max_turns} and environment.timeout_s {self.timeout_s:g}, got {call_s:g}: "
                "so long may a rollout's beginning, turns and end take, and the policy's answers "
                "come on top"
            )

    @property
    def room_tokens(self) -> int:
        """What its messages take of a rollout, at one message of full length a turn."""
        return (self.max_turns - 1) * self.max_observation_tokens if self.is_named else 0
