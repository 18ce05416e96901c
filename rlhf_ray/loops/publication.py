"""A publication of weights, in the order in which a GPU has room for it that all roles share.

While engines sample, such a GPU is theirs: their weights, and a cache in what is left. The models
of the other roles are on the host then. Where groups have GPUs of their own, nothing moves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rlhf_ray.deadlines import side_by_side
from rlhf_ray.errors import StateLost
from rlhf_ray.roles.protocols import Offloads, Roles
from rlhf_ray.roles.reports import Publication

logger = logging.getLogger(__name__)

T = TypeVar("T")

# As `StateLost` names them.
ENGINES = "rollout"


async def publish(roles: Roles, version: int, *, exactly: bool = False) -> Publication:
    """Bring the policy's weights as `version` to the engines that lack it; they can sample then.

    An engine that dies meanwhile drops out. Where none is left, it begins again with those that
    come in their place. Engines with newer weights keep them, unless it is to be `exactly` these.

    Raises:
        StateLost: The policy died.
        RunError: Engine and trainer disagree, or no engine comes any more.
    """
    is_again = False
    while True:
        try:
            if is_again:  # on shared GPUs some may hold a cache where the weights pass
                await roles.rollout.sleep(level=2)
            return await _publish(roles, version, exactly=exactly)
        except StateLost as lost:
            _require_engines(lost)
            is_again = True


async def with_engines(roles: Roles, version: int, call: Callable[[], Awaitable[T]]) -> T:
    """What comes of a call that has engines sample from weights of this version.

    The policy is idle meanwhile: an engine that comes in the place of a dead one gets the weights
    at once. Where the others cannot go on without it, the call is made again.

    Raises:
        StateLost: Another role's state is lost.
    """
    while True:
        try:
            return await _beside_those_that_join(roles, version, call())
        except StateLost as lost:
            _require_engines(lost)
            await roles.rollout.sleep(level=2)
            await publish(roles, version, exactly=True)


async def _beside_those_that_join(roles: Roles, version: int, call: Awaitable[T]) -> T:
    under_way: list[asyncio.Task[Publication]] = []
    results: list[T] = []
    try:
        async with asyncio.TaskGroup() as group:
            joining = group.create_task(_join(roles, version, under_way))
            try:
                results.append(await call)
            finally:
                # Who is left amid an update is of no use; it ends by its own deadlines.
                await asyncio.gather(*under_way, return_exceptions=True)
                joining.cancel()
    except BaseExceptionGroup as failed:
        error = failed.exceptions[0]
    except asyncio.CancelledError:
        if not results:  # else it comes too late: the call has done what it does
            raise
        return results[0]
    else:
        return results[0]
    raise error  # outside of the block: the group is no context of it


async def _join(roles: Roles, version: int, under_way: list[asyncio.Task[Publication]]) -> None:
    while True:
        await roles.rollout.joining()
        logger.warning("an engine joins: it gets version %d", version)
        under_way[:] = [asyncio.create_task(publish(roles, version))]
        await under_way[0]


def _require_engines(lost: StateLost) -> None:
    """Raise what a publication does not bring back."""
    if lost.role != ENGINES:
        raise lost
    logger.warning("%s; the weights are published again", lost)


async def _publish(roles: Roles, version: int, *, exactly: bool) -> Publication:
    await offload(roles.value, roles.reference, roles.reward)
    await roles.rollout.wake_up("weights")
    await roles.policy.publish(version, exactly=exactly)
    await offload(roles.policy)
    await roles.rollout.wake_up("kv_cache")
    return await roles.policy.compare()


async def offload(*roles: Offloads | None) -> None:
    """Have roles leave the engines' GPUs side by side; None stands for one that a job has not."""
    await side_by_side(role.offload() for role in roles if role is not None)
