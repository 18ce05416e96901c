"""How weights travel from the policy to the engines, and what these must answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from actors.cluster.role_handle import Answer, RoleHandle
from rlhf_ray.config.publication import Backend
from rlhf_ray.types import Rollout

if TYPE_CHECKING:
    from actors.weights.bucket import Bucket
    from actors.weights.segment import SegmentPlace, SharedBucket


class PublishedReplica(Protocol):
    """What a publication asks of a replica."""

    def init_weight_transfer(self, init_info: Mapping[str, Any], timeout_s: float) -> Answer[None]:
        """Connect to the trainer, where the backend needs a connection."""

    def reads_memory(self, node_id: str, place: SegmentPlace) -> Answer[bool]:
        """Whether its workers are on this node of Ray's, and can read memory of the process."""

    def start_weight_update(self, timeout_s: float, keeps_cache: bool) -> Answer[None]:
        """Freeze running requests; the calls that follow have this deadline."""

    def update_weights(self, update: SharedBucket | Bucket | Mapping[str, Any]) -> Answer[None]:
        """Load one bucket, or receive what `update` describes."""

    def finish_weight_update(self, version: int, base: str) -> Answer[int]:
        """Switch over, to an adapter on the weights called `base`, or to weights without a name.

        Returns the version as acknowledgement.
        """

    def base_name(self) -> Answer[str]:
        """What the weights are called that its adapter changes; empty where it has none."""

    def logprobs(self, rollouts: Sequence[Rollout], timeout_s: float) -> Answer[list[Any]]:
        """Log-probabilities of the probe's tokens under the weights that it has."""


Replicas: TypeAlias = RoleHandle[PublishedReplica]


class PublishedEngines(Protocol):
    """What a publication asks of the rollout role, whose engines it calls by their numbers."""

    @property
    def actors(self) -> RoleHandle[Any]:
        """All of them."""

    async def ready(self) -> None:
        """Wait until one is there."""

    def lacking(self, version: int, *, exactly: bool) -> list[int]:
        """Whom a version goes to."""

    def having(self, version: int) -> list[int]:
        """Who has acknowledged it."""

    def updating(self, replicas: Sequence[int]) -> AbstractAsyncContextManager[None]:
        """While this is open, weights are under way; who does not acknowledge them then is dead."""

    def acknowledged(self, replica: int, version: int) -> None:
        """One has them."""

    def lost(self, replica: int, why: str) -> None:
        """One has not taken them."""

    def agreed(self, replica: int, version: int) -> None:
        """One computes with them what the trainer does: it serves."""

    def require_serving(self) -> None:
        """See that there is one that does.

        Raises:
            StateLost: There is none.
        """

    async def ask(
        self, method: Callable[..., Any], replicas: Sequence[int], *arguments: Any, timeout_s: float
    ) -> Mapping[int, Any]:
        """The answers of some, without those that die meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What one rank of the policy has to say of a publication.

    Attributes:
        num_bytes: That it sent.
        failed: Why replicas dropped out, by their names; the others have acknowledged the version.
    """

    num_bytes: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SyncSpec:
    """How weights travel.

    Attributes:
        gpus_per_replica: Workers that receive inside each replica.
        late_s: How much later than the first an engine may answer; then it is waited for no more,
            where the others can go on without it.
        keeps_cache: Whether running requests go on from what older weights left in their cache.
        base: What the weights are called that adapters change, where engines have both apart; else
            empty, and what is published is merged.
    """

    backend: Backend
    gpus_per_replica: int
    bucket_bytes: int
    timeout_s: float
    late_s: float = math.inf
    keeps_cache: bool = False
    base: str = ""
