"""A publication's calls to the replicas: one deadline for all, and who fails drops out alone."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from actors.cluster.deadline import first_ready, get
from actors.cluster.role_handle import Answer
from actors.weights.sync_spec import PublishedReplica, Replicas, SyncSpec
from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.errors import RunError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class ReplicaClient:
    """Calls the replicas of a publication.

    Attributes:
        replicas: Who is called.
        failed: Why some are called no more, by their positions: they died, failed, acknowledged
            another version or were late.
    """

    def __init__(self, spec: SyncSpec, replicas: Replicas) -> None:
        """Nothing is called yet."""
        self.spec = spec
        self.begin(-1, replicas)

    def begin(self, version: int, replicas: Replicas) -> None:
        """What is called from now on publishes `version`, and all of it within the deadline."""
        self.version, self.replicas = version, replicas
        self.failed: dict[int, str] = {}
        self.deadline_s = time.monotonic() + self.spec.timeout_s

    @property
    def left(self) -> list[int]:
        """The positions of those that have not failed."""
        return [index for index in range(len(self.replicas)) if index not in self.failed]

    @property
    def failed_by_name(self) -> dict[str, str]:
        """As a publication says it."""
        return {self.replicas.names[index]: why for index, why in self.failed.items()}

    def call(
        self, method: Callable[Concatenate[PublishedReplica, P], Answer[T]]
    ) -> Callable[P, dict[int, T]]:
        """One call to each replica that is left; the answers of those that do not fail in it."""

        def ask(*arguments: P.args, **keywords: P.kwargs) -> dict[int, T]:
            refs = {
                index: self.replicas.start(method, index)(*arguments, **keywords)
                for index in self.left
            }
            return self.answers(refs, method)

        return ask

    def answers(self, refs: Mapping[int, Any], method: Callable[..., Answer[T]]) -> dict[int, T]:
        """Of replicas to what each was asked, without those that fail or are late.

        Late are those that have not answered by the deadline, or `late_s` after the first.
        """
        operation = f"publish version {self.version}: rollout.{method.__name__}"
        pending, answers, until_s = dict(refs), dict[int, T](), self.deadline_s
        while pending:
            index = self._next(pending, until_s)
            name = self.replicas.names[index]
            try:
                # Behind the deadline those that have answered still count.
                [answers[index]] = get(
                    [pending.pop(index)],
                    timeout_s=max(0.0, until_s - time.monotonic()),
                    actors=[name],
                    operation=operation,
                    role=self.replicas.name,
                )
            except RunError as error:
                is_behind = isinstance(error, DeadlineError) and until_s < self.deadline_s
                behind = f"{operation}: {name} is {self.spec.late_s:g} s behind another engine"
                # Its words alone: whoever keeps a log would keep the buckets in its frames.
                self._fails(index, behind if is_behind else str(error))
            else:
                until_s = min(until_s, time.monotonic() + self.spec.late_s)
        return answers

    def _next(self, pending: Mapping[int, Any], until_s: float) -> int:
        """Whom to hear now: in order, unless whoever is first decides how long others have."""
        indices = list(pending)
        if len(indices) == 1 or math.isinf(self.spec.late_s):
            return indices[0]
        timeout_s = max(0.0, until_s - time.monotonic())
        return indices[first_ready(list(pending.values()), timeout_s=timeout_s)]

    def _fails(self, index: int, why: str) -> None:
        if index not in self.failed:
            self.failed[index] = why
            logger.error("%s; the others go on", why)

    def start_update(self) -> None:
        """Freeze running requests."""
        start = self.call(PublishedReplica.start_weight_update)
        start(self.spec.timeout_s, self.spec.keeps_cache)

    def finish_update(self) -> None:
        """Switch over; who has another version than this one has failed."""
        finish = self.call(PublishedReplica.finish_weight_update)
        for index, version in finish(self.version, self.spec.base).items():
            if version != self.version:
                name = self.replicas.names[index]
                why = f"{name} acknowledged version {version}, wanted {self.version}"
                logger.error("%s", why)
                self.failed[index] = why


class VllmClient(ReplicaClient):
    """In the shape that vLLM's trainer engines drive, which need all replicas.

    Where one fails, no more is asked of any, and nothing is raised before the trainer's end of the
    publication: its ranks gather weights together until the last one, whoever receives them.

    Attributes:
        on_failure: Called once where a replica fails before all have received the weights.
        is_over: Whether replicas get no more of it: nobody switches over to half of the weights.
    """

    is_over = False

    def __init__(self, spec: SyncSpec, replicas: Replicas) -> None:
        """Nothing is called yet."""
        super().__init__(spec, replicas)
        self.on_failure: Callable[[], None] = lambda: None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect each replica; over NCCL its workers' ranks follow those of the one before.

        Raises:
            RunError: One of them cannot be connected.
        """
        refs = {}
        for index in range(len(self.replicas)):
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] += index * self.spec.gpus_per_replica
            connect = self.replicas.start(PublishedReplica.init_weight_transfer, index)
            refs[index] = connect(info, self.spec.timeout_s)
        self.answers(refs, PublishedReplica.init_weight_transfer)
        self.require_all()

    def start_weight_update(self) -> None:
        """Freeze running requests."""
        self.start_update()
        if self.failed:
            self.on_failure()

    def update_weights(self, update: Any) -> None:
        """What a backend needs to receive weights."""
        if not self.failed and not self.is_over:
            self.call(PublishedReplica.update_weights)(update)
            if self.failed:
                self.on_failure()

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Switch over."""
        if not self.failed and not self.is_over:
            self.finish_update()

    def require_all(self) -> None:
        """See that no replica has failed.

        Raises:
            RunError: Some have; says which and why.
        """
        if self.failed:
            raise RunError("; ".join(self.failed.values()))
