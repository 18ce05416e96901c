"""A publication's calls to the replicas: one deadline for all of them, errors that name one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from actors.cluster.deadline import get
from actors.cluster.role_handle import Answer
from actors.weights.sync_spec import PublishedReplica, Replicas, SyncSpec
from rlhf_ray.errors import RunError

P = ParamSpec("P")
T = TypeVar("T")


class ReplicaClient:
    """Calls every replica under one deadline; has the shape that vLLM's engines drive.

    Attributes:
        replicas: Who is called.
        on_failure: Called where replicas do not receive weights, before the error is raised.
    """

    def __init__(self, spec: SyncSpec, replicas: Replicas) -> None:
        """Nothing is called yet."""
        self.spec = spec
        self.on_failure: Callable[[], None] = lambda: None
        self.begin(-1, replicas)

    def begin(self, version: int, replicas: Replicas) -> None:
        """What is called from now on publishes `version`, and all of it within the deadline."""
        self.version, self.replicas = version, replicas
        self.deadline_s = time.monotonic() + self.spec.timeout_s

    def call(
        self, method: Callable[Concatenate[PublishedReplica, P], Answer[T]]
    ) -> Callable[P, list[T]]:
        """One call to each replica."""

        def ask(*arguments: P.args, **keywords: P.kwargs) -> list[T]:
            refs = [
                self.replicas.start(method, index)(*arguments, **keywords)
                for index in range(len(self.replicas))
            ]
            return self.answers(refs, method)

        return ask

    def answers(self, refs: Sequence[Any], method: Callable[..., Answer[T]]) -> list[T]:
        """Of all replicas to what each was asked, in their order.

        Raises:
            ActorDied: One died.
            DeadlineError: Not all answered by the publication's deadline.
            RunError: One raised.
        """
        return self._answers(
            refs,
            timeout_s=max(0.0, self.deadline_s - time.monotonic()),
            operation=f"publish version {self.version}: rollout.{method.__name__}",
        )

    def _answers(self, refs: Sequence[Any], *, timeout_s: float, operation: str) -> list[Any]:
        names, role = self.replicas.names, self.replicas.name
        return get(refs, timeout_s=timeout_s, actors=names, operation=operation, role=role)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect each replica; over NCCL its workers' ranks follow those of the one before."""
        refs, timeout_s = [], self.spec.timeout_s
        for index in range(len(self.replicas)):
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] += index * self.spec.gpus_per_replica
            connect = self.replicas.start(PublishedReplica.init_weight_transfer, index)
            refs.append(connect(info, timeout_s))
        operation = "publish: rollout.init_weight_transfer"
        self._answers(refs, timeout_s=timeout_s, operation=operation)

    def start_weight_update(self) -> None:
        """Freeze running requests."""
        start = self.call(PublishedReplica.start_weight_update)
        start(self.spec.timeout_s, self.spec.keeps_cache)

    def update_weights(self, update: Any) -> None:
        """What a backend needs to receive weights."""
        try:
            self.call(PublishedReplica.update_weights)(update)
        except BaseException:
            self.on_failure()
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Switch over, and check that every replica now has this version.

        Raises:
            RunError: A replica acknowledged another one.
        """
        finish = self.call(PublishedReplica.finish_weight_update)
        versions = finish(self.version, self.spec.base)
        for name, version in zip(self.replicas.names, versions, strict=True):
            if version != self.version:
                raise RunError(f"{name} acknowledged version {version}, wanted {self.version}")
