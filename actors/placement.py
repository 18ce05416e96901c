"""GPU groups to Ray placement groups: a pure plan first, which also says what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from actors.deadline import DeadlineError
from rlhf_ray.config.base import GroupConfig
from rlhf_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """One placement group: a role with GPUs of its own, and the roles that live on them.

    Attributes:
        host: The role that owns the group.
        guests: Roles with `share: <host>`.
        bundles: Resources of each rank, guests' CPU cores included.
    """

    host: str
    guests: tuple[str, ...]
    bundles: tuple[Mapping[str, float], ...]
    strategy: str


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where one rank goes."""

    group: PlacementGroup
    bundle: int
    node_id: str


def plan_groups(roles: Mapping[str, GroupConfig]) -> list[GroupPlan]:
    """Group the roles of a job by the GPUs they live on.

    Raises:
        ConfigError: A guest needs more GPUs than its host has, or a host that is not in the job.
    """
    plans = []
    for host, group in roles.items():
        if group.share:
            _check_guest(host, group, roles)
            continue
        guests = tuple(role for role, other in roles.items() if other.share == host)
        plans.append(
            GroupPlan(
                host=host,
                guests=guests,
                bundles=tuple(
                    _bundle(group, [roles[guest] for guest in guests], rank)
                    for rank in range(group.ranks)
                ),
                strategy=group.strategy,
            )
        )
    return plans


def _check_guest(role: str, group: GroupConfig, roles: Mapping[str, GroupConfig]) -> None:
    if group.share not in roles:
        raise ConfigError(
            f"placement.{role}.share names {group.share!r}, which this job does not use; "
            f"it uses {', '.join(roles)}"
        )
    host = roles[group.share]
    there, wanted = host.ranks * host.gpus_per_rank, group.ranks * group.gpus_per_rank
    if wanted > there:
        raise ConfigError(
            f"placement.{role} shares the {there} GPUs of {group.share}, but asks for {wanted} "
            f"({group.ranks} ranks x {group.gpus_per_rank})"
        )


def _bundle(host: GroupConfig, guests: Sequence[GroupConfig], rank: int) -> dict[str, float]:
    cpus = host.cpus_per_rank + sum(
        guest.cpus_per_rank
        for guest in guests
        for r in range(guest.ranks)
        if r % host.ranks == rank
    )
    bundle: dict[str, float] = {"CPU": cpus, **host.resources}
    if host.gpus_per_rank:
        bundle["GPU"] = float(host.gpus_per_rank)
    return bundle


def total_cpus(plans: Sequence[GroupPlan]) -> float:
    """CPU cores that all groups reserve together."""
    return sum(bundle["CPU"] for plan in plans for bundle in plan.bundles)


def check_resources(plans: Sequence[GroupPlan], available: Mapping[str, float]) -> None:
    """Compare the plan with what a cluster has.

    Raises:
        ConfigError: Something is short; a line for every role says what it asks for.
    """
    asked: dict[str, float] = {}
    for plan in plans:
        for bundle in plan.bundles:
            for name, amount in bundle.items():
                asked[name] = asked.get(name, 0.0) + amount
    short = [
        f"{amount:g} {name} asked, {available.get(name, 0.0):g} there"
        for name, amount in asked.items()
        if amount > available.get(name, 0.0)
    ]
    if short:
        raise ConfigError(f"the cluster is too small: {'; '.join(short)}\n{describe(plans)}")


def describe(plans: Sequence[GroupPlan]) -> str:
    """A line for every group: who lives there and what each rank holds."""
    lines = []
    for plan in plans:
        who = plan.host + (f" with {', '.join(plan.guests)}" if plan.guests else "")
        each = ", ".join(f"{amount:g} {name}" for name, amount in plan.bundles[0].items())
        lines.append(f"  {who}: {len(plan.bundles)} x ({each})")
    return "\n".join(lines)


def reserve(plan: GroupPlan, *, name: str, timeout_s: float, outlives_job: bool) -> list[Slot]:
    """Create the placement group and wait for it; slots come ordered by node.

    Args:
        plan: What it holds.
        name: By which it is found again.
        timeout_s: Most seconds to wait for room.
        outlives_job: Whether it stays when this process ends.

    Raises:
        DeadlineError: The cluster could not place it in time.
    """
    group = placement_group(
        [dict(bundle) for bundle in plan.bundles],
        strategy=plan.strategy,
        name=name,
        lifetime="detached" if outlives_job else None,
    )
    if not group.wait(timeout_s):
        remove_placement_group(group)
        raise DeadlineError(
            f"placing {plan.host}: no room for its placement group within {timeout_s:g} s; "
            f"the cluster has {_amounts(ray.available_resources())} free\n{describe([plan])}"
        )
    nodes = placement_group_table(group)["bundles_to_node_id"]
    # Ray orders bundles as it likes; neighbouring ranks belong on one node.
    order = sorted(range(len(plan.bundles)), key=lambda bundle: (nodes[bundle], bundle))
    return [Slot(group=group, bundle=bundle, node_id=nodes[bundle]) for bundle in order]


def release(slots: Sequence[Slot]) -> None:
    """Give the group's resources back."""
    for group in {slot.group.id: slot.group for slot in slots}.values():
        remove_placement_group(group)


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0.0):g} {name}" for name in ("CPU", "GPU"))
