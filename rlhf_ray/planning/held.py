"""What stages of a pipeline leave to later ones: weights in the object store of their nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_ray.planning.moments import RoleNeed
from rlhf_ray.planning.planned_job import PlannedJob
from rlhf_ray.planning.work import ModelWork


@dataclass(frozen=True, kw_only=True)
class HeldResult:
    """One stage's model.

    Attributes:
        role: Whose ranks keep it, each an equal share.
        bytes: Of all shares together.
        used_by: Later stages that start from it; after the last of them it is freed.
        first: Number of the stage at whose end it is there; `last` of the one that frees it.
    """

    stage: str
    role: str
    bytes: int
    used_by: tuple[str, ...]
    first: int
    last: int


def held_results(
    jobs: Sequence[PlannedJob], needs: Sequence[Sequence[RoleNeed]]
) -> tuple[HeldResult, ...]:
    """Every result that a later stage starts from.

    Args:
        jobs: In their order.
        needs: Of each job's roles.
    """
    held = []
    for index, (job, roles) in enumerate(zip(jobs, needs, strict=True)):
        users = [number for number, later in enumerate(jobs) if job.name in later.sources]
        if not users:
            continue
        [work] = [need.work for need in roles if need.role == job.result_role]
        assert isinstance(work, ModelWork)
        held.append(
            HeldResult(
                stage=job.name,
                role=work.role,
                bytes=work.shape.num_parameters(work.head) * work.bytes_each,
                used_by=tuple(jobs[number].name for number in users),
                first=index,
                last=max(users),
            )
        )
    return tuple(held)


def most_held(held: Sequence[HeldResult]) -> Mapping[str, int]:
    """Bytes by role at the end of the stage at which they are most."""
    moments = [
        [result for result in held if result.first <= stage <= result.last]
        for stage in range(1 + max((result.last for result in held), default=0))
    ]
    most = max(moments, key=lambda there: sum(result.bytes for result in there))
    by_role: dict[str, int] = {}
    for result in most:
        by_role[result.role] = by_role.get(result.role, 0) + result.bytes
    return by_role
