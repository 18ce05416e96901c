"""The environment: what a key stands for is told to whoever asks, and has to be answered then."""

from __future__ import annotations

from rlhf_ray.environments.protocol import Step
from rlhf_ray.types import Prompt


class Lookup:
    """`get k` is answered by the digit of the row's key `k`; any other turn is the last.

    The prompt does not have the digit, so that an answer without a look is right once in ten times.
    """

    roles = ("tool",)

    async def reset(self, prompt: Prompt, seed: int) -> None:
        """Take the row's key and digit."""
        self.key, self.digit = str(prompt.columns["key"]), str(prompt.columns["digit"])

    async def step(self, answer: str) -> Step:
        """The digit, or whether the answer is it."""
        name, _, key = answer.partition(" ")
        if name != "get":
            return Step(reward=float(answer == self.digit), is_done=True)
        is_known = key == self.key
        message = {"role": "tool", "name": "get", "content": self.digit if is_known else "?"}
        # A rollout that only looks, until a limit ends it, is worth 0: that is to be learned from.
        return Step(
            messages=(message,), reward=0.0, num_calls=1, num_failed_calls=int(not is_known)
        )

    async def close(self) -> None:
        """Nothing."""
