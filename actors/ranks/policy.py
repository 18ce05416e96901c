"""The policy: one Ray actor a rank, and the group as the loop sees it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from actors.cluster.network import HeldPort
from actors.cluster.role_handle import each_own, put
from actors.cluster.role_spec import control
from actors.ranks.forward import OwnSamples, Pass, by_row, forward
from actors.ranks.group import TrainedGroup
from actors.ranks.hosting import HostingRank
from actors.weights.probe import GapLimits, gap_of, largest_of
from actors.weights.sync_spec import (
    PublishedEngines,
    PublishedReplica,
    Replicas,
    Sent,
    SyncSpec,
)
from rlhf_ray.config.algorithm_table import ScoredModel
from rlhf_ray.errors import Disagreement, RunError
from rlhf_ray.metrics.spans import recorded, span
from rlhf_ray.packing import UpdatePlan, plan_forward
from rlhf_ray.roles.groups import Ref, RolloutGroup, SampleArrays
from rlhf_ray.roles.reports import Metrics, Publication

if TYPE_CHECKING:
    from actors.weights.publisher import Publisher
    from rlhf_ray.types import Rollout

logger = logging.getLogger(__name__)

# For what a rank says of replicas that did not answer in time; then, where it says nothing, to end
# the publication without them; then for the other ranks.
ANSWER_S = 15.0


class PolicyRank(HostingRank):
    """One rank of the policy's group; it hosts whatever learner trains the policy."""

    publisher: Publisher | None = None

    def unload(self) -> None:
        """Release the model that is held, and the way to the engines with it."""
        self.disconnect()
        super().unload()

    @recorded
    def logprobs_of(self, rollouts: Sequence[Rollout]) -> Any:
        """Log-probabilities at temperature 1 of a few rollouts, on every rank alike."""
        config = self.learner.spec.learner
        one = plan_forward(
            [rollout.num_tokens for rollout in rollouts],
            data_parallel_size=1,
            max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
            padded=config.padded,
        )
        scored = self._to_read().logprobs(rollouts, one * self.num_ranks, temperature=1.0)
        return by_row(one, [scored])

    def logprobs_by_model(
        self, work: Pass, own: OwnSamples, models: Sequence[ScoredModel]
    ) -> tuple[int, *tuple[Any, ...]]:
        """How many rows are this rank's, and by each model an array for each, by its sample."""
        rows = own.rows(self.fetch(own.refs), work)
        by_model = self._to_read().logprobs_of(rows, work.plan, models)
        return len(by_model[0]), *(own.answers(scored) for scored in by_model)

    def rendezvous(self) -> tuple[str, int]:
        """An address on this node that is kept for the engines' connection until `connect`."""
        self.held_port = HeldPort(ray.util.get_node_ip_address())
        return self.held_port.host, self.held_port.port

    @recorded
    def connect(self, spec: SyncSpec, replicas: Replicas, host: str, port: int) -> None:
        """Open the way to the rollout engines."""
        from actors.weights.publisher import open_publisher

        self.disconnect()
        self.publisher = open_publisher(
            self.learner.lm, spec, replicas, rank=self.rank, host=host, port=port
        )
        if self.rank == 0:
            self.held_port.release()

    def disconnect(self) -> None:
        """End the way to the engines, if there is one."""
        if self.publisher is not None:
            self.publisher.close()
        self.publisher = None

    @control
    def abort_publication(self) -> None:
        """Let a publication that hangs end; it raises then."""
        if self.publisher is not None:
            self.publisher.abort()

    def publish(self, version: int, replicas: Replicas, adapter_alone: bool) -> Sent:
        """Send the weights, or the adapter alone."""
        if self.publisher is None:
            raise RunError(f"{self.name} is asked to publish before it is connected to engines")
        with span("publish", version=version):
            self._to_read()
            return self.publisher.publish(version, replicas, adapter_alone=adapter_alone)


class PolicyGroup(TrainedGroup[PolicyRank]):
    """The policy role on a group of ranks.

    Attributes:
        base: What the weights are called that adapters change, where engines get both apart.
    """

    base = ""

    async def logprobs(
        self, groups: Sequence[RolloutGroup], models: Sequence[ScoredModel]
    ) -> Sequence[SampleArrays]:
        """Log-probabilities of the response tokens, [T] a sample, for each of `models`."""
        return await forward(
            self.actors,
            PolicyRank.logprobs_by_model,
            groups,
            self.config,
            list(models),
            timeout_s=self.timeouts.call_s,
            num_arrays=len(models),
        )

    async def update(
        self, experience: Sequence[Ref], plan: UpdatePlan, kl_coefficient: float
    ) -> Metrics:
        """Epochs times minibatches of the policy loss."""
        return await self._update(each_own(experience), put(plan), kl_coefficient)

    def publish_to(
        self,
        engines: PublishedEngines,
        spec: SyncSpec,
        *,
        probe: Sequence[Rollout],
        limits: GapLimits,
    ) -> None:
        """Have engines get the weights; `limits` say how far both may differ about the `probe`."""
        self.engines, self.sync, self.probe, self.limits = engines, spec, list(probe), limits
        self.base = spec.base
        self.disconnected()

    def disconnected(self) -> None:
        """The ranks have no way to the engines, or none that leads anywhere."""
        self._connected: tuple[Any, ...] = ()

    async def _connect(self, replicas: Replicas) -> None:
        """Open the way to some engines, unless it is open.

        Through the hosts' memory it is the same to all; vLLM's backends know whom they are for.
        """
        peers: tuple[Any, ...] = (
            () if self.sync.backend == "object_store" else tuple(replicas.actors)
        )
        way = (self.actors.incarnation, *peers)
        if self._connected == way:
            return
        start_s = self.timeouts.start_s
        rendezvous = self.actors.call(PolicyRank.rendezvous, only=0, timeout_s=start_s)
        [(host, port)] = await rendezvous()
        connect = self.actors.call(PolicyRank.connect, timeout_s=start_s)
        await connect(self.sync, replicas, host, port)
        self._connected = way

    async def publish(self, version: int, *, exactly: bool = False) -> None:
        """Bring the weights as `version` to the engines that lack it, and score the probe.

        An engine that does not take them in time drops out; the others have them.

        Raises:
            StateLost: None took them.
        """
        started_s = time.monotonic()
        await self.engines.ready()
        # The ranks have this deadline for the replicas, and say which one is late.
        timeout_s = self.timeouts.publish_s + 3 * ANSWER_S
        async with self.actors.turn(timeout_s=timeout_s):
            num_bytes = 0
            if lacking := self.engines.lacking(version, exactly=exactly):
                async with self.engines.updating(lacking):
                    num_bytes = await self._send(version, lacking, timeout_s=timeout_s)
            seconds = time.monotonic() - started_s
            if self.engines.having(version):
                score = self.actors.call(PolicyRank.logprobs_of, timeout_s=timeout_s)
                self.probe_logprobs, *_ = await score(put(self.probe))
        self.sent: dict[str, Any] = {"version": version, "seconds": seconds, "num_bytes": num_bytes}

    async def _send(self, version: int, lacking: Sequence[int], *, timeout_s: float) -> int:
        """Send the weights to some engines, and say who has them; returns the bytes."""
        replicas: Replicas = self.engines.actors.of(lacking)
        adapter_alone = await self._have_base(lacking)
        publish = self.actors.call(PolicyRank.publish, timeout_s=timeout_s)
        await self._connect(replicas)
        aborting = asyncio.create_task(self._abort_after(self.timeouts.publish_s + ANSWER_S))
        try:
            # Each rank gets a handle of every engine: laid down, they are pickled once.
            sent = await publish(version, put(replicas), adapter_alone)
        except BaseException:
            self.disconnected()
            raise
        finally:
            aborting.cancel()
        for number, name in zip(lacking, replicas.names, strict=True):
            if name in sent[0].failed:
                self.engines.lost(number, sent[0].failed[name])
            else:
                self.engines.acknowledged(number, version)
        return sum(of_rank.num_bytes for of_rank in sent)

    async def _abort_after(self, seconds: float) -> None:
        """End a publication that its own deadline has not ended: the ranks live then."""
        await asyncio.sleep(seconds)
        logger.error("a publication hangs for %.0f s: it is ended", seconds)
        self.actors.start(PolicyRank.abort_publication, 0)()

    async def _have_base(self, replicas: Sequence[int]) -> bool:
        """Whether they have what the adapters change, so that these alone are to be sent."""
        if not self.base:
            return False
        timeout_s = self.timeouts.publish_s
        names = await self.engines.ask(PublishedReplica.base_name, replicas, timeout_s=timeout_s)
        return all(name == self.base for name in names.values())

    async def compare(self) -> Publication:
        """Have the engines score the probe as the ranks did; what came of the publication.

        Those that compute the same serve from now on. Those that have newer weights are not asked.
        Each measure of the gap is that of the engine where it is largest.

        Raises:
            Disagreement: Engine and trainer differ by more than the limits; names the worst tokens.
            StateLost: No engine serves.
        """
        timeout_s, version = self.timeouts.publish_s, self.sent["version"]
        having = self.engines.having(version)
        theirs = await self.engines.ask(
            PublishedReplica.logprobs, having, put(self.probe), timeout_s, timeout_s=timeout_s
        )
        tokens = [rollout.response_ids_T for rollout in self.probe]
        gaps = []
        for replica, engine in theirs.items():
            gap = gap_of(self.probe_logprobs, engine, tokens)
            if exceeded := self.limits.exceeded_by(gap):
                engines = self.engines.actors
                raise Disagreement.between(
                    self.actors.name,
                    engines.name,
                    message=f"after publishing version {version}, {engines.names[replica]} and the "
                    f"trainer differ by {exceeded}",
                )
            self.engines.agreed(replica, version)
            gaps.append(gap)
        self.engines.require_serving()
        gap = largest_of(gaps)
        return Publication(
            **self.sent,
            logprob_abs_max=gap.largest,
            logprob_abs_p99=gap.p99,
            logprob_abs_mean=gap.mean,
        )
