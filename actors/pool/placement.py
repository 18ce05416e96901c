"""Ray placement groups of a plan: reserved, and given back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster.deadline import get
from actors.cluster.nodes import addresses
from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.planning.groups import GroupPlan, describe


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where one rank goes.

    Attributes:
        gpus: As Ray names them on the node.
    """

    group: PlacementGroup
    bundle: int
    node_id: str
    address: str
    gpus: tuple[str, ...] = ()


def reserve(plan: GroupPlan, *, name: str, timeout_s: float, outlives_job: bool) -> list[Slot]:
    """Create the placement group and wait for it; slots come in the order of their ranks.

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
        bundle_label_selector=[dict(plan.labels)] * len(plan.bundles) if plan.labels else None,
    )
    try:
        return _placed(plan, group, timeout_s)
    except BaseException:  # an interrupt as well: nobody would know of what outlives the job
        remove_placement_group(group)
        raise


def _placed(plan: GroupPlan, group: PlacementGroup, timeout_s: float) -> list[Slot]:
    if not group.wait(timeout_s):
        raise DeadlineError(
            f"placing {plan.host}: no room for its placement group within {timeout_s:g} s; "
            f"the cluster has {_amounts(ray.available_resources())} free\n{describe([plan])}"
        )
    nodes, address_of = placement_group_table(group)["bundles_to_node_id"], addresses()
    slots = [
        Slot(group=group, bundle=bundle, node_id=nodes[bundle], address=address_of[nodes[bundle]])
        for bundle in range(len(plan.bundles))
    ]
    if len(slots) > 1 and "GPU" in plan.bundles[0]:
        slots = _with_gpus(slots, plan, timeout_s)
    return in_order(slots)


def _with_gpus(slots: Sequence[Slot], plan: GroupPlan, timeout_s: float) -> list[Slot]:
    """Ask each bundle which GPUs Ray gave it; they stay the same for whoever comes after."""
    refs = [
        _gpu_ids.options(
            num_gpus=plan.bundles[slot.bundle]["GPU"], scheduling_strategy=strategy_of(slot)
        ).remote()
        for slot in slots
    ]
    found = get(
        refs,
        timeout_s=timeout_s,
        actors=[slot.address for slot in slots],
        operation=f"placing {plan.host}: asking for GPUs",
    )
    return [replace(slot, gpus=tuple(gpus)) for slot, gpus in zip(slots, found, strict=True)]


@ray.remote(num_cpus=0)
def _gpu_ids() -> list[str]:
    return [str(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids()["GPU"]]


def in_order(slots: Sequence[Slot]) -> list[Slot]:
    """The slots of ranks 0, 1, ...: neighbours on one node and GPU; Ray lays bundles anyhow."""

    def place(slot: Slot) -> tuple[Any, ...]:
        gpus = [_by_number(gpu) for gpu in slot.gpus]
        return _by_number(slot.address), slot.node_id, gpus, slot.bundle

    return sorted(slots, key=place)


def _by_number(text: str) -> list[Any]:
    """As a key of sorting that puts 10.0.0.9 before 10.0.0.10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def strategy_of(slot: Slot) -> PlacementGroupSchedulingStrategy:
    """What puts an actor or task into a slot."""
    return PlacementGroupSchedulingStrategy(
        placement_group=slot.group, placement_group_bundle_index=slot.bundle
    )


def release(slots: Sequence[Slot]) -> None:
    """Give the group's resources back."""
    for group in {slot.group.id: slot.group for slot in slots}.values():
        remove_placement_group(group)


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0.0):g} {name}" for name in ("CPU", "GPU"))
