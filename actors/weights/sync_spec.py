"""How weights travel from the policy to the engines, and what these must answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class SyncSpec:
    """How weights travel.

    Attributes:
        gpus_per_replica: Workers that receive inside each replica.
        keeps_cache: Whether running requests go on from what older weights left in their cache.
        base: What the weights are called that adapters change, where engines have both apart; else
            empty, and what is published is merged.
    """

    backend: Backend
    gpus_per_replica: int
    bucket_bytes: int
    timeout_s: float
    keeps_cache: bool = False
    base: str = ""
