"""The plan of a whole job: what each role needs, where it goes, and whether that fits."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.base import JobConfig
from rlhf_ray.planning.batches import Batches
from rlhf_ray.planning.groups import plan_groups, total_cpus
from rlhf_ray.planning.layout import Cluster, Place, lay_out
from rlhf_ray.planning.needs import GpuNeed, RoleNeed, gpu_needs, host_needs, role_need
from rlhf_ray.planning.roles import Shapes, work_of
from rlhf_ray.planning.verdict import Problem, problems_of


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """Everything that is known before a job starts."""

    cluster: Cluster
    roles: tuple[RoleNeed, ...]
    batches: Batches
    places: tuple[Place, ...]
    gpus: tuple[GpuNeed, ...]
    host_bytes: tuple[int, ...]
    cpus: float
    problems: tuple[Problem, ...]

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems

    @property
    def num_actors(self) -> int:
        """Ranks of all roles."""
        return len(self.places)


def plan_job(config: JobConfig, shapes: Shapes, cluster: Cluster) -> JobPlan:
    """Plan a job on a cluster.

    Raises:
        ConfigError: The cluster has no place for a role, whatever its memory.
    """
    work, batches = work_of(config, shapes)
    groups = {one.role: one.group for one in work}
    places = lay_out(groups, cluster)
    needs = tuple(role_need(one, cluster) for one in work)
    gpus = gpu_needs(needs, places)
    hosts = host_needs(needs, places, cluster)
    return JobPlan(
        cluster=cluster,
        roles=needs,
        batches=batches,
        places=tuple(places),
        gpus=gpus,
        host_bytes=tuple(sum(held.values()) for held in hosts),
        cpus=total_cpus(plan_groups(groups)),
        problems=problems_of(needs, gpus, hosts, cluster),
    )
