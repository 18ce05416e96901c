"""What a job asks of the pool that its roles live on; actors or a test's fakes stand behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rlhf_ray.metrics import Sink
from rlhf_ray.metrics.usage import Used
from rlhf_ray.roles.protocols import Reference, Reward, RolloutStore, Supervised
from rlhf_ray.specs import Spec
from rlhf_ray.types import LabelledAnswer, Prompt, Ranking


class Pool(Protocol):
    """The roles of one job."""

    async def start(self) -> None:
        """Start what is not there of the job's roles, and have what others left make room.

        Raises:
            ConfigError: The pool is too small or holds a role in another shape.
            RunError: An actor died or missed its deadline.
        """

    async def load(self, role: str, spec: Spec) -> Any:
        """Make a started role what `spec` describes.

        Returns:
            The role as loops see it: what `rlhf_ray.roles` has for the kind of specification, a
            `WeightedReward`, a `RowReference` or a `SupervisedRole`.

        Raises:
            ConfigError: A model or scorer cannot be loaded.
        """

    async def unload(self, role: str) -> None:
        """Have a role release its model."""

    async def connect(self, prompts: Iterable[Prompt]) -> None:
        """Open the way from the loaded policy to the engines; `prompts` are for its probe."""

    async def finish(self) -> None:
        """Leave the trained role's model in the run's folder, and in memory for later jobs."""

    async def usage(self) -> Used:
        """What the job's processes needed and did since the last time."""

    def store(self) -> RolloutStore:
        """Where the job's rollouts lie."""

    def sinks(self) -> Sequence[Sink]:
        """Where metrics go beside what the library knows."""


class WeightedReward(Reward, Protocol):
    """A reward whose parts have names."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Factor of each part in the sum."""


class RowReference(Reference, Protocol):
    """A reference that also scores the answers of a data set."""

    async def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer]
    ) -> Sequence[tuple[float, ...]]:
        """Log-probability of each of a row's answers, in nats at temperature 1; in row order."""


class SupervisedRole(Supervised, Protocol):
    """A role that learns from rows, and shows what it learned."""

    async def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer]
    ) -> Sequence[tuple[float, ...]]:
        """As of a `RowReference`, by a policy without its adapter."""

    async def score_answers(self, rows: Sequence[Ranking]) -> Sequence[tuple[float, ...]]:
        """The scores that a reward model in training gives each row's answers."""

    async def continuations(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, end_ids: Sequence[int]
    ) -> Sequence[Sequence[int]]:
        """What a policy writes after each prompt, greedily, up to an end token."""
