"""A group is a draw; rows without a score leave it, and what is left of it may be too small."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import batch_of, make_prompts, make_rollout
from rlhf_ray.loops.groups import rows_by_draw, trainable_rows

from rlhf_ray.types import Score

# One prompt, drawn twice in the step; rows of the two groups do not stand together.
DRAWN = [(7, 0), (9, 0), (7, 1), (9, 1), (9, 2)]
[PROMPT] = make_prompts(1)
SUMMARIES = batch_of([make_rollout(PROMPT, g, draw=draw) for draw, g in DRAWN]).summaries_B


def scores(*totals):
    return [Score(total=total) for total in totals]


def test_a_prompt_that_was_drawn_twice_makes_two_groups():
    assert rows_by_draw(SUMMARIES) == [[0, 2], [1, 3, 4]]
    elsewhere = [replace(summary, prompt_id=str(row)) for row, summary in enumerate(SUMMARIES)]
    assert rows_by_draw(elsewhere) == [[0, 2], [1, 3, 4]]
    assert rows_by_draw([]) == []


@pytest.mark.parametrize(
    ("totals", "smallest_group", "left"),
    [
        ((0.0, 0.0, 0.0, 0.0, 0.0), 2, [0, 1, 2, 3, 4]),
        ((0.0, None, 0.0, 1.0, 2.0), 2, [0, 2, 3, 4]),
        ((None, 1.0, 0.0, 1.0, 2.0), 2, [1, 3, 4]),
        ((None, 1.0, 0.0, 1.0, 2.0), 1, [1, 2, 3, 4]),
        ((None, 1.0, 0.0, None, None), 2, []),
        ((None, None, None, None, None), 1, []),
    ],
)
def test_rows_to_train_have_a_score_and_enough_others_in_their_group(totals, smallest_group, left):
    found = trainable_rows(SUMMARIES, scores(*totals), smallest_group=smallest_group)
    assert found == left
