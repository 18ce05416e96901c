"""What an engine needs to act in environments, which are in other processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from ray.exceptions import RayActorError, RayTaskError

from rlhf_ray.environments.play import Limits
from rlhf_ray.environments.protocol import Step
from rlhf_ray.errors import GroupFailed
from rlhf_ray.types import Prompt


@dataclass(frozen=True, kw_only=True)
class Acting:
    """What an engine needs to act.

    Attributes:
        workers: Ray's handles of those that environments run in.
        limits: Of a rollout; `timeout_s` is beyond the workers' own.
        end_ids: Tokens that end a turn.
        chat_template: Of the policy's tokenizer, as it is configured.
        tools: JSON schemas that prompts show.
        max_tokens: Of a rollout, the prompt included.
        closing_s: What it takes at most to end rollouts that are given up, and to say so.
    """

    workers: tuple[Any, ...]
    limits: Limits
    end_ids: frozenset[int]
    chat_template: str
    tools: tuple[Mapping[str, Any], ...]
    max_tokens: int
    closing_s: float

    def worker_of(self, draw: int, sample: int, num_samples: int) -> Any:
        """Samples of a draw go to workers in turn."""
        return self.workers[(draw * num_samples + sample) % len(self.workers)]


class RemoteEnvironment:
    """A rollout's environment in a worker.

    Its methods raise `GroupFailed` with what the worker says, or as the worker has died.
    """

    def __init__(self, worker: Any, *, draw: int, sample: int) -> None:
        """Open nothing so far."""
        self._worker, self._draw, self._sample = worker, draw, sample
        # By a name of its own it can be closed before the worker has answered that it is open.
        self._session, self._is_asked = uuid4().hex, False

    async def reset(self, prompt: Prompt, seed: int) -> None:
        """Open the session."""
        self._is_asked = True
        await self._ask("open", self._session, self._draw, self._sample, prompt, seed)

    async def step(self, answer: str) -> Step:
        """Ask it."""
        step: Step = await self._ask("step", self._session, answer)
        return step

    async def close(self) -> None:
        """Close it, if it was asked for.

        Ray does not end a call that its caller gives up: the worker does, when it closes.
        """
        if self._is_asked:
            await self._ask("close", self._session)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._worker, method).remote(*arguments)
        except RayActorError as error:
            reason = str(error).strip().partition("\n")[0]
            raise GroupFailed.of(f"its worker died: {reason}", cause="crashed") from error
        except RayTaskError as error:
            raise error.cause from error
