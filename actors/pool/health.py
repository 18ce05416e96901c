"""Whether a role can serve the next job."""

from __future__ import annotations

from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import RoleActor
from rlhf_ray.errors import RlhfRayError

# An idle actor answers at once; one that still does what a dead job asked of it may take a while.
ANSWER_S = 60.0


async def fault_of(role: RoleHandle[Any]) -> RlhfRayError | None:
    """Why it cannot, if so; what the last job left running is dropped."""
    try:
        await role.call(RoleActor.process_id, timeout_s=ANSWER_S)()
        await role.spec.check(role, timeout_s=ANSWER_S)
    except RlhfRayError as error:
        return error
    return None
