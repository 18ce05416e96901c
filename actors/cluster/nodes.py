"""The nodes of the cluster that this process is connected to."""

from __future__ import annotations

import ray

from rlhf_ray.planning.groups import Node


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


def addresses() -> dict[str, str]:
    """Address of every node, by its id."""
    return {entry["NodeID"]: entry["NodeManagerAddress"] for entry in ray.nodes()}
