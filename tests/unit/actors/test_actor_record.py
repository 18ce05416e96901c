"""What a standing pool does not know of is ended, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fake_pools import FakePlacementGroup, FakeRecord

from actors.pool import placement, record
from actors.pool.placement import reserve
from actors.pool.state import Place, PoolState
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.errors import RunError
from rlhf_ray.planning.groups import plan_groups


@pytest.fixture
def removed(monkeypatch) -> list[str]:
    """The groups that were removed, of those that the cluster has."""
    groups = {
        "known": {"name": "standing/lab:policy", "state": "CREATED"},
        "lost": {"name": "standing/lab:rollout", "state": "CREATED"},
        "gone": {"name": "standing/lab:value", "state": "REMOVED"},
        "others": {"name": "standing/lab2:policy", "state": "CREATED"},
    }
    removed: list[str] = []
    monkeypatch.setattr(record, "placement_group_table", lambda: groups)
    monkeypatch.setattr(record, "PlacementGroup", lambda group_id: group_id)
    monkeypatch.setattr(record, "PlacementGroupID", SimpleNamespace(from_hex=str))
    monkeypatch.setattr(record, "remove_placement_group", removed.append)
    return removed


@pytest.fixture
def named(monkeypatch) -> list[dict[str, str]]:
    """The cluster's named actors, which may end between being listed and being looked up."""
    named = [
        {"namespace": "rlhf-ray/lab", "name": "record"},
        {"namespace": "rlhf-ray/lab", "name": "lab/policy/0"},
        {"namespace": "rlhf-ray/other", "name": "other/policy/0"},
    ]
    monkeypatch.setattr(record.ray.util, "list_named_actors", lambda all_namespaces: named)
    return named


def test_lost_groups_and_actors_are_ended(removed, named, monkeypatch):
    killed: list[str] = []
    monkeypatch.setattr(record.ray, "get_actor", lambda name, namespace: name)
    monkeypatch.setattr(record.ray, "kill", killed.append)
    record.end_orphans(FakeRecord())
    assert (killed, removed) == (["lab/policy/0"], ["lost"])


def test_an_actor_that_ends_by_itself_stops_nothing(removed, named, monkeypatch):
    def vanished(name: str, namespace: str) -> Any:
        raise ValueError(f"Failed to look up actor with name '{name}'")

    monkeypatch.setattr(record.ray, "get_actor", vanished)
    record.end_orphans(FakeRecord())
    assert removed == ["lost"]


def test_a_new_pool_ends_what_one_of_its_name_has_left_without_a_record(
    removed, named, monkeypatch
):
    killed: list[str] = []
    actor = SimpleNamespace(remote=lambda creator: None)
    keeper = SimpleNamespace(options=lambda **options: actor)
    monkeypatch.setattr(record.ray, "remote", lambda **options: lambda keeper_class: keeper)
    monkeypatch.setattr(record.ray, "get_actor", lambda name, namespace: name)
    monkeypatch.setattr(record.ray, "kill", killed.append)
    monkeypatch.setattr(record, "_own_holder", lambda name: None)
    monkeypatch.setattr(record.PoolRecord, "_call", lambda record, method: PoolState)
    record.PoolRecord.create("lab", "pool up")
    assert (killed, removed) == (["lab/policy/0"], ["known", "lost"])


def test_a_pool_that_ends_keeps_no_group(removed):
    record.release_groups(FakeRecord())
    assert removed == ["known", "lost"]


@pytest.mark.parametrize("failure", [RunError("an actor died"), KeyboardInterrupt()])
def test_a_group_whose_gpus_cannot_be_asked_for_is_given_back(failure, monkeypatch):
    def table(group: FakePlacementGroup) -> Any:
        raise failure

    removed: list[FakePlacementGroup] = []
    group = FakePlacementGroup("new")
    monkeypatch.setattr(placement, "placement_group", lambda bundles, **options: group)
    monkeypatch.setattr(placement, "placement_group_table", table)
    monkeypatch.setattr(placement, "remove_placement_group", removed.append)
    [plan] = plan_groups({"policy": GroupConfig()})
    with pytest.raises(type(failure)):
        reserve(plan, name="standing/lab:policy", timeout_s=1.0, outlives_job=True)
    assert removed == [group]


def test_a_node_that_dies_while_its_group_is_placed_is_named(monkeypatch):
    group = FakePlacementGroup("new")
    nodes = {"bundles_to_node_id": {0: "node", 1: ""}}  # Ray looks for another place for bundle 1
    monkeypatch.setattr(placement, "placement_group", lambda bundles, **options: group)
    monkeypatch.setattr(placement, "placement_group_table", lambda group: nodes)
    monkeypatch.setattr(placement, "addresses", lambda: {"node": "10.0.0.1"})
    monkeypatch.setattr(placement, "remove_placement_group", lambda group: None)
    [plan] = plan_groups({"policy": GroupConfig(ranks=2)})
    with pytest.raises(RunError, match=r"placing policy: the nodes of its bundles \[1\] are gone"):
        reserve(plan, name="standing/lab:policy", timeout_s=1.0, outlives_job=True)


def test_places_of_a_lost_node_are_where_ray_gave_their_bundles_to(monkeypatch):
    group = FakePlacementGroup("of role")
    nodes = {"bundles_to_node_id": {0: "first", 1: "second", 2: ""}}  # nobody has room for the last
    monkeypatch.setattr(placement, "placement_group_table", lambda group: nodes)
    monkeypatch.setattr(placement, "addresses", lambda: {"first": "10.0.0.1", "second": "10.0.0.2"})
    places = [
        Place(group=group, bundle=bundle, node_id="first", address="10.0.0.1", gpus=("0",))
        for bundle in range(3)
    ]
    moved = placement.moved(places)
    assert [place.address for place in moved] == ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
    assert [place.node_id for place in moved] == ["first", "second", "first"]
    assert moved[1].gpus == ("0",)
