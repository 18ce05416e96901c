"""A rank of the policy: the real learner under DeepSpeed, and its side of the publication."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.publication.answers import ANSWER_S, serve
from benchmarks.publication.cases import Case, learner_config
from benchmarks.publication.fake_cuda import STREAMS, on_card, replace_transport
from benchmarks.publication.replica import Replica, get

# So few that a layer's weights lie in several buckets.
BUCKET_BYTES = 24 * 2**10


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """Which of them it is, where they meet, and whom it calls."""

    rank: int
    num_ranks: int
    port: int
    name: str
    caller: Connection
    workers: tuple[Connection, ...]


def run(place: RankPlace) -> None:
    """Be a rank."""
    os.environ.update(
        RANK=str(place.rank), LOCAL_RANK="0", WORLD_SIZE=str(place.num_ranks),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(place.port),
        VLLM_LOGGING_LEVEL="ERROR", VLLM_ALLOW_INSECURE_SERIALIZATION="1",
    )  # fmt: skip
    from actors.weights import host_publisher, replica_client

    replace_transport(place.name)
    replica_client.get = get
    host_publisher.node_id = lambda: "here"
    deadline = timedelta(seconds=ANSWER_S)
    store = dist.TCPStore("127.0.0.1", place.port, is_master=False, timeout=deadline)
    dist.init_process_group(
        "gloo", store=store, rank=place.rank, world_size=place.num_ranks, timeout=deadline
    )
    serve(Rank(place), [place.caller])


class Rank:
    """What is asked of one."""

    def __init__(self, place: RankPlace) -> None:
        self.place = place

    def load(self, case: Case, folder: str) -> None:
        """Host the policy of a case."""
        from rlhf_ray.config.algorithm import AlgorithmConfig
        from rlhf_ray.learner.build import engine_builder, make_learner
        from rlhf_ray.specs import PolicySpec

        spec = PolicySpec(
            learner=learner_config(case, folder),
            algorithm=AlgorithmConfig.model_validate({"advantage": "grpo"}),
            temperature=1.0,
            max_new_tokens=8,
            total_steps=4,
            replay_folder=folder,
            seed=0,
        )
        builder = engine_builder(spec, device=torch.device("cpu"))
        self.learner = make_learner(spec, builder)

    def connect(self, case: Case, port: int) -> None:
        """Open the way to the engine."""
        from actors.cluster.role_handle import RoleHandle
        from actors.weights.publisher import open_publisher
        from actors.weights.sync_spec import SyncSpec

        spec = SyncSpec(
            backend=case.backend,
            gpus_per_replica=len(self.place.workers),
            bucket_bytes=BUCKET_BYTES,
            timeout_s=ANSWER_S,
        )
        self.replicas = RoleHandle("rollout", {"replica": Replica(self.place.workers)})
        with on_card(self.place.rank):
            self.publisher = open_publisher(
                self.learner.lm,
                spec,
                self.replicas,
                rank=self.place.rank,
                host="127.0.0.1",
                port=port,
            )

    def publish(self, version: int) -> None:
        """Send the weights."""
        with on_card(self.place.rank):
            self.publisher.publish(version, self.replicas)

    def publish_new(self, version: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Send other weights as soon as the model has them."""
        with on_card(self.place.rank):
            overwrite(self.learner.lm, weights)
            self.publisher.publish(version, self.replicas)

    def take_races(self) -> list[str]:
        """See `Streams`."""
        return STREAMS.take_races()

    def close(self) -> None:
        """Leave room for the next case."""
        self.publisher.close()
        self.learner.close()


@torch.no_grad()
def overwrite(lm: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Give every parameter its new numbers, as optimisers do: each rank its part."""
    import deepspeed

    from rlhf_ray.models.sharding import is_sharded

    for name, parameter in lm.named_parameters():
        spread = is_sharded(parameter)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=spread):
            parameter.copy_(weights[name])
