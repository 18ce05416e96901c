"""An engine that leaves its GPUs and comes back: what of it is there, and whether it may answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from rlhf_ray.errors import RunError
from rlhf_ray.roles.protocols import ENGINE_PARTS, EnginePart, SleepLevel

# A method of vLLM's engine and its arguments -> its answer.
Ask = Callable[..., Awaitable[Any]]


class EngineSleep:
    """vLLM's sleep mode, with the rule that nobody samples from memory that holds no model.

    At level 1 weights wait on the host. At level 2 they are gone: vLLM gives the memory back with
    whatever lies there, and only a publication makes a model of it. Neither keeps the cache of keys
    and values, nor what prefixes it knew.

    Attributes:
        has_model: Whether the weights are a model's: not after level 2, nor amid a publication.
    """

    def __init__(self, name: str, ask: Ask) -> None:
        """Awake, with a model."""
        self.name, self.ask = name, ask
        self.asleep: set[EnginePart] = set()
        self.has_model = True

    async def sleep(self, level: SleepLevel, *, timeout_s: float) -> None:
        """Leave the GPUs; weights that sleep already stay as they are."""
        if "weights" in self.asleep:
            return
        if level == 2:
            self.has_model = False  # also where the call fails
        await self.ask("sleep", level=level, timeout_s=timeout_s)
        self.asleep = set(ENGINE_PARTS)

    async def wake_up(self, part: EnginePart | None = None, *, timeout_s: float) -> None:
        """Take memory back: of one part, or of all that sleeps.

        Raises:
            RunError: The cache is asked for, and there is no model to fill it.
        """
        parts = self.asleep & ({part} if part else set(ENGINE_PARTS))
        if part != "weights":
            self.require_model("woken up to sample")
        if not parts:
            return
        is_awake = await self.ask("wake_up", tags=sorted(parts), timeout_s=timeout_s)
        self.asleep -= parts
        if is_awake != (not self.asleep):
            raise RunError(
                f"{self.name}: vLLM must be {'asleep in part' if self.asleep else 'awake'} after "
                f"waking its {' and '.join(sorted(parts))}, and says that it is not"
            )

    def require_model(self, asked: str) -> None:
        """Refuse what would read weights that nobody has published.

        Raises:
            RunError: There are none.
        """
        if not self.has_model:
            raise RunError(
                f"{self.name} is {asked} without a model: its weights were dropped when it went to "
                "sleep (level 2), or their publication did not end; publish before"
            )
