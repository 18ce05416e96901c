"""What the loops ask of the five roles; Ray actors and test fakes stand behind the same Protocols.

Bulk data never passes the controller: a role hands back *references* (`Ref`), which the next role
resolves where it runs. The controller holds lengths, scores and references.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from rlhf_ray.metrics.flops import UpdateFlops
from rlhf_ray.packing import UpdatePlan
from rlhf_ray.types import Prompt, Rollout, RolloutSummary, Score

# Opaque to the loops: Ray's ObjectRef in a cluster, the value itself in a fake.
Ref: TypeAlias = Any
Metrics: TypeAlias = Mapping[str, float]
# What the job's processes needed since the last time that it was called: `wait/*`, `memory/*`, ...
Usage: TypeAlias = Callable[[], Awaitable[Metrics]]
# What of an engine leaves its GPUs, and how, in vLLM's words.
EnginePart: TypeAlias = Literal["weights", "kv_cache"]
ENGINE_PARTS: tuple[EnginePart, ...] = ("weights", "kv_cache")
SleepLevel: TypeAlias = Literal[1, 2]


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """All samples of one draw.

    Attributes:
        prompt: What is answered.
        draw: Its position in the order of the data, which tells this use of it from others.
        seeds_G: One a sample: the same seed and prompt give the same sample.
        temperature: 0 is greedy.
    """

    prompt: Prompt
    draw: int
    seeds_G: tuple[int, ...]
    temperature: float
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some rows of a batch, in one object.

    Attributes:
        ref: Resolves to a list.
        rows: For each entry of that list the row of the batch it belongs to, or -1 for none.
    """

    ref: Ref
    rows: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RolloutBatch:
    """B rollouts in the object store, and what the controller may know of them."""

    summaries_B: tuple[RolloutSummary, ...]
    shards: tuple[Shard, ...]

    @property
    def lengths_B(self) -> tuple[int, ...]:
        """Tokens of each row, its prompt included."""
        return tuple(s.num_prompt_tokens + s.num_response_tokens for s in self.summaries_B)

    @property
    def num_tokens(self) -> int:
        """Of all rows, prompts included."""
        return sum(self.lengths_B)

    @property
    def num_response_tokens(self) -> int:
        """Of all rows."""
        return sum(s.num_response_tokens for s in self.summaries_B)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What one publication of weights moved, and how far engine and trainer then differed.

    Attributes:
        logprob_abs_max: On the probe's worst token, in nats.
        logprob_abs_p99: On the worst but for one in a hundred.
        logprob_abs_mean: In the mean.
    """

    version: int
    seconds: float
    num_bytes: int
    logprob_abs_max: float
    logprob_abs_p99: float
    logprob_abs_mean: float


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a group's utilisation is counted from.

    Attributes:
        flops: Of an update of its model.
        device_name: As the vendor calls it; `cpu` where there is no GPU.
        num_devices: Of the group.
    """

    flops: UpdateFlops
    device_name: str
    num_devices: int


class RolloutEngine(Protocol):
    """A set of engines that sample."""

    async def generate(self, requests: Sequence[GenerationRequest]) -> RolloutBatch:
        """Sample every request, after waking up; rows come by requests, then samples."""
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

    async def logprobs(self, batch: RolloutBatch) -> Sequence[Shard]:
        """Log-probabilities of the response tokens: one float array [T] a row."""
        ...


class Reward(Offloads, Protocol):
    """Functions, a model or a service that scores."""

    async def score(self, batch: RolloutBatch) -> Sequence[Score]:
        """One score a row."""
        ...


class Value(Offloads, Protocol):
    """The critic."""

    async def values(self, batch: RolloutBatch) -> Sequence[Shard]:
        """The expected return before each response token and after the last: [T + 1] a row."""
        ...

    async def update(self, experience: Ref, plan: UpdatePlan) -> Metrics:
        """Epochs times minibatches of the value loss."""
        ...

    async def save(self, folder: str) -> None:
        """Write this role's trained state into `folder`."""
        ...

    async def restore(self, folder: str) -> None:
        """Read what `save` wrote."""
        ...


class Policy(Offloads, Protocol):
    """The model that is trained to act."""

    async def hardware(self) -> Hardware:
        """What the policy's utilisation is counted from."""
        ...

    async def logprobs(self, batch: RolloutBatch) -> Sequence[Shard]:
        """Log-probabilities of the response tokens under the current weights."""
        ...

    async def update(self, experience: Ref, plan: UpdatePlan, kl_coefficient: float) -> Metrics:
        """Epochs times minibatches of the policy loss."""
        ...

    async def publish(self, version: int) -> None:
        """Bring the weights to every engine as `version`, and score the probe with them."""
        ...

    async def compare(self) -> Publication:
        """Have the engines score the probe; what came of the publication.

        Raises:
            RunError: They differ from the policy by more than is let pass.
        """
        ...

    async def save(self, folder: str) -> None:
        """Write this role's trained state into `folder`."""
        ...

    async def restore(self, folder: str) -> None:
        """Read what `save` wrote."""
        ...


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What held-out rows showed.

    Attributes:
        metrics: Means over all rows, by the names of training's metrics.
        outcomes_B: What the model makes of each row, in order: an SFT example's loss, the scores of
            a ranking's answers, the implicit rewards of DPO.
    """

    metrics: Metrics
    outcomes_B: Sequence[tuple[float, ...]]


async def unknown_usage() -> Metrics:
    """Where nobody measures."""
    return {}


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
        """Read what `save` wrote."""
        ...


class Assembler(Protocol):
    """Turns rollouts and scores into experience, away from the controller."""

    async def build(
        self,
        batch: RolloutBatch,
        scores_B: Sequence[Score],
        *,
        old: Sequence[Shard],
        reference: Sequence[Shard] | None,
        values: Sequence[Shard] | None,
        kl_coefficient: float,
    ) -> tuple[Ref, Metrics]:
        """A reference to one `Experience` a row that is trained, and metrics."""
        ...

    async def texts(self, batch: RolloutBatch, rows: Sequence[int]) -> Sequence[Rollout]:
        """A few rollouts in full, to be shown."""
        ...


@dataclass(frozen=True, kw_only=True)
class Roles:
    """All that an online job talks to; `reference` and `value` where the algorithm has them."""

    rollout: RolloutEngine
    policy: Policy
    reward: Reward
    assembler: Assembler
    reference: Reference | None
    value: Value | None
