"""The policy: one Ray actor a rank, and the group as the loop sees it."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from actors.forward import forward
from actors.pool import ActorSet
from actors.probe import largest_gap
from actors.rank import Rank, free_memory
from actors.trained import TrainedGroup
from rlhf_ray.data.packing import RankedMicroBatches, UpdatePlan, plan_forward
from rlhf_ray.errors import RunError
from rlhf_ray.roles import Hardware, Metrics, Publication, Ref, RolloutBatch, Shard

if TYPE_CHECKING:
    from actors.sync_spec import SyncSpec
    from rlhf_ray.types import Rollout


@ray.remote(concurrency_groups={"control": 2})  # type: ignore[call-overload]
class PolicyRank(Rank):
    """One rank of the policy's group; it hosts whatever learner trains the policy."""

    learner: Any = None
    publisher: Any = None

    def load(self, spec: Any) -> None:
        """Host the learner that `spec` describes, in place of the one before.

        Raises:
            ConfigError: The model cannot be loaded as configured.
        """
        from rlhf_ray.learner.policy import PolicyLearner
        from rlhf_ray.learner.sft import SftLearner
        from rlhf_ray.specs import PolicySpec

        self.unload()
        kind = PolicyLearner if isinstance(spec, PolicySpec) else SftLearner
        self.learner = kind(spec, device=self.device)

    def unload(self) -> None:
        """Release the model that is held, before another takes its memory."""
        if self.learner is not None:
            self.learner.close()
        self.learner = self.publisher = None
        free_memory()

    def logprobs(self, batch: RolloutBatch, plan: RankedMicroBatches) -> tuple[int, Any]:
        """How many rows, and this rank's rows in the order in which the plan names them."""
        scored = self.learner.logprobs(self.rows(batch), plan)
        return len(scored), scored

    def logprobs_of(self, rollouts: Sequence[Rollout]) -> Any:
        """Log-probabilities at temperature 1 of a few rollouts, on every rank alike."""
        lens = [rollout.num_tokens for rollout in rollouts]
        one = plan_forward(lens, num_ranks=1, max_tokens_per_micro_batch=sum(lens), padded=False)
        scored = self.learner.logprobs(rollouts, one * self.num_ranks, temperature=1.0)
        order = [row for rows in one[0] for row in rows]
        by_row = dict(zip(order, scored, strict=True))
        return [by_row[row] for row in range(len(rollouts))]

    def update(self, rows: Sequence[Any], plan: UpdatePlan, *coefficients: float) -> Metrics:
        """Every optimiser step of a plan."""
        metrics: Metrics = self.learner.update(rows, plan, *coefficients)
        return metrics

    def evaluate(self, rows: Sequence[Any], plan: RankedMicroBatches) -> float:
        """Mean loss of held-out rows."""
        loss: float = self.learner.evaluate(rows, plan)
        return loss

    def hardware(self) -> Hardware:
        """What the utilisation of this rank's device is counted from."""
        import torch

        from rlhf_ray.learner.weights import weight_infos

        on_gpu = self.device.type == "cuda"
        return Hardware(
            num_parameters=sum(math.prod(info.shape) for info in weight_infos(self.learner.lm)),
            device_name=torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            num_devices=self.num_ranks,
        )

    def rendezvous(self) -> tuple[str, int]:
        """An address on this node where a port is free."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def connect(self, spec: SyncSpec, host: str, port: int) -> None:
        """Open the way to the rollout engines."""
        from actors.weight_sync import open_publisher

        self.publisher = open_publisher(self.learner.lm, spec, rank=self.rank, host=host, port=port)

    def publish(self, version: int) -> int:
        """Send the weights; returns the bytes that this rank sent."""
        num_bytes: int = self.publisher.publish(version)
        return num_bytes

    def save(self, folder: str) -> None:
        """Write what training goes on from."""
        self.learner.save(Path(folder))

    def restore(self, folder: str) -> None:
        """Read what `save` wrote."""
        self.learner.load(Path(folder))

    def export(self, folder: str, tokenizer_path: str) -> None:
        """Write the model in the transformers layout, adapters merged."""
        from rlhf_ray.learner.export import export_model

        export_model(self.learner.lm, Path(folder), tokenizer_path, write=self.rank == 0)


class PolicyGroup(TrainedGroup):
    """The policy role on a group of ranks."""

    async def logprobs(self, batch: RolloutBatch) -> Sequence[Shard]:
        """Log-probabilities of the response tokens under the current weights."""
        return await forward(
            self.actors, "logprobs", batch, self.config, timeout_s=self.timeouts.call_s
        )

    async def update(self, experience: Ref, plan: UpdatePlan, kl_coefficient: float) -> Metrics:
        """Epochs times minibatches of the policy loss."""
        metrics: list[Metrics] = await self.actors.call(
            "update", experience, plan, kl_coefficient, timeout_s=self.timeouts.call_s
        )
        return metrics[0]

    async def hardware(self) -> Hardware:
        """What the policy's utilisation is counted from."""
        found: Hardware = await self.actors.call_one(0, "hardware", timeout_s=self.timeouts.start_s)
        return found

    async def connect(
        self, replicas: ActorSet, spec: SyncSpec, *, probe: Sequence[Rollout], max_gap: float
    ) -> None:
        """Open the way to the engines.

        Args:
            replicas: The rollout actors.
            spec: How weights travel.
            probe: Sequences that both sides score after each publication.
            max_gap: Largest difference of log-probabilities that is let pass, in nats.
        """
        self.replicas, self.probe, self.max_gap = replicas, list(probe), max_gap
        start_s = self.timeouts.start_s
        host, port = await self.actors.call_one(0, "rendezvous", timeout_s=start_s)
        await self.actors.call("connect", spec, host, port, timeout_s=start_s)

    async def publish(self, version: int) -> Publication:
        """Bring the weights to every engine as `version` and compare log-probabilities.

        Raises:
            RunError: Engine and trainer disagree by more than the limit; names the worst tokens.
            DeadlineError: A replica did not acknowledge in time.
        """
        started_s = time.monotonic()
        sent = await self.actors.call("publish", version, timeout_s=self.timeouts.publish_s)
        seconds = time.monotonic() - started_s
        return Publication(
            version=version,
            seconds=seconds,
            num_bytes=sum(sent),
            logprob_abs_max=await self._compare(version),
        )

    async def _compare(self, version: int) -> float:
        timeout_s = self.timeouts.publish_s
        ours, theirs = await asyncio.gather(
            self.actors.call("logprobs_of", self.probe, timeout_s=timeout_s),
            self.replicas.call("logprobs", self.probe, timeout_s=timeout_s),
        )
        tokens = [rollout.response_ids_T for rollout in self.probe]
        gaps = []
        for name, engine in zip(self.replicas.names, theirs, strict=True):
            gap, worst = largest_gap(ours[0], engine, tokens)
            # Written so that a gap that is not a number stops the run as well.
            if not gap <= self.max_gap:
                raise RunError(
                    f"after publishing version {version}, {name} and the trainer differ by "
                    f"{gap:.3g} nats a token (limit {self.max_gap:g}); worst tokens: "
                    + "; ".join(str(token) for token in worst)
                )
            gaps.append(gap)
        return max(gaps, default=0.0)
