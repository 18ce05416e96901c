"""The processes of a role: started in their places, and ended."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import CONTROL_GROUP, CONTROL_THREADS, RoleActor, RoleSpec
from actors.pool.placement import strategy_of
from actors.pool.state import Place
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.deadlines import deadline
from rlhf_ray.errors import RlhfRayError

logger = logging.getLogger(__name__)

# Names, with commas between them, of the driver's variables that its actors get as well.
FORWARDED = "RLHF_RAY_FORWARD"
# Well within what a stopped job is given to end in: what is still busy then is killed.
STOP_S = 15.0
# Between two looks at whether a name is free.
POLL_S = 0.05


def start(
    name: str,
    spec: RoleSpec,
    group: GroupConfig | None,
    places: Sequence[Place],
    *,
    threads: int,
    timeouts: TimeoutConfig,
    lifetime: Mapping[str, str],
    only: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Start a role's actors, or `only` some, which are asked for nothing yet; by their names.

    A role without a `group` is a single actor without GPUs, on any node. Each computes with
    `threads`. `lifetime` are Ray's options of what outlives this process.
    """
    limits: dict[str, Any] = {"concurrency_groups": {CONTROL_GROUP: CONTROL_THREADS}}
    if spec.max_calls is not None:
        limits["max_concurrency"] = spec.max_calls
    actor_class: Any = ray.remote(**limits)(spec.actor_class)

    def actor(name: str, variables: Mapping[str, str], **options: Any) -> Any:
        made = actor_class.options(name=name, **lifetime, **options)
        return made.remote(name, variables, spec.argument(timeouts))

    if group is None:
        return {name: actor(name, environment(threads, ()), num_cpus=0)}
    actors = {}
    for rank in range(len(places)) if only is None else only:
        place = places[rank]
        # Ray says which GPUs a role has that owns them.
        gpus = place.gpus if group.share or not group.gpus_per_rank else None
        actors[f"{name}/{rank}"] = actor(
            f"{name}/{rank}",
            environment(threads, gpus),
            num_cpus=0 if group.share else group.reserved_cpus,
            num_gpus=0 if group.share else group.gpus_per_rank,
            scheduling_strategy=strategy_of(place),
        )
    return actors


async def names_are_free(names: Sequence[str], namespace: str | None, *, timeout_s: float) -> None:
    """Wait until others can have the names of actors that were killed.

    Raises:
        DeadlineError: The cluster knows one still.
    """
    for name in names:
        async with deadline(timeout_s, actor=name, operation="its end"):
            while _is_known(name, namespace):
                await asyncio.sleep(POLL_S)


def _is_known(name: str, namespace: str | None) -> bool:
    try:
        ray.get_actor(name, namespace=namespace)
    except ValueError:
        return False
    return True


async def end(role: RoleHandle[Any]) -> None:
    """End a role's actors, whether they answer or not; nobody replaces them."""
    role.detach()
    try:
        await role.call(RoleActor.stop, timeout_s=STOP_S)()
    except RlhfRayError as error:
        logger.warning("%s; it is killed", error)
    finally:
        for actor in role.actors:
            ray.kill(actor)


def environment(threads: int, gpus: Sequence[str] | None) -> dict[str, str]:
    """What must be set before torch is imported: threads, and the GPUs where Ray does not.

    With it goes what the driver was asked to hand on. Ray's runtime environment would do as well,
    but it is shown and logged, and there are secrets among these.
    """
    own = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    variables = _forwarded() | own
    if gpus is not None:  # Ray leaves all GPUs visible to an actor that asked for none
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    # DeepSpeed would decide by what it finds, and a role is where its configuration puts it.
    variables["DS_ACCELERATOR"] = "cpu" if gpus is not None and not gpus else "cuda"
    return variables


def _forwarded() -> dict[str, str]:
    names = os.environ.get(FORWARDED, "").split(",")
    return {name: os.environ[name] for name in names if name in os.environ}
