"""The order of ranks: node by node, and on a node GPU by GPU, whatever Ray's order is."""

from __future__ import annotations

import random

from actors.pool.state import Place, PoolState, in_order
from rlhf_ray.config.placement import GroupConfig


def place(bundle, address, *gpus, node_id=""):
    return Place(group=None, bundle=bundle, node_id=node_id or address, address=address, gpus=gpus)


def test_ranks_of_one_node_stay_together_in_the_order_of_addresses_and_gpus():
    ordered = [
        place(5, "10.0.0.9", "2"),
        place(0, "10.0.0.9", "10"),
        place(1, "10.0.0.10", "0"),
        place(4, "10.0.0.10", "1"),
        place(2, "10.0.1.1"),
        place(3, "10.0.1.1"),
    ]
    for seed in range(20):
        assert in_order(random.Random(seed).sample(ordered, len(ordered))) == ordered


def test_nodes_that_have_one_address_are_not_mixed():
    places = [place(n, "10.0.0.1", node_id=f"node{n % 2}") for n in range(6)]
    assert [p.bundle for p in in_order(places)] == [0, 2, 4, 1, 3, 5]


def bundles(**guest):
    """Where a guest's ranks are, on a host with four ranks of two GPUs each."""
    groups = {
        "rollout": GroupConfig(ranks=4, gpus_per_rank=2),
        "policy": GroupConfig(share="rollout", **guest),
    }
    host = [place(n, f"10.0.0.{n}", "0", "1") for n in range(4)]
    return [
        p.bundle for p in PoolState(groups=groups, places={"rollout": host}).places_of("policy")
    ]


def test_guests_go_round_their_hosts_or_follow_their_gpus():
    assert bundles(ranks=6) == [0, 1, 2, 3, 0, 1]
    assert bundles(ranks=8, gpus_per_rank=1) == [0, 0, 1, 1, 2, 2, 3, 3]
