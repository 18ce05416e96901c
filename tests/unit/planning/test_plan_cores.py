"""Who computes on a node's cores, with how many threads: never more at a time than there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.planning.cores import ENGINES, share_cores

ROLES = ("policy", "value", "reference", "reward", ENGINES)


def shares_of(cores, *, runs_ahead=False, working=ROLES, **ranks):
    """Of one node, with so many ranks of each role, or a group."""
    groups = {
        role: num if isinstance(num, GroupConfig) else GroupConfig(ranks=num)
        for role, num in ranks.items()
    }
    nodes_of = {role: ["node"] * group.ranks for role, group in groups.items()}
    return share_cores(groups, nodes_of, {"node": cores}, working=working, runs_ahead=runs_ahead)


def test_every_role_has_all_cores_in_turn_and_so_have_engines_that_idle_meanwhile():
    shares = shares_of(8, policy=1, reference=1, rollout=1)
    assert shares.threads == {"policy": 8, "reference": 8, ENGINES: 8}
    assert shares.taken == {"policy": {"node": 8}, "reference": {"node": 8}}
    assert shares.lent == {"node": 8}


def test_policy_and_value_function_are_updated_side_by_side():
    shares = shares_of(8, policy=1, value=2, reference=1, rollout=1)
    assert shares.threads == {"policy": 4, "value": 2, "reference": 4, ENGINES: 8}
    assert {role: taken["node"] for role, taken in shares.taken.items()} == {
        "policy": 4, "value": 4, "reference": 4
    }  # fmt: skip
    assert shares_of(1, policy=1, value=1).threads == {"policy": 1, "value": 1}


def test_a_value_function_of_another_job_takes_nothing():
    shares = shares_of(8, working=("policy", ENGINES), policy=1, value=1, rollout=1)
    assert shares.threads["policy"] == 8


def test_ranks_of_a_role_divide_what_it_has():
    assert shares_of(8, policy=3, rollout=2).threads == {"policy": 2, ENGINES: 4}
    assert shares_of(2, policy=3).threads == {"policy": 1}


def test_engines_that_sample_meanwhile_have_one_half():
    shares = shares_of(8, runs_ahead=True, policy=2, value=1, rollout=1)
    assert shares.threads == {"policy": 1, "value": 2, ENGINES: 4}
    assert shares.lent == {"node": 4}
    assert shares.taken["value"] == {"node": 2}
    assert shares_of(8, runs_ahead=True, rollout=1).threads == {ENGINES: 8}, "nobody is beside"
    fixed = GroupConfig(cpus_per_rank=2)
    shares = shares_of(8, runs_ahead=True, policy=1, rollout=fixed)
    assert shares.threads == {"policy": 6, ENGINES: 2}


def test_a_number_is_the_number_of_threads_and_roles_that_fit_work_side_by_side():
    one = GroupConfig(cpus_per_rank=1)
    shares = shares_of(2, policy=one, value=one)
    assert shares.threads == {"policy": 1, "value": 1}
    assert shares.taken == {"policy": {"node": 1}, "value": {"node": 1}}
    more = shares_of(2, policy=GroupConfig(cpus_per_rank=5))
    assert (more.threads, more.taken) == ({"policy": 5}, {"policy": {"node": 2}})


def test_ranks_on_several_nodes_have_what_the_smallest_share_is():
    groups = {"policy": GroupConfig(ranks=3), "value": GroupConfig(ranks=1)}
    nodes_of = {"policy": ["a", "a", "b"], "value": ["b"]}
    shares = share_cores(groups, nodes_of, {"a": 8, "b": 16}, working=ROLES, runs_ahead=False)
    assert shares.threads == {"policy": 4, "value": 8}
    assert shares.taken == {"policy": {"a": 8, "b": 4}, "value": {"b": 8}}


def test_roles_on_gpus_have_no_part_in_it():
    on_gpu = GroupConfig(gpus_per_rank=1)
    shares = shares_of(8, runs_ahead=True, policy=on_gpu, reward=1, rollout=on_gpu)
    assert shares.threads == {"reward": 8}


@given(
    cores=st.integers(1, 64),
    ranks=st.dictionaries(st.sampled_from(ROLES), st.integers(1, 4), min_size=1),
    runs_ahead=st.booleans(),
)
def test_what_works_at_a_time_fits_where_each_rank_can_have_a_core(cores, ranks, runs_ahead):
    shares = shares_of(cores, runs_ahead=runs_ahead, **ranks)
    engines = shares.threads.get(ENGINES, 0) * ranks.get(ENGINES, 0)
    for role in ranks.keys() - {ENGINES}:
        used = shares.threads[role] * ranks[role]
        assert used <= max(shares.lent["node"], ranks[role])
        assert shares.taken[role]["node"] <= shares.lent["node"]
        if runs_ahead and cores >= 2 and max(ranks.values()) == 1:
            assert used + engines <= cores
    if len(ranks) > 1 and ENGINES in ranks and not runs_ahead:
        assert engines <= max(cores, ranks[ENGINES])


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_it_follows_from_its_arguments_alone_whatever_their_order(runs_ahead):
    ranks = {"policy": 2, "value": 1, ENGINES: 2}
    forth = shares_of(6, runs_ahead=runs_ahead, **ranks)
    back = shares_of(6, runs_ahead=runs_ahead, **dict(reversed(ranks.items())))
    assert (forth.threads, forth.lent, forth.taken) == (back.threads, back.lent, back.taken)
