"""Where each rank of a role sits: its slot, its GPUs, and the environment that says so."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.cluster.deadline import get
from actors.pool.placement import Slot
from actors.pool.state import PoolState
from rlhf_ray.config.base import GroupConfig
from rlhf_ray.errors import ConfigError, RlhfRayError

# Names, with commas between them, of the driver's variables that its actors get as well.
FORWARDED = "RLHF_RAY_FORWARD"


@dataclass(frozen=True, kw_only=True)
class Seat:
    """One rank's place.

    Attributes:
        gpus: As `CUDA_VISIBLE_DEVICES` names them; None where Ray hands them out, as it does to
            roles with GPUs of their own.
    """

    slot: Slot
    gpus: tuple[str, ...] | None


def slots_of(role: str, state: PoolState) -> list[Slot]:
    """The slot of each rank of a role that is placed, its own or its host's."""
    group = state.groups[role]
    if not group.share:
        return state.slots[role]
    host, slots = state.groups[group.share], state.slots[group.share]
    if not group.gpus_per_rank:
        return [slots[rank % len(slots)] for rank in range(group.ranks)]
    return [slots[r * group.gpus_per_rank // host.gpus_per_rank] for r in range(group.ranks)]


def shared_host(role: str, groups: Mapping[str, GroupConfig]) -> str:
    """The role whose GPUs this one and at least one other live on; empty where it has its own."""
    host_of = {name: g.host_of(name) for name, g in groups.items() if g.gpus_per_rank}
    num_there = Counter(host_of.values())
    return host_of[role] if role in host_of and num_there[host_of[role]] > 1 else ""


def seats_of(role: str, state: PoolState, *, timeout_s: float) -> list[Seat]:
    """A seat for each rank of a role that is placed.

    Raises:
        ConfigError: A rank's GPUs would lie on several nodes.
    """
    group = state.groups[role]
    if not group.share or not group.gpus_per_rank:
        own = None if group.gpus_per_rank else ()
        return [Seat(slot=slot, gpus=own) for slot in slots_of(role, state)]
    gpus = _gpus_of(group.share, state, timeout_s)
    return guest_seats(role, group, list(zip(state.slots[group.share], gpus, strict=True)))


def guest_seats(
    role: str, group: GroupConfig, host: Sequence[tuple[Slot, Sequence[str]]]
) -> list[Seat]:
    """A seat for each rank of a role that lives on another's GPUs, from the first of them on.

    Args:
        role: For errors.
        group: Of the guest.
        host: Slot and GPUs of each of the host's ranks.

    Raises:
        ConfigError: A rank's GPUs would lie on several nodes.
    """
    flat = [(slot, gpu) for slot, gpus in host for gpu in gpus]
    seats = []
    for index in range(group.ranks):
        mine = flat[index * group.gpus_per_rank : (index + 1) * group.gpus_per_rank]
        if len({slot.node_id for slot, _ in mine}) > 1:
            raise ConfigError(
                f"{role} rank {index} needs {group.gpus_per_rank} GPUs of one node, but those "
                f"of {group.share} ({len(host)} x {len(host[0][1])}) lie on several"
            )
        seats.append(Seat(slot=mine[0][0], gpus=tuple(gpu for _, gpu in mine)))
    return seats


def _gpus_of(role: str, state: PoolState, timeout_s: float) -> list[list[str]]:
    hosts = state.sets.get(role)
    if hosts is None:
        raise RlhfRayError(f"the GPUs of {role} are shared: it must start first")
    return get(
        [actor.gpu_ids.remote() for actor in hosts.actors],
        timeout_s=timeout_s,
        actors=hosts.names,
        operation=f"{role}.gpu_ids",
    )


def environment(cpus: float, gpus: Sequence[str] | None) -> dict[str, str]:
    """What must be set before torch is imported: threads, and the GPUs where Ray does not.

    With it goes what the driver was told to hand on. Ray's runtime environment would do as well,
    but it is shown and logged, and there are secrets among these.
    """
    threads = str(max(1, int(cpus)))
    variables = _forwarded() | {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    if gpus is not None:  # Ray leaves all GPUs visible to an actor that asked for none
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    # DeepSpeed would decide by what it finds, and a role is where its configuration puts it.
    variables["DS_ACCELERATOR"] = "cpu" if gpus is not None and not gpus else "cuda"
    return variables


def _forwarded() -> dict[str, str]:
    names = os.environ.get(FORWARDED, "").split(",")
    return {name: os.environ[name] for name in names if name in os.environ}
