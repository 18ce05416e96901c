"""Ray's placement groups of a pool's roles: reserved, and given back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster.deadline import get
from actors.pool.state import Place, PoolState, in_order
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.cpus import usable_cores
from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.errors import ConfigError, RunError
from rlhf_ray.planning.groups import GroupPlan, Node, check_resources, describe, plan_groups


def place(
    roles: Mapping[str, GroupConfig],
    state: PoolState,
    *,
    prefix: str,
    timeout_s: float,
    outlives_job: bool,
) -> Iterator[None]:
    """Reserve placement groups for every role that has none yet; yields at each new state.

    Each waits for room for `timeout_s`; their names begin with `prefix`.

    Raises:
        ConfigError: The cluster is too small, or a role is placed in another shape.
        DeadlineError: It is large enough but busy.
    """
    groups = state.groups
    for role, group in roles.items():
        if role in groups and groups[role] != group:
            raise ConfigError(
                f"placement.{role} is {group}, but the pool holds it as {groups[role]}"
            )
    plans = [plan for plan in plan_groups({**groups, **roles}) if plan.host not in state.places]
    check_resources(plans, snapshot())
    for plan in plans:
        name = f"{prefix}:{plan.host}"
        state.places[plan.host] = reserve(
            plan, name=name, timeout_s=timeout_s, outlives_job=outlives_job
        )
        members = {plan.host, *plan.guests} & roles.keys()
        groups.update({role: roles[role] for role in members})
        yield
    groups.update(roles)
    yield


def reserve(plan: GroupPlan, *, name: str, timeout_s: float, outlives_job: bool) -> list[Place]:
    """Create the placement group and wait for it; places come in the order of their ranks.

    Raises:
        DeadlineError: The cluster could not place it in time.
        RunError: A node died meanwhile.
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


def _placed(plan: GroupPlan, group: PlacementGroup, timeout_s: float) -> list[Place]:
    if not group.wait(timeout_s):
        raise DeadlineError(
            f"placing {plan.host}: no room for its placement group within {timeout_s:g} s; "
            f"the cluster has {_amounts(ray.available_resources())} free\n{describe([plan])}"
        )
    nodes, address_of = placement_group_table(group)["bundles_to_node_id"], addresses()
    if lost := [bundle for bundle in range(len(plan.bundles)) if nodes[bundle] not in address_of]:
        raise RunError(f"placing {plan.host}: the nodes of its bundles {lost} are gone")
    places = [
        Place(group=group, bundle=bundle, node_id=nodes[bundle], address=address_of[nodes[bundle]])
        for bundle in range(len(plan.bundles))
    ]
    if "GPU" in plan.bundles[0]:
        places = _with_gpus(places, plan, timeout_s)
    return in_order(places)


def _with_gpus(places: Sequence[Place], plan: GroupPlan, timeout_s: float) -> list[Place]:
    """Ask each bundle which GPUs Ray gave it; they stay the same for whoever comes after."""
    refs = [
        _gpu_ids.options(
            num_gpus=plan.bundles[place.bundle]["GPU"], scheduling_strategy=strategy_of(place)
        ).remote()
        for place in places
    ]
    found = get(
        refs,
        timeout_s=timeout_s,
        actors=[place.address for place in places],
        operation=f"placing {plan.host}: asking for GPUs",
    )
    return [replace(place, gpus=tuple(gpus)) for place, gpus in zip(places, found, strict=True)]


@ray.remote(num_cpus=0)
def _gpu_ids() -> list[str]:
    return [str(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids()["GPU"]]


def moved(places: Sequence[Place]) -> list[Place]:
    """Where places are now: Ray gives the bundles of a lost node to another one with room."""
    address_of, found = addresses(), []
    for place in places:
        node = placement_group_table(place.group)["bundles_to_node_id"][place.bundle]
        is_there = node in address_of
        found.append(replace(place, node_id=node, address=address_of[node]) if is_there else place)
    return found


def strategy_of(place: Place) -> PlacementGroupSchedulingStrategy:
    """What puts an actor or task into a place."""
    return PlacementGroupSchedulingStrategy(
        placement_group=place.group, placement_group_bundle_index=place.bundle
    )


def release(places: Sequence[Place]) -> None:
    """Give the resources of their groups back."""
    for group in {place.group.id: place.group for place in places}.values():
        remove_placement_group(group)


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0.0):g} {name}" for name in ("CPU", "GPU"))


def snapshot() -> list[Node]:
    """The nodes that are alive, with what each has in total."""
    return [
        Node(
            address=entry["NodeManagerAddress"],
            resources=entry["Resources"],
            labels=entry["Labels"],
        )
        for entry in ray.nodes()
        if entry["Alive"]
    ]


def cores() -> dict[str, int]:
    """Of every node, by its id; here no more than this machine has, whatever Ray was told."""
    found, here = {}, ray.util.get_node_ip_address()
    for entry in ray.nodes():
        promised = int(entry["Resources"].get("CPU", 0))
        is_here = entry["NodeManagerAddress"] == here
        found[entry["NodeID"]] = max(1, min(promised, usable_cores()) if is_here else promised)
    return found


def addresses() -> dict[str, str]:
    """Address of every node, by its id."""
    return {entry["NodeID"]: entry["NodeManagerAddress"] for entry in ray.nodes()}
