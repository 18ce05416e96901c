"""The world that a policy acts in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from rlhf_ray.config.base import Config, LocalPath


class EnvironmentConfig(Config):
    """An environment, by import path (`package.module:name` or `file.py:name`); none without one.

    Attributes:
        path: Of a class or function that makes one for each rollout, when it is called with
            `arguments`.
        max_turns: Of the policy in a rollout. `rollout.max_new_tokens` is for all turns together.
        max_observation_tokens: Of each message of the environment; longer ones are cut.
        timeout_s: For each answer of the environment; a late one fails the rollout's group.
        workers: Processes that environments run in.
        template: `checked` refuses a chat template that renders earlier answers anew as the chat
            goes on. `append` takes any: what was sampled stays as it is, and what the template
            would write behind an answer stands behind it.
    """

    path: LocalPath = ""
    arguments: dict[str, Any] = {}
    max_turns: PositiveInt = 8
    max_observation_tokens: PositiveInt = 512
    timeout_s: PositiveFloat = 60.0
    workers: PositiveInt = 2
    template: Literal["checked", "append"] = "checked"

    def _faults(self) -> Iterator[str]:
        if self.arguments and not self.path:
            yield f"path must name the environment that takes the arguments {self.arguments}"
