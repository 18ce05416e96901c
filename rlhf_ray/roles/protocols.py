"""What the loops ask of the five roles; Ray actors and test fakes have the same Protocols."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from rlhf_ray.config.algorithm_table import ScoredModel
from rlhf_ray.packing import UpdatePlan
from rlhf_ray.roles.groups import GenerationRequest, Ref, RolloutGroup, SampleArrays, ScoredGroup
from rlhf_ray.roles.reports import Evaluated, Hardware, Metrics, Publication
from rlhf_ray.types import Rollout, Score

# What of an engine leaves its GPUs, and how, in vLLM's words.
EnginePart: TypeAlias = Literal["weights", "kv_cache"]
ENGINE_PARTS: tuple[EnginePart, ...] = ("weights", "kv_cache")
SleepLevel: TypeAlias = Literal[1, 2]


class RolloutEngine(Protocol):
    """A set of engines that sample."""

    async def generate(
        self, requests: Sequence[GenerationRequest], *, together: bool = True
    ) -> Sequence[Awaitable[RolloutGroup]]:
        """Begin to sample requests, after waking up.

        Args:
            requests: What is asked.
            together: Whether all begin at the same moment, so that the same requests give the same
                bits; else each group does as soon as an engine has room for its samples, those that
                were asked for first before others.

        Returns:
            One awaitable a request, in their order, each done when its group is. Cancelling it, at
            any time, ends the group's requests.

        Raises:
            StateLost: Weights have to be published before: none are, or newer ones than are asked.
        """
        ...

    async def joining(self) -> None:
        """Wait until an engine is there that came in the place of another, and lacks the weights.

        For ever, where engines cannot take them while others sample.
        """
        ...

    async def sleep(self, level: SleepLevel) -> None:
        """Leave shared GPUs to other roles; nothing where they are not shared.

        Args:
            level: 1 keeps the weights on the host; 2 drops them, where a publication comes before
                the next rollout.
        """
        ...

    async def wake_up(self, part: EnginePart | None = None) -> None:
        """Take shared GPUs back: for weights to come, for the cache, or for both."""
        ...


class Offloads(Protocol):
    """A role whose model may live on the engines' GPUs."""

    async def offload(self) -> None:
        """Leave these for the host; nothing elsewhere. What the role does next brings it back."""
        ...


class Reference(Offloads, Protocol):
    """The frozen model."""

    async def logprobs(self, groups: Sequence[RolloutGroup]) -> SampleArrays:
        """Log-probabilities of the response tokens: a float array [T] a sample.

        Tokens that are not the policy's own have 0, here and in what other roles give.
        """
        ...


class Reward(Offloads, Protocol):
    """Functions, a model or a service that scores."""

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
        """A score a sample. Any number of groups may be asked about at a time.

        Raises:
            GroupFailed: A user's code failed at this group; it may be asked about again.
        """
        ...


class Value(Offloads, Protocol):
    """The critic."""

    async def values(self, groups: Sequence[RolloutGroup]) -> SampleArrays:
        """The expected return before each response token and after the last: [T + 1] a sample."""
        ...

    async def update(self, experience: Ref, plan: UpdatePlan) -> Metrics:
        """Epochs times minibatches of the value loss."""
        ...

    async def save(self, folder: str) -> None:
        """Write this role's trained state into `folder`."""
        ...

    async def restore(self, folder: str) -> None:
        """Read what `save` wrote; where `folder` is empty, begin as the job began."""
        ...


class Policy(Offloads, Protocol):
    """The model that is trained to act."""

    async def hardware(self) -> Hardware:
        """What the policy's utilisation is counted from."""
        ...

    async def logprobs(
        self, groups: Sequence[RolloutGroup], models: Sequence[ScoredModel]
    ) -> Sequence[SampleArrays]:
        """Log-probabilities of the response tokens, [T] a sample, for each of `models`.

        `policy` is the policy under its current weights, `base` the same without its adapter.
        """
        ...

    async def update(self, experience: Ref, plan: UpdatePlan, kl_coefficient: float) -> Metrics:
        """Epochs times minibatches of the policy loss."""
        ...

    async def publish(self, version: int, *, exactly: bool = False) -> None:
        """Bring the weights as `version` to the engines that lack it, and score the probe.

        Engines with newer ones keep these, unless all shall have `exactly` this version.
        """
        ...

    async def compare(self) -> Publication:
        """Have the engines score the probe; what came of the publication.

        Raises:
            StateLost: None of them has the weights.
            RunError: They differ from the policy by more than is let pass.
        """
        ...

    async def save(self, folder: str) -> None:
        """Write this role's trained state into `folder`."""
        ...

    async def restore(self, folder: str) -> None:
        """Read what `save` wrote; where `folder` is empty, begin as the job began."""
        ...


class Supervised(Protocol):
    """A role while it learns from the rows of a data set."""

    async def hardware(self) -> Hardware:
        """What the role's utilisation is counted from."""
        ...

    async def update(self, rows: Sequence[Any], plan: UpdatePlan) -> Metrics:
        """One optimiser step a minibatch of the plan."""
        ...

    async def evaluate(self, rows: Sequence[Any]) -> Evaluated:
        """Metrics and outcomes of held-out rows."""
        ...

    async def save(self, folder: str) -> None:
        """Write the trained state into `folder`."""
        ...

    async def restore(self, folder: str) -> None:
        """Read what `save` wrote; where `folder` is empty, begin as the job began."""
        ...


class ExperienceBuilder(Protocol):
    """Turns rollouts and scores into experience, away from the controller."""

    async def build(
        self,
        groups: Sequence[ScoredGroup],
        *,
        old: SampleArrays | None,
        reference: SampleArrays | None,
        values: SampleArrays | None,
        kl_coefficient: float,
        plans: Sequence[UpdatePlan],
    ) -> tuple[Sequence[Ref], Metrics]:
        """For each plan a reference to what is trained by it, and metrics.

        That is one `Experience` a sample that is trained; in their order they are the plan's rows.

        Args:
            groups: What is compared; each sample has a total.
            old: The policy's arrays of these samples, and perhaps of others; None where no pass
                was made for them.
            reference: The same of the reference; None where the job has none.
            values: The same of the critic; None where the job has none.
            kl_coefficient: Current weight of the KL to the reference.
            plans: Of the updates to come, one a role that learns.
        """
        ...


class RolloutStore(Protocol):
    """Where rollouts lie, for those few who look at them in full."""

    async def fetch(self, groups: Sequence[RolloutGroup]) -> Sequence[Sequence[Rollout]]:
        """The samples of groups; of a group without any, none.

        Raises:
            ResultsLost: They are gone with the node that held them.
        """
        ...

    def put(self, rollouts: Sequence[Rollout]) -> Ref:
        """Lay down a group's samples; the reference is as good as an engine's."""
        ...


@dataclass(frozen=True, kw_only=True)
class Roles:
    """All that an online job talks to; `reference` and `value` where the job has such roles."""

    rollout: RolloutEngine
    policy: Policy
    reward: Reward
    experience: ExperienceBuilder
    store: RolloutStore
    reference: Reference | None
    value: Value | None
