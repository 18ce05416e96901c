"""The plan of a job, or of all stages of a pipeline on the one pool that serves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_ray.config.base import JobConfig
from rlhf_ray.planning.batches import Batches
from rlhf_ray.planning.groups import plan_groups, total_cpus
from rlhf_ray.planning.held import HeldResult, held_results, most_held
from rlhf_ray.planning.layout import Cluster, Place, lay_out
from rlhf_ray.planning.moments import RoleNeed, role_need
from rlhf_ray.planning.needs import GpuNeed, gpu_needs, host_needs, idle_memory
from rlhf_ray.planning.planned_job import PlannedJob, groups_of
from rlhf_ray.planning.roles import Shapes, work_of
from rlhf_ray.planning.verdict import Problem, host_problems, stage_problems


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One job: what its roles need, one step of it, and the worst moment of each GPU."""

    name: str
    roles: tuple[RoleNeed, ...]
    batches: Batches
    gpus: tuple[GpuNeed, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known before anything starts.

    Attributes:
        gpus: Each at its worst moment over all stages.
        hosts: Memory of each node by role, each role's largest over all stages.
        held: Results that stages leave to later ones.
    """

    cluster: Cluster
    stages: tuple[StagePlan, ...]
    places: tuple[Place, ...]
    gpus: tuple[GpuNeed, ...]
    hosts: tuple[Mapping[str, int], ...]
    held: tuple[HeldResult, ...]
    cpus: Mapping[str, float]
    reserved_cpus: float
    problems: tuple[Problem, ...]

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems

    @property
    def roles(self) -> tuple[RoleNeed, ...]:
        """Of all stages."""
        return tuple(need for stage in self.stages for need in stage.roles)

    @property
    def host_bytes(self) -> tuple[int, ...]:
        """Of each node."""
        return tuple(sum(held.values()) for held in self.hosts)


def plan_job(config: JobConfig, shapes: Shapes, cluster: Cluster) -> Plan:
    """Plan one job on a cluster.

    Raises:
        ConfigError: The cluster has no place for a role, whatever its memory.
    """
    return plan_jobs([PlannedJob(config=config)], shapes, cluster)


def plan_jobs(jobs: Sequence[PlannedJob], shapes: Shapes, cluster: Cluster) -> Plan:
    """Plan jobs that one pool runs one after the other.

    Raises:
        ConfigError: The cluster has no place for a role, whatever its memory.
    """
    groups = groups_of(jobs)
    places = lay_out(groups, cluster)
    worked = [work_of(job.config, shapes) for job in jobs]
    needs = [tuple(role_need(one, cluster) for one in work) for work, _ in worked]
    idle = idle_memory([need for stage in needs for need in stage])
    stages = tuple(
        StagePlan(
            name=job.name,
            roles=roles,
            batches=batches,
            gpus=gpu_needs(roles, places, idle=idle, stage=job.name),
        )
        for job, roles, (_, batches) in zip(jobs, needs, worked, strict=True)
    )
    held = held_results(jobs, needs)
    hosts = host_needs(needs, places, cluster, results=most_held(held))
    return Plan(
        cluster=cluster,
        stages=stages,
        places=tuple(places),
        gpus=_worst(stages),
        hosts=tuple(hosts),
        held=held,
        cpus={role: group.cpus_per_rank for role, group in groups.items()},
        reserved_cpus=total_cpus(plan_groups(groups)),
        problems=(
            *(
                problem
                for stage in stages
                for problem in stage_problems(stage.roles, stage.gpus, cluster, stage=stage.name)
            ),
            *host_problems(hosts, [need for roles in needs for need in roles], cluster),
        ),
    )


def _worst(stages: Sequence[StagePlan]) -> tuple[GpuNeed, ...]:
    worst: dict[tuple[int, int], GpuNeed] = {}
    for gpu in (gpu for stage in stages for gpu in stage.gpus):
        place = (gpu.node, gpu.gpu)
        if place not in worst or gpu.total > worst[place].total:
            worst[place] = gpu
    return tuple(worst[place] for place in sorted(worst))
