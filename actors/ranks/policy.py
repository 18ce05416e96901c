"""The policy: one Ray actor a rank, and the group as the loop sees it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from actors.cluster.network import HeldPort
from actors.cluster.role_handle import put
from actors.ranks.forward import Pass, by_row, forward
from actors.ranks.group import TrainedGroup
from actors.ranks.hosting import HostingRank
from actors.weights.probe import GapLimits, gap_of, largest_of
from actors.weights.sync_spec import PublishedReplica, Replicas, SyncSpec
from rlhf_ray.config.algorithm_table import ScoredModel
from rlhf_ray.errors import RunError
from rlhf_ray.metrics.spans import recorded, span
from rlhf_ray.packing import UpdatePlan, plan_forward
from rlhf_ray.roles import Metrics, Publication, Ref, RolloutGroup, SampleArrays

if TYPE_CHECKING:
    from actors.weights.publisher import Publisher
    from rlhf_ray.types import Rollout

# For the error of a rank about a replica that did not answer.
ANSWER_S = 30.0


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
        self, work: Pass, models: Sequence[ScoredModel]
    ) -> tuple[int, *tuple[Any, ...]]:
        """How many rows are this rank's, and by each model an array for each, by its sample."""
        rollouts = work.rows(self.fetch(work.refs))
        by_model = self._to_read().logprobs_of(rollouts, work.plan, models)
        return len(by_model[0]), *(work.by_sample(self.rank, scored) for scored in by_model)

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

    def publish(self, version: int, replicas: Replicas, adapter_alone: bool) -> int:
        """Send the weights, or the adapter alone; returns the bytes that this rank sent."""
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

    async def update(self, experience: Ref, plan: UpdatePlan, kl_coefficient: float) -> Metrics:
        """Epochs times minibatches of the policy loss."""
        return await self._update(experience, put(plan), kl_coefficient)

    def publish_to(
        self,
        replicas: Replicas,
        spec: SyncSpec,
        *,
        probe: Sequence[Rollout],
        limits: GapLimits,
    ) -> None:
        """Have engines get the weights; `limits` say how far both may differ about the `probe`."""
        self.replicas, self.sync, self.probe, self.limits = replicas, spec, list(probe), limits
        self.base = spec.base
        self._connected = (-1, -1)

    @property
    def _both(self) -> tuple[int, int]:
        """Which ranks and which engines there are."""
        return self.actors.incarnation, self.replicas.incarnation

    def disconnected(self) -> None:
        """The ranks have loaded their model anew, without a way to the engines."""
        self._connected = (-1, -1)

    async def connect(self) -> None:
        """Open the way to the engines, from the ranks that there are to the engines that are."""
        both, start_s = self._both, self.timeouts.start_s
        rendezvous = self.actors.call(PolicyRank.rendezvous, only=0, timeout_s=start_s)
        [(host, port)] = await rendezvous()
        connect = self.actors.call(PolicyRank.connect, timeout_s=start_s)
        await connect(self.sync, self.replicas, host, port)
        self._connected = both

    async def publish(self, version: int) -> None:
        """Bring the weights to every engine as `version`, and score the probe with them.

        Raises:
            DeadlineError: A replica did not acknowledge in time.
        """
        started_s = time.monotonic()
        # The ranks have this deadline for the replicas, and name the one that is late.
        timeout_s = self.timeouts.publish_s + ANSWER_S
        async with self.actors.turn(timeout_s=timeout_s):
            if self._connected != self._both:  # others have come in the place of some that died
                await self.connect()
            publish = self.actors.call(PolicyRank.publish, timeout_s=timeout_s)
            # Each rank gets a handle of every engine: laid down, they are pickled once.
            sent = await publish(version, put(self.replicas), await self._have_base())
            seconds = time.monotonic() - started_s
            score = self.actors.call(PolicyRank.logprobs_of, timeout_s=timeout_s)
            ours = await score(put(self.probe))
        self.sent: dict[str, Any] = {"version": version, "seconds": seconds, "num_bytes": sum(sent)}
        self.probe_logprobs = ours[0]

    async def _have_base(self) -> bool:
        """Whether all engines have what the adapters change, so that these alone are to be sent."""
        if not self.base:
            return False
        timeout_s = self.timeouts.publish_s
        names = await self.replicas.call(PublishedReplica.base_name, timeout_s=timeout_s)()
        return all(name == self.base for name in names)

    async def compare(self) -> Publication:
        """Have the engines score the probe as the ranks did; what came of the publication.

        Each measure of the gap is that of the engine where it is largest.

        Raises:
            RunError: Engine and trainer disagree by more than the limits; names the worst tokens.
        """
        timeout_s = self.timeouts.publish_s
        score = self.replicas.call(PublishedReplica.logprobs, timeout_s=timeout_s)
        theirs = await score(put(self.probe), timeout_s)
        tokens = [rollout.response_ids_T for rollout in self.probe]
        gaps = []
        for name, engine in zip(self.replicas.names, theirs, strict=True):
            gap = gap_of(self.probe_logprobs, engine, tokens)
            if exceeded := self.limits.exceeded_by(gap):
                raise RunError(
                    f"after publishing version {self.sent['version']}, {name} and the trainer "
                    f"differ by {exceeded}"
                )
            gaps.append(gap)
        gap = largest_of(gaps)
        return Publication(
            **self.sent,
            logprob_abs_max=gap.largest,
            logprob_abs_p99=gap.p99,
            logprob_abs_mean=gap.mean,
        )
