"""The plan of placement groups: who lives where, what is reserved, and what is missing."""

from __future__ import annotations

import pytest

from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.planning.groups import Node, check_resources, describe, plan_groups, total_cpus


def group(**settings):
    return GroupConfig(**settings)


def test_a_role_of_its_own_gets_a_bundle_a_rank():
    [policy, reward] = plan_groups(
        {
            "policy": group(ranks=3, gpus_per_rank=1, cpus_per_rank=2, strategy="SPREAD"),
            "reward": group(resources={"big": 0.5}),
        }
    )
    assert (policy.host, policy.guests, policy.strategy) == ("policy", (), "SPREAD")
    assert policy.bundles == ({"CPU": 2, "GPU": 1.0},) * 3
    assert reward.bundles == ({"CPU": 1, "big": 0.5},)


def test_guests_add_their_cores_to_their_hosts_bundles_and_no_gpus():
    [plan] = plan_groups(
        {
            "policy": group(ranks=2, gpus_per_rank=1, cpus_per_rank=4),
            "value": group(share="policy", ranks=2, gpus_per_rank=1, cpus_per_rank=2),
            "reward": group(share="policy", ranks=1, cpus_per_rank=1),
        }
    )
    assert plan.guests == ("value", "reward")
    assert plan.bundles == ({"CPU": 7, "GPU": 1.0}, {"CPU": 6, "GPU": 1.0})
    assert total_cpus([plan]) == 13


def test_more_guest_ranks_than_host_ranks_go_round():
    [plan] = plan_groups({"policy": group(ranks=2), "reward": group(share="policy", ranks=5)})
    assert [bundle["CPU"] for bundle in plan.bundles] == [1 + 3, 1 + 2]


def test_a_guest_that_needs_more_gpus_than_its_host_has_is_refused():
    with pytest.raises(ConfigError) as caught:
        plan_groups(
            {
                "policy": group(ranks=2, gpus_per_rank=1),
                "rollout": group(share="policy", ranks=2, gpus_per_rank=2),
            }
        )
    assert str(caught.value) == (
        "placement.rollout shares the 2 GPUs of policy, but asks for 4 (2 ranks x 2)"
    )


def test_a_host_that_the_job_does_not_use_is_refused():
    with pytest.raises(ConfigError, match=r"placement.reward.share names 'value', which this job"):
        plan_groups({"policy": group(), "reward": group(share="value")})


def node(number=1, labels=None, **resources):
    return Node(address=f"10.0.0.{number}", resources=resources, labels=labels or {})


def refusal(plans, nodes):
    with pytest.raises(ConfigError) as caught:
        check_resources(plans, nodes)
    return str(caught.value).splitlines()


def test_a_shortfall_is_said_role_by_role():
    plans = plan_groups(
        {
            "policy": group(ranks=4, gpus_per_rank=1),
            "value": group(share="policy", ranks=4, gpus_per_rank=1),
            "rollout": group(gpus_per_rank=1),
        }
    )
    assert refusal(plans, [node(CPU=32, GPU=2), node(2, CPU=32, GPU=2)]) == [
        "the cluster is too small: 5 GPU asked, 4 there",
        "  policy with value: 4 x (2 CPU, 1 GPU)",
        "  rollout: 1 x (1 CPU, 1 GPU)",
        "  10.0.0.1, 10.0.0.2: 32 CPU, 2 GPU",
    ]
    check_resources(plans, [node(CPU=64, GPU=4), node(2, GPU=1, CPU=1)])


def test_a_resource_that_no_node_has_is_named():
    plans = plan_groups({"policy": group(resources={"node_a": 1.0})})
    assert "1 node_a asked, 0 there" in refusal(plans, [node(CPU=8)])[0]
    assert describe(plans) == "  policy: 1 x (1 CPU, 1 node_a)"


def test_every_role_that_single_nodes_cannot_hold_is_named():
    plans = plan_groups(
        {
            "policy": group(ranks=3, gpus_per_rank=1, strategy="STRICT_SPREAD"),
            "value": group(ranks=5, gpus_per_rank=1, strategy="STRICT_PACK"),
            "rollout": group(gpus_per_rank=8),
            "reward": group(ranks=3, cpus_per_rank=20),
            "reference": group(labels={"zone": "c"}),
        }
    )
    lines = refusal(plans, [node(n, {"zone": "a"}, CPU=48, GPU=4) for n in (1, 2)] + [node(CPU=32)])
    assert lines[0].removeprefix("the cluster is too small: ").split("; ") == [
        "16 GPU asked, 8 there",
        "3 nodes asked for the 3 ranks of policy (STRICT_SPREAD), 2 there",
        "no node has 5 CPU, 5 GPU for all ranks of value (STRICT_PACK)",
        "no node has 1 CPU, 8 GPU for one rank of rollout",
        "no node for reference with zone=c",
    ]
    assert "  policy: 3 x (1 CPU, 1 GPU) STRICT_SPREAD" in lines
    assert "  reference: 1 x (1 CPU) zone=c" in lines
    assert lines[-2:] == [
        "  10.0.0.1, 10.0.0.2: 48 CPU, 4 GPU, zone=a",
        "  10.0.0.1: 32 CPU, 0 GPU",
    ]


def test_ranks_that_fit_in_sum_but_not_on_whole_nodes_are_refused():
    plans = plan_groups({"reward": group(ranks=3, cpus_per_rank=20)})
    nodes = [node(CPU=30), node(2, CPU=30)]
    said = "3 ranks of 20 CPU each asked for reward, the nodes hold 2 of them"
    assert said in refusal(plans, nodes)[0]
    check_resources(plans, [node(CPU=40), node(2, CPU=20)])


def test_roles_with_the_same_labels_compete_for_those_nodes():
    zone = {"labels": {"zone": "a"}, "gpus_per_rank": 1}
    plans = plan_groups({"policy": group(ranks=3, **zone), "rollout": group(ranks=2, **zone)})
    nodes = [node(1, {"zone": "a"}, CPU=9, GPU=4), node(2, {"zone": "b"}, CPU=9, GPU=4)]
    assert "5 GPU asked, 4 there on nodes with zone=a" in refusal(plans, nodes)[0]


@pytest.mark.parametrize(
    ("selector", "passes"),
    [
        ("a", {"a"}),
        ("!a", {"b", "c", None}),
        ("in(a, b)", {"a", "b"}),
        ("!in(a,b)", {"c", None}),
    ],
)
def test_label_selectors_are_read_as_ray_reads_them(selector, passes):
    wanted = group(labels={"zone": selector}).labels
    zones = ["a", "b", "c", None]
    nodes = {zone: node(1, {} if zone is None else {"zone": zone}, CPU=1) for zone in zones}
    found = {zone for zone, one in nodes.items() if one.has_labels(wanted)}
    assert found == passes


@pytest.mark.parametrize("selector", ["", "a b", "in()", "!!a", "a=b"])
def test_a_label_selector_that_ray_would_not_read_is_refused(selector):
    with pytest.raises(ValueError, match=r"labels\.zone"):
        group(labels={"zone": selector})


def test_a_guest_has_no_labels_of_its_own():
    with pytest.raises(ValueError, match="takes its place: no resources or labels"):
        group(share="policy", labels={"zone": "a"})
