"""Environments of the cluster tests; workers read this file by its path."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from rlhf_ray.environments.protocol import Step
from rlhf_ray.types import Prompt


class Echo:
    """Says how long the answer was, twice; rewards the letter e in each turn.

    When all environments together are asked for that many steps it fails in the way that is asked
    for: it raises, exits with its process, or blocks the event loop.
    """

    def __init__(self, counts: str = "", fails: str = "", at: int = 0) -> None:
        self.counts, self.fails, self.at, self.num_turns = counts, fails, at, 0

    async def reset(self, prompt: Prompt, seed: int) -> None:
        self.seed = seed

    async def step(self, answer: str) -> Step:
        self.num_turns += 1
        if self.counts and self._number() == self.at:
            await self._fail()
        reward = answer.count("e") / (1 + len(answer))
        said = {"role": "user", "content": f"{len(answer)} and {self.seed % 10}"}
        if self.num_turns == 3:
            return Step(reward=reward, is_done=True)
        return Step(messages=(said,), reward=reward)

    async def close(self) -> None:
        """Nothing."""

    async def _fail(self) -> None:
        match self.fails:
            case "raises":
                raise ValueError("this world is broken")
            case "exits":
                os._exit(1)
            case "blocks":
                time.sleep(60)

    def _number(self) -> int:
        """Of this step among all, in whatever process."""
        return _counted(Path(self.counts))


class Poisoned(Echo):
    """There is one prompt in whose world nobody can be: the first that is met behind `at` others.

    `folder` has the file `resets`, a byte for each, and `poisoned`, which names that prompt.
    """

    def __init__(self, folder: str, at: int) -> None:
        super().__init__()
        self.folder, self.at_reset = Path(folder), at

    async def reset(self, prompt: Prompt, seed: int) -> None:
        await super().reset(prompt, seed)
        poisoned = self.folder / "poisoned"
        if _counted(self.folder / "resets") > self.at_reset:
            with suppress(FileExistsError), poisoned.open("x") as file:
                file.write(prompt.prompt_id)
        if poisoned.exists() and poisoned.read_text() == prompt.prompt_id:
            raise KeyError("no such world")


def _counted(file: Path) -> int:
    with file.open("a") as counts:
        counts.write("x")
        return counts.tell()
