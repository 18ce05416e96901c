"""What an environment is to the loop that has a policy act in it: text in, messages out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

from rlhf_ray.errors import ConfigError
from rlhf_ray.types import Prompt

# A `role` (`tool` or `user`) and `content`; a tool's answer also has `name` and `tool_call_id`.
Message: TypeAlias = Mapping[str, str]
Role: TypeAlias = Literal["tool", "user"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What came of a turn.

    Example: `Step(messages=({"role": "tool", "name": "add", "content": "4"},), num_calls=1)`.

    Attributes:
        messages: What the policy sees before its next turn. Behind the last turn nobody sees them.
        reward: For this turn, finite; None where it says nothing. A rollout without any reward is
            scored by reward functions alone.
        reward_if_last: In place of `reward` where a limit ends the rollout before the next `step`.
        is_done: Whether that was the last turn.
        num_calls: Of tools, those that failed included.
        num_failed_calls: Calls that could not be read, or whose tool raised or took too long.

    Raises:
        ValueError: A reward is not finite, or there is nothing to go on from.
    """

    messages: tuple[Message, ...] = ()
    reward: float | None = None
    reward_if_last: float | None = None
    is_done: bool = False
    num_calls: int = 0
    num_failed_calls: int = 0

    def __post_init__(self) -> None:
        for reward in (self.reward, self.reward_if_last):
            if reward is not None and not math.isfinite(reward):
                raise ValueError(f"the reward of a step must be finite, got {reward}")
        if not (self.messages or self.is_done):
            raise ValueError("a step that is not the last must have a message, got none")


@runtime_checkable
class Environment(Protocol):
    """One world for one rollout; all its methods are called in one event loop, one at a time.

    What it raises fails the rollout's group, with its cause: nothing is scored 0 for it.
    """

    async def reset(self, prompt: Prompt, seed: int) -> None:
        """Begin the task of a prompt: its `text` is what the policy was told, `columns` the rest.

        The same prompt and seed begin the same world. What a policy is told first belongs into the
        prompt: samples of a draw share it, and it is not stored with what they did.
        """
        ...

    async def step(self, answer: str) -> Step:
        """What comes of a turn, of which `answer` is the text, special tokens as sampled.

        The token that ended the turn is no part of it.
        """
        ...

    async def close(self) -> None:
        """Release what it holds: called once, whatever ended the rollout.

        A `reset` or `step` that is under way is cancelled before. Where one goes on all the same
        for seconds, this is called again behind its end, for what it may have begun.
        """
        ...


def readable(text: str) -> str:
    r"""The same with `?` for halves of surrogate pairs, which no tokenizer reads.

    What repeats a policy's words may have some: JSON spells them `\ud800`.
    """
    return text.encode("utf-8", "replace").decode()


def tool_schemas(environment: Any) -> list[dict[str, Any]]:
    """The tools that prompts are to show, as chat templates take them; none where it has none."""
    return [dict(schema) for schema in getattr(environment, "tools", ())]


def message_roles(environment: Any) -> tuple[Role, ...]:
    """The roles of the messages that an environment sends.

    Its attribute `roles` says so; without one they are `tool` where it has tools, else `user`.

    Raises:
        ConfigError: It names another.
    """
    named = tuple(getattr(environment, "roles", ()))
    if unknown := [role for role in named if role not in get_args(Role)]:
        known = " or ".join(get_args(Role))
        raise ConfigError(f"roles of an environment's messages must be {known}, got {unknown[0]!r}")
    return named or (("tool",) if tool_schemas(environment) else ("user",))
