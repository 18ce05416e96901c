"""GPU groups: which roles share them and what each rank reserves, and what a cluster lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rlhf_ray.config.base import GroupConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.planning.nodes import Node, describe_nodes, shortfall, sum_of


@dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """One placement group: a role with GPUs of its own, and the roles that live on them.

    Attributes:
        host: The role that owns the group.
        guests: Roles with `share: <host>`.
        bundles: Resources of each rank, guests' CPU cores included.
        labels: What the labels of each rank's node must be.
    """

    host: str
    guests: tuple[str, ...]
    bundles: tuple[Mapping[str, float], ...]
    strategy: str
    labels: Mapping[str, str] = field(default_factory=dict)


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
                labels=group.labels,
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


def check_resources(plans: Sequence[GroupPlan], nodes: Sequence[Node]) -> None:
    """Find what a cluster cannot hold, however its ranks are laid out.

    Raises:
        ConfigError: Something is short, no node has a group's labels, or a rank or group is too
            large for one node; what each role asks for and what each node has stands below.
    """
    faults = list(dict.fromkeys([*_short_in_sum(plans, nodes), *_misfits(plans, nodes)]))
    if not faults:
        return
    resources = dict.fromkeys(name for plan in plans for b in plan.bundles for name in b)
    labels = dict.fromkeys(key for plan in plans for key in plan.labels)
    raise ConfigError(
        f"the cluster is too small: {'; '.join(faults)}\n{describe(plans)}\n"
        f"{describe_nodes(nodes, resources, labels)}"
    )


def _short_in_sum(plans: Sequence[GroupPlan], nodes: Sequence[Node]) -> Iterator[str]:
    """What the groups that can go nowhere else ask of some nodes together."""
    eligible = {plan.host: _eligible(plan, nodes) for plan in plans}
    labelled = {eligible[plan.host]: _selectors(plan) for plan in plans if plan.labels}
    everywhere = frozenset(range(len(nodes)))
    for here in {everywhere: "", **labelled}:
        rivals = [plan for plan in plans if eligible[plan.host] and eligible[plan.host] <= here]
        asked = sum_of(bundle for plan in rivals for bundle in plan.bundles)
        there = sum_of(nodes[index].resources for index in here)
        where = "" if here == everywhere else f" on nodes with {labelled[here]}"
        yield from (text + where for text in shortfall(asked, there))


def _misfits(plans: Sequence[GroupPlan], nodes: Sequence[Node]) -> Iterator[str]:
    """Groups that single nodes cannot hold."""
    for plan in plans:
        here = [nodes[index] for index in sorted(_eligible(plan, nodes))]
        if not here:
            yield f"no node for {plan.host} with {_selectors(plan)}"
        elif fault := _misfit(plan, here):
            yield fault


def _misfit(plan: GroupPlan, nodes: Sequence[Node]) -> str | None:
    num = len(plan.bundles)
    # Bundles differ in CPU cores alone, those of guests.
    by_cores = sorted(plan.bundles, key=lambda bundle: bundle.get("CPU", 0.0))
    smallest, largest = by_cores[0], by_cores[-1]
    if not any(node.room_for(largest) for node in nodes):
        return f"no node has {_amounts(largest)} for one rank of {plan.host}"
    if plan.strategy == "STRICT_SPREAD":
        roomy = sum(1 for node in nodes if node.room_for(smallest))
        if roomy < num:
            return (
                f"{num} nodes asked for the {num} ranks of {plan.host} (STRICT_SPREAD), "
                f"{roomy} there"
            )
    if plan.strategy == "STRICT_PACK":
        whole = sum_of(plan.bundles)
        if not any(node.room_for(whole) for node in nodes):
            return f"no node has {_amounts(whole)} for all ranks of {plan.host} (STRICT_PACK)"
    room = sum(node.room_for(smallest) for node in nodes)
    if room < num:
        return (
            f"{num} ranks of {_amounts(smallest)} each asked for {plan.host}, "
            f"the nodes hold {room} of them"
        )
    return None


def _eligible(plan: GroupPlan, nodes: Sequence[Node]) -> frozenset[int]:
    return frozenset(i for i, node in enumerate(nodes) if node.has_labels(plan.labels))


def _selectors(plan: GroupPlan) -> str:
    return ", ".join(f"{key}={value}" for key, value in plan.labels.items())


def _amounts(bundle: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())


def describe(plans: Sequence[GroupPlan]) -> str:
    """A line for every group: who lives there, what each rank holds and where it may go."""
    lines = []
    for plan in plans:
        who = plan.host + (f" with {', '.join(plan.guests)}" if plan.guests else "")
        where = [] if plan.strategy == "PACK" else [plan.strategy]
        where += [_selectors(plan)] if plan.labels else []
        line = f"  {who}: {len(plan.bundles)} x ({_amounts(plan.bundles[0]) or 'no GPU'})"
        lines.append(" ".join([line, *where]))
    return "\n".join(lines)
