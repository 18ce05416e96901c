"""The plan of placement groups: who lives where, what is reserved, and what is missing."""

from __future__ import annotations

import pytest

from rlhf_ray.config.base import GroupConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.planning.groups import check_resources, describe, plan_groups, total_cpus


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


def test_a_shortfall_is_said_role_by_role():
    plans = plan_groups(
        {
            "policy": group(ranks=4, gpus_per_rank=1),
            "value": group(share="policy", ranks=4, gpus_per_rank=1),
            "rollout": group(gpus_per_rank=1),
        }
    )
    with pytest.raises(ConfigError) as caught:
        check_resources(plans, {"CPU": 64.0, "GPU": 4.0})
    assert str(caught.value).splitlines() == [
        "the cluster is too small: 5 GPU asked, 4 there",
        "  policy with value: 4 x (2 CPU, 1 GPU)",
        "  rollout: 1 x (1 CPU, 1 GPU)",
    ]
    check_resources(plans, {"CPU": 64.0, "GPU": 5.0})


def test_a_resource_that_no_node_has_is_named():
    plans = plan_groups({"policy": group(resources={"node_a": 1.0})})
    with pytest.raises(ConfigError, match="1 node_a asked, 0 there"):
        check_resources(plans, {"CPU": 8.0})
    assert describe(plans) == "  policy: 1 x (1 CPU, 1 node_a)"
