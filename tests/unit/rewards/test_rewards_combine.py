from __future__ import annotations

import pytest

from rlhf_ray.rewards.batch import combine
from rlhf_ray.types import Score


def test_scores_are_summed_by_weight_over_those_that_apply() -> None:
    scores = combine(
        {"right": [1.0, None, 0.0], "short": [0.5, 0.25, -1.0]},
        {"right": 2.0, "short": -1.0},
        num_rows=3,
    )
    assert scores == [
        Score(total=1.5, parts={"right": 1.0, "short": 0.5}),
        Score(total=-0.25, parts={"right": None, "short": 0.25}),
        Score(total=1.0, parts={"right": 0.0, "short": -1.0}),
    ]


def test_a_row_that_no_scorer_applies_to_has_no_total() -> None:
    values = {"f": [0.0, None], "g": [None, None]}
    assert combine(values, {"f": 1.0, "g": 1.0}, num_rows=2) == [
        Score(total=0.0, parts={"f": 0.0, "g": None}),
        Score(total=None, parts={"f": None, "g": None}),
    ]


def test_scorers_weights_and_rows_must_agree() -> None:
    with pytest.raises(ValueError, match=r"must be those of the scorers \['f'\], got \['g'\]"):
        combine({"f": [1.0]}, {"g": 1.0}, num_rows=1)
    with pytest.raises(ValueError, match="scorer 'f' must give 2 values, got 1"):
        combine({"f": [1.0]}, {"f": 1.0}, num_rows=2)
