"""The nodes of a cluster, GPU groups with the roles that share them, and what a cluster lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, inf

from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node.

    Attributes:
        address: By which errors name it.
        resources: What it has in total, by Ray's names.
        labels: As `ray start --labels` gave them, and Ray's own.
    """

    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def has_labels(self, selectors: Mapping[str, str]) -> bool:
        """Whether every selector lets this node pass."""
        return all(_lets_pass(text, self.labels.get(key)) for key, text in selectors.items())

    def room_for(self, bundle: Mapping[str, float]) -> float:
        """How many such bundles it holds; any number of empty ones."""
        counts = [self.resources.get(name, 0.0) / amount for name, amount in bundle.items()]
        return floor(min(counts) + 1e-6) if counts else inf  # 0.3 holds 0.1 three times


def _lets_pass(selector: str, value: str | None) -> bool:
    """Ray's own reading: a node without the label passes what only excludes values."""
    wanted = selector.removeprefix("!")
    if wanted.startswith("in("):
        values = [text.strip() for text in wanted[len("in(") : -1].split(",")]
    else:
        values = [wanted]
    return (value in values) != selector.startswith("!")


def sum_of(amounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Resources of several nodes or bundles together."""
    total: dict[str, float] = {}
    for each in amounts:
        for name, amount in each.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def shortfall(asked: Mapping[str, float], there: Mapping[str, float]) -> list[str]:
    """What is asked for and not there, in words."""
    return [
        f"{amount:g} {name} asked, {there.get(name, 0.0):g} there"
        for name, amount in asked.items()
        if amount > there.get(name, 0.0)
    ]


def describe_nodes(nodes: Sequence[Node], names: Iterable[str], labels: Iterable[str]) -> str:
    """A line for all nodes that are alike in the resources and labels that are asked for."""
    alike: dict[str, list[str]] = {}
    for node in nodes:
        amounts = [f"{node.resources.get(name, 0.0):g} {name}" for name in names]
        known = [f"{key}={node.labels[key]}" for key in labels if key in node.labels]
        alike.setdefault(", ".join([*amounts, *known]), []).append(node.address)
    return "\n".join(f"  {', '.join(where)}: {what}" for what, where in alike.items())


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
    cpus = host.reserved_cpus + sum(
        guest.reserved_cpus
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
