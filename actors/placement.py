"""Ray placement groups of a plan: reserved, and given back."""

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
from rlhf_ray.planning.groups import GroupPlan, describe


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where one rank goes."""

    group: PlacementGroup
    bundle: int
    node_id: str


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
