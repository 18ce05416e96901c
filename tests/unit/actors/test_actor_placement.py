"""The order of ranks: node by node, and on a node GPU by GPU, whatever Ray's order is."""

from __future__ import annotations

import random

from actors.pool.placement import Slot, in_order
from actors.pool.seating import slots_of
from actors.pool.state import PoolState
from rlhf_ray.config.base import GroupConfig


def slot(bundle, address, *gpus, node_id=""):
    return Slot(group=None, bundle=bundle, node_id=node_id or address, address=address, gpus=gpus)


def test_ranks_of_one_node_stay_together_in_the_order_of_addresses_and_gpus():
    ordered = [
        slot(5, "10.0.0.9", "2"),
        slot(0, "10.0.0.9", "10"),
        slot(1, "10.0.0.10", "0"),
        slot(4, "10.0.0.10", "1"),
        slot(2, "10.0.1.1"),
        slot(3, "10.0.1.1"),
    ]
    for seed in range(20):
        assert in_order(random.Random(seed).sample(ordered, len(ordered))) == ordered


def test_nodes_that_have_one_address_are_not_mixed():
    slots = [slot(n, "10.0.0.1", node_id=f"node{n % 2}") for n in range(6)]
    assert [s.bundle for s in in_order(slots)] == [0, 2, 4, 1, 3, 5]


def state(**guest):
    """A host with four ranks of two GPUs each, and a guest."""
    return PoolState(
        groups={
            "rollout": GroupConfig(ranks=4, gpus_per_rank=2),
            "policy": GroupConfig(share="rollout", **guest),
        },
        slots={"rollout": [slot(n, f"10.0.0.{n}") for n in range(4)]},
    )


def bundles(state):
    return [s.bundle for s in slots_of("policy", state)]


def test_guests_go_round_their_hosts_or_follow_their_gpus():
    assert bundles(state(ranks=6)) == [0, 1, 2, 3, 0, 1]
    assert bundles(state(ranks=8, gpus_per_rank=1)) == [0, 0, 1, 1, 2, 2, 3, 3]
