"""A group is a draw; samples without a score leave it, and what is left may be too small."""

from __future__ import annotations

import pytest
from fakes import groups_of, make_prompts, make_rollout, resolve

from rlhf_ray.roles.groups import ScoredGroup
from rlhf_ray.rollouts.groups import has_spread, trainable
from rlhf_ray.types import Score

# One prompt, drawn twice in the step.
[PROMPT] = make_prompts(1)
GROUPS = groups_of(
    [
        make_rollout(PROMPT, g, draw=d)
        for d, num_samples in ((7, 2), (9, 3))
        for g in range(num_samples)
    ]
)


def scored(*totals_PG):
    return [
        ScoredGroup(group=group, scores_G=tuple(Score(total=total) for total in totals_G))
        for group, totals_G in zip(GROUPS, totals_PG, strict=True)
    ]


def test_some_samples_of_a_group_are_looked_up_where_all_are():
    some = GROUPS[1].where([True, False, True])
    assert some.samples_G == ((9, 0), (9, 2))
    assert some.rollouts is GROUPS[1].rollouts, "data is not copied"
    assert [r.sample for r in resolve([some])] == [0, 2]


@pytest.mark.parametrize(
    ("totals", "smallest_group", "left"),
    [
        (((0, 0), (0, 0, 0)), 2, [(7, 0), (7, 1), (9, 0), (9, 1), (9, 2)]),
        (((0, 0), (None, 1, 2)), 2, [(7, 0), (7, 1), (9, 1), (9, 2)]),
        (((None, 0), (1, 1, 2)), 2, [(9, 0), (9, 1), (9, 2)]),
        (((None, 0), (1, 1, 2)), 1, [(7, 1), (9, 0), (9, 1), (9, 2)]),
        (((None, 0), (1, None, None)), 2, []),
        (((None, None), (None, None, None)), 1, []),
    ],
    ids=str,
)
def test_samples_to_train_have_a_score_and_enough_others_in_their_group(
    totals, smallest_group, left
):
    found = trainable(scored(*totals), smallest_group=smallest_group)
    assert [sample for one in found for sample in one.group.samples_G] == left
    assert all(score.total is not None for one in found for score in one.scores_G)
    assert all(len(one.scores_G) == len(one.group.samples_G) for one in found)


def spread_of(*parts_G, apart=True):
    names = "abc"
    return has_spread(
        [
            Score(total=sum(parts), parts=dict(zip(names, parts, strict=False)))
            for parts in zip(*parts_G, strict=True)
        ],
        apart=apart,
    )


def test_spread_in_one_of_several_rewards_is_enough():
    assert spread_of((1.0, 1.0), (0.0, 1.0))
    assert not spread_of((1.0, 1.0), (0.5, 0.5))
    assert not spread_of((1.0, 0.0), (0.0, 1.0), apart=False)


def test_a_group_of_one_or_none_has_no_spread():
    assert not has_spread([Score(total=1.0)], apart=False)
    assert not has_spread([], apart=False)
    assert not has_spread([], apart=True)
