"""A task of reasoning-gym with several attempts; and its prompts as a file of data.

The command: `python -m rlhf_ray.environments.reasoning_gym countdown prompts.jsonl --size 1000`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rlhf_ray.config.environment import DEFAULT_ATTEMPTS
from rlhf_ray.deadlines import in_thread
from rlhf_ray.environments.protocol import Step
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.reasoning_gym import COLUMN, rows, score, task_of
from rlhf_ray.types import Prompt

# Verifiers take milliseconds, but for answers that they evaluate.
VERIFIER_S = 60.0


class ReasoningGym:
    """An answer that the task's verifier does not find right may be given again.

    Attributes:
        attempts: Answers at most; the score of the last one that was given is the reward, also
            where a limit ends the rollout before the others.
        task: The name of the rows' task; empty for any.
    """

    def __init__(self, *, attempts: int = DEFAULT_ATTEMPTS, task: str = "") -> None:
        """So many attempts at a task.

        Raises:
            ConfigError: There is none.
        """
        if attempts < 1:
            raise ConfigError(f"attempts must be at least 1, got {attempts}")
        self.attempts, self.task = attempts, task
        self._place: Any = None
        self._num_answers = 0

    async def reset(self, prompt: Prompt, seed: int) -> None:
        """Take the row's task.

        Raises:
            ConfigError: The row has none, or another one than is named.
        """
        self._place = prompt.columns.get(COLUMN)
        if self._place is None:
            raise ConfigError(f"{prompt.prompt_id}: no column {COLUMN!r} names a task")
        task = task_of(self._place)
        if self.task and task != self.task:
            raise ConfigError(f"{prompt.prompt_id}: its task must be {self.task!r}, got {task!r}")

    async def step(self, answer: str) -> Step:
        """The verifier's score for a right answer or the last; else another attempt."""
        self._num_answers += 1
        value = await in_thread(
            lambda: score(answer, self._place),
            timeout_s=VERIFIER_S,
            actor="reasoning-gym",
            operation="a score",
        )
        if value == 1.0 or self._num_answers == self.attempts:
            return Step(reward=value, is_done=True)
        message = {"role": "user", "content": "That is not right. Try again."}
        return Step(messages=(message,), reward_if_last=value)

    async def close(self) -> None:
        """Nothing."""


def main() -> None:
    """Write the prompts of a task."""
    parser = argparse.ArgumentParser(description="Prompts of a task of reasoning-gym.")
    parser.add_argument("task", help="its name, such as countdown")
    parser.add_argument("file", type=Path, help="JSON lines are written there")
    parser.add_argument("--size", type=int, default=1000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="other seeds make other prompts")
    parser.add_argument("--settings", type=json.loads, default={}, help="the task's own, as JSON")
    given = parser.parse_args()
    made = rows(given.task, size=given.size, seed=given.seed, **given.settings)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in made]
    given.file.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
