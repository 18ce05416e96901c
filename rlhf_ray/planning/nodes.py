"""The nodes of a cluster as they were at one moment, and which of them a group's ranks fit on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, inf


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
