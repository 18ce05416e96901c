"""What an evaluation shows: the right rows beside the right numbers."""

from __future__ import annotations

import numpy as np

from rlhf_ray.jobs.tables import (
    calibration_table,
    continuation_table,
    labelled_table,
    prompts_of,
    ranking_table,
)
from rlhf_ray.types import LabelledAnswer, Ranking, SftExample


class Letters:
    """Token n is the n-th letter; 0 is special."""

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(chr(ord("a") + i) for i in ids if i)


def tokens(*ids):
    return np.asarray(ids, dtype=np.int32)


def test_a_ranking_shows_its_best_and_its_worst_answer():
    ranking = Ranking(
        example_id="r:0", prompt_ids_T=tokens(1), answer_ids_K=(tokens(2), tokens(3), tokens(4, 0))
    )
    table = ranking_table(3, [ranking], [(0.5, 0.1, -2.0)], Letters())
    assert table.rows == [("b", "c", 0.5, "e", -2.0)]
    assert table.step == 3


def test_a_labelled_answer_shows_itself_and_not_the_mismatched_one():
    answer = LabelledAnswer(
        example_id="l:0",
        prompt_ids_T=tokens(1),
        answer_ids_K=(tokens(2), tokens(9)),
        desirable=False,
    )
    assert labelled_table(0, [answer], [(0.25,)], Letters()).rows == [("b", "c", "no", 0.25)]


def test_the_reliability_curve_counts_every_pair_of_every_ranking():
    def ranking(*tiers_K):
        ids_K = tuple(tokens(place) for place in range(len(tiers_K)))
        return Ranking(
            example_id="r:0", prompt_ids_T=tokens(1), answer_ids_K=ids_K, tiers_K=tiers_K
        )

    rows = [ranking(0, 1), ranking(0, 1), ranking(0, 1, 2), ranking(0, 0)]
    table = calibration_table(0, rows, [(2.0, 0.0), (0.0, 2.0), (3.0, 3.0, 1.0), (9.0, 0.0)])
    assert sum(row[2] for row in table.rows) == 1 + 1 + 3  # a tie of the data is none of them
    by_count = {row[2]: row for row in table.rows}
    said, right, count = by_count[4]  # gaps of ±2: three right, one wrong
    assert (round(said, 4), right, count) == (0.8808, 0.75, 4)
    assert by_count[1][:2] == (0.5, 0.0)  # equal scores are not right


def example(trained):
    return SftExample(
        example_id="s:0",
        token_ids_T=np.arange(1, 1 + len(trained), dtype=np.int32),
        trained_T=np.asarray(trained),
    )


def test_a_model_continues_what_stands_before_the_first_trained_token():
    answer, text = example([False, False, True, True]), example([False, True, True, True])
    assert prompts_of([answer, text]) == [[1, 2], [1, 2]]
    table = continuation_table(0, [answer], [[7, 0]], Letters())
    assert table.rows == [("bc", "h", "de")]
