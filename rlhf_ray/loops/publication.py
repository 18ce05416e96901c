"""A publication of weights, in the order in which a GPU has room for it that all roles share.

While engines sample, such a GPU is theirs: their weights, and a cache in what is left. The models
of the other roles are on the host then. Where groups have GPUs of their own, nothing moves.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rlhf_ray.deadlines import side_by_side
from rlhf_ray.errors import StateLost
from rlhf_ray.roles import Offloads, Publication, Roles

logger = logging.getLogger(__name__)

T = TypeVar("T")

# As `StateLost` names them.
ENGINES = "rollout"


async def publish(roles: Roles, version: int) -> Publication:
    """Bring the policy's weights to the engines as `version`; they are ready to sample then.

    Engines that die meanwhile are replaced, and what comes in their place gets the weights as well.

    Raises:
        StateLost: The policy died.
        RunError: Engine and trainer disagree.
    """
    while True:
        try:
            return await _publish(roles, version)
        except StateLost as lost:
            _require_engines(lost)


async def with_engines(roles: Roles, version: int, call: Callable[[], Awaitable[T]]) -> T:
    """What comes of a call that has engines sample from weights of this version.

    Where some die it is made again, once others have the weights.

    Raises:
        StateLost: Another role's state is lost.
    """
    while True:
        try:
            return await call()
        except StateLost as lost:
            _require_engines(lost)
            await publish(roles, version)


def _require_engines(lost: StateLost) -> None:
    """Raise what a publication does not bring back."""
    if lost.role != ENGINES:
        raise lost
    logger.warning("%s; the weights are published again", lost)


async def _publish(roles: Roles, version: int) -> Publication:
    await offload(roles.value, roles.reference, roles.reward)
    await roles.rollout.wake_up("weights")
    await roles.policy.publish(version)
    await offload(roles.policy)
    await roles.rollout.wake_up("kv_cache")
    return await roles.policy.compare()


async def offload(*roles: Offloads | None) -> None:
    """Have roles leave the engines' GPUs side by side; None stands for one that a job has not."""
    await side_by_side(role.offload() for role in roles if role is not None)
