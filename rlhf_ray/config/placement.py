"""Where roles live: processes, GPUs and cores of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rlhf_ray.config.base import Config, LabelSelector, NonNegativeInt


class GroupConfig(Config):
    """Where one role lives.

    Attributes:
        ranks: Processes of a rank group; for `rollout` the number of engines.
        gpus_per_rank: GPUs of one rank; for `rollout` of one engine, which is its tensor
            parallelism. 0 runs on the CPU.
        cpus_per_rank: CPU cores that a rank reserves, and its threads. `auto` reserves one: a rank
            on a GPU has one thread, ranks on CPUs have all cores of their node by turns, in PPO
            a half.
        share: Name of another role on whose GPUs this one lives; empty for GPUs of its own.
        strategy: Ray's placement strategy for the group's bundles.
        resources: Custom Ray resources that each rank asks for, to pin a role to certain nodes.
        labels: Labels of the nodes that ranks may go to, as `ray start --labels` gave them; a value
            may also be `!a`, `in(a, b)` or `!in(a, b)`.
    """

    ranks: PositiveInt = 1
    gpus_per_rank: NonNegativeInt = 0
    cpus_per_rank: PositiveFloat | Literal["auto"] = "auto"
    share: Literal["", "policy", "reference", "reward", "value", "rollout"] = ""
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    resources: dict[str, PositiveFloat] = {}
    labels: dict[str, LabelSelector] = {}

    def _faults(self) -> Iterator[str]:
        if self.share and (self.resources or self.labels):
            yield (f"a role that shares with {self.share} takes its place: no resources or labels")

    @property
    def reserved_cpus(self) -> float:
        """Cores of one rank in Ray's books."""
        return 1.0 if self.cpus_per_rank == "auto" else self.cpus_per_rank

    def host_of(self, role: str) -> str:
        """On whose GPUs `role` lives, whose group this is: itself, or the one it shares with."""
        return self.share or role


class Placement(Config):
    """The groups of a job's roles: one field a role."""

    def _faults(self) -> Iterator[str]:
        groups: dict[str, GroupConfig] = dict(self)
        for role, group in groups.items():
            if role != "rollout" and group.gpus_per_rank > 1:
                yield (
                    f"{role}.gpus_per_rank must be 0 or 1, got {group.gpus_per_rank}: ask for more "
                    "ranks instead"
                )
            if not group.share:
                continue
            if group.share == role:
                yield f"{role}.share names itself"
            # The host may be another job's role, in a pipeline or a standing pool.
            if group.share in groups and groups[group.share].share:
                yield (
                    f"{role}.share must name a role with GPUs of its own, got {group.share!r}, "
                    f"which lives with {groups[group.share].share!r}"
                )


# More of them by default would take long to start.
_MOST_WORKERS = 8


class WorkerGroupConfig(GroupConfig):
    """Processes that run a user's code on CPUs, each by itself.

    Attributes:
        cpus_per_rank: Cores that one reserves; `auto` are those of a rank on a CPU.
    """

    cpus_per_rank: PositiveFloat | Literal["auto"] = 1.0


def _reward_workers(placement: Mapping[str, Any]) -> WorkerGroupConfig:
    """As many as GPUs: a machine has several cores for each."""
    own = [group for group in placement.values() if not group.share]
    num_gpus = sum(group.ranks * group.gpus_per_rank for group in own)
    return WorkerGroupConfig(ranks=max(1, min(_MOST_WORKERS, num_gpus)))


class PlacementConfig(Placement):
    """A group for every role.

    Attributes:
        reward: Of the reward model, where there is one.
        reward_worker: Of what scores beside it, on CPUs: functions, verifiers, remote scorers and
            judges. By default a process for every GPU of the job, at most eight, at least one.
    """

    policy: GroupConfig = GroupConfig()
    reference: GroupConfig = GroupConfig()
    reward: GroupConfig = GroupConfig()
    value: GroupConfig = GroupConfig()
    rollout: GroupConfig = GroupConfig()
    # Behind the others, from which its default follows.
    reward_worker: WorkerGroupConfig = Field(default_factory=_reward_workers)

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if self.reward_worker.gpus_per_rank:
            yield (
                f"reward_worker.gpus_per_rank must be 0, got {self.reward_worker.gpus_per_rank}: "
                "a model that scores is reward.model, or a service behind reward.remote"
            )
