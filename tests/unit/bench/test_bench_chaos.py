"""What a run under kills has made of its time is counted in steps of an undisturbed one."""

from __future__ import annotations

import random

import pytest

from benchmarks.chaos.goodput import Kill, report
from benchmarks.chaos.roles import one_of, role_of


def test_useful_are_the_seconds_that_the_steps_take_undisturbed():
    # Two seconds a step: the first kill costs six steps, the second two.
    quiet = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    after_first = [22.5, 24.5, 26.5, 28.5]
    after_second = [34.5, 36.5, 38.5, 40.5, 42.5, 44.5, 46.5, 48.5]
    kills = [Kill(at_s=10.5, role="policy"), Kill(at_s=30.5, role="driver")]
    result = report([*quiet, *after_first, *after_second, 51.0], kills, until_s=50.5)
    assert result == {
        "steps": 12,
        "undisturbed_step_s": 2.0,
        "kills": 2,
        "kills_by_role": {"driver": 1, "policy": 1},
        "lost_s_by_role": {"driver": [4.0], "policy": [12.0]},
        "useful_s": 24.0,
        "total_s": 40.0,
        "useful_share": 0.6,
    }


def test_without_a_step_before_the_first_kill_there_is_nothing_to_compare_with():
    with pytest.raises(ValueError, match="a step must be done before the first kill"):
        report([0.0, 9.0], [Kill(at_s=5.0, role="policy")], until_s=20.0)


@pytest.mark.parametrize(
    ("title", "role"),
    [
        ("ray::PolicyRank", "policy"),
        ("ray::PolicyRank.update", "policy"),
        ("ray::RolloutReplica.finished", "rollout"),
        ("ray::IDLE", None),
        ("ray::DashboardAgent", None),
        ("python -m launch.cli PolicyRank", None),
        ("", None),
    ],
)
def test_a_role_is_known_by_the_title_of_its_process(title, role):
    assert role_of(title) == role


class Process:
    def __init__(self, pid):
        self.pid = pid


def test_each_role_is_as_likely_whatever_processes_it_has():
    there = {"policy": [Process(n) for n in range(9)], "driver": [Process(99)]}
    chance = random.Random(0)
    roles = [one_of(there, chance)[0] for _ in range(1000)]
    assert 450 < roles.count("driver") < 550
    again = random.Random(0)
    assert [one_of(there, again)[0] for _ in range(1000)] == roles
