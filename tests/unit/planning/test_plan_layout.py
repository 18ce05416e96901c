"""Ranks on nodes and GPUs, as Ray's strategies and the pool put them."""

from __future__ import annotations

import pytest
from plan_jobs import node

from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.planning.layout import lay_out, smallest_cluster


def seats(places, role):
    return [(place.node, place.gpus) for place in places if place.role == role]


def groups(**roles):
    return {name: GroupConfig(**{"gpus_per_rank": 1, **role}) for name, role in roles.items()}


def test_groups_fill_a_node_one_after_the_other():
    places = lay_out(groups(policy={"ranks": 3}, rollout={"gpus_per_rank": 4}), node())
    assert seats(places, "policy") == [(0, (0,)), (0, (1,)), (0, (2,))]
    assert seats(places, "rollout") == [(0, (3, 4, 5, 6))]


def test_a_group_that_fits_a_node_is_not_split():
    places = lay_out(groups(policy={"ranks": 5}, value={"ranks": 4}), node(nodes=2))
    assert {place.node for place in places if place.role == "value"} == {1}


def test_a_larger_group_takes_the_emptiest_nodes():
    places = lay_out(groups(policy={"ranks": 12}), node(nodes=2))
    assert [n for n, _ in seats(places, "policy")] == [0] * 8 + [1] * 4


def test_spreading_takes_turns():
    for strategy in ("SPREAD", "STRICT_SPREAD"):
        places = lay_out(groups(policy={"ranks": 2, "strategy": strategy}), node(nodes=2))
        assert seats(places, "policy") == [(0, (0,)), (1, (0,))]


@pytest.mark.parametrize(
    ("group", "cluster", "message"),
    [
        ({"ranks": 9}, node(), "9 GPU asked, 8 there"),
        (
            {"ranks": 9, "strategy": "STRICT_PACK"},
            node(nodes=2),
            "no node has 9 GPU for all ranks of policy",
        ),
        ({"ranks": 3, "strategy": "STRICT_SPREAD"}, node(nodes=2), "3 nodes asked for the 3 ranks"),
        ({"gpus_per_rank": 8}, node(gpus=4, nodes=2), "no node has 8 GPU for one rank of policy"),
        (
            {"ranks": 3, "gpus_per_rank": 0, "strategy": "STRICT_SPREAD"},
            node(nodes=2),
            "3 nodes asked for the 3 ranks",
        ),
    ],
)
def test_what_finds_no_room_is_named(group, cluster, message):
    with pytest.raises(ConfigError, match=message):
        lay_out(groups(policy=group), cluster)


def test_what_other_groups_leave_is_too_little():
    roles = groups(policy={"ranks": 5}, value={"ranks": 5}, rollout={"gpus_per_rank": 4})
    with pytest.raises(ConfigError, match="no room for rollout: 1 x 4 GPUs of one node each"):
        lay_out(roles, node(nodes=2))


def test_labels_are_taken_to_be_there():
    assert lay_out(groups(policy={"labels": {"zone": "a"}}), node())


def test_guests_sit_on_their_hosts_gpus_in_order():
    roles = groups(
        policy={"ranks": 4},
        rollout={"ranks": 2, "gpus_per_rank": 2, "share": "policy"},
        reward={"ranks": 3, "gpus_per_rank": 0, "share": "policy"},
    )
    places = lay_out(roles, node())
    assert seats(places, "rollout") == [(0, (0, 1)), (0, (2, 3))]
    assert seats(places, "reward") == [(0, ())] * 3


def test_a_guests_rank_stays_on_one_node():
    roles = groups(
        policy={"ranks": 2, "strategy": "SPREAD"}, rollout={"gpus_per_rank": 2, "share": "policy"}
    )
    with pytest.raises(ConfigError, match="rollout rank 0 needs 2 GPUs of one node"):
        lay_out(roles, node(nodes=2))


def test_the_smallest_cluster_holds_the_job_and_no_smaller_one_does():
    roles = groups(policy={"ranks": 12}, rollout={"gpus_per_rank": 8})
    assert smallest_cluster(roles, node()).nodes == 3
    assert (
        smallest_cluster(groups(policy={"gpus_per_rank": 0, "ranks": 5}), node(gpus=0)).nodes == 1
    )
    with pytest.raises(ConfigError, match="no node has 8 GPU for one rank of rollout"):
        smallest_cluster(roles, node(gpus=4))
