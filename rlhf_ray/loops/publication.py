"""A publication of weights, in the order in which a GPU has room for it that all roles share.

While engines sample, such a GPU is theirs: their weights, and a cache in what is left. The models
of the other roles are on the host then. Where groups have GPUs of their own, nothing moves.
"""

from __future__ import annotations

from rlhf_ray.deadlines import side_by_side
from rlhf_ray.roles import Offloads, Publication, Roles


async def publish(roles: Roles, version: int) -> Publication:
    """Bring the policy's weights to the engines as `version`; they are ready to sample then.

    Raises:
        RunError: Engine and trainer disagree.
        DeadlineError: A replica did not acknowledge in time.
    """
    await offload(roles.value, roles.reference, roles.reward)
    await roles.rollout.wake_up("weights")
    await roles.policy.publish(version)
    await offload(roles.policy)
    await roles.rollout.wake_up("kv_cache")
    return await roles.policy.compare()


async def offload(*roles: Offloads | None) -> None:
    """Have roles leave the engines' GPUs side by side; None stands for one that a job has not."""
    await side_by_side(role.offload() for role in roles if role is not None)
