from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rlhf_ray.rewards.batch import RewardError, ScoringBatch, check_scores, completion_text
from rlhf_ray.types import Rollout


def test_a_batch_has_the_form_that_trl_gives_its_reward_functions(
    make_rollout: Callable[..., Rollout],
) -> None:
    chat = [{"role": "user", "content": "hi"}]
    batch = ScoringBatch.from_rollouts(
        [make_rollout(0, "Once", " upon", {"answer": 1}), make_rollout(1, chat, "yo", {"n": [2]})]
    )
    assert batch.prompt_ids_B == ["train:0", "train:1"]
    assert batch.prompts_B == ["Once", chat]
    assert batch.completions_B == [" upon", [{"role": "assistant", "content": "yo"}]]
    assert batch.prompt_token_ids_B == [[1, 2], [1, 2]]
    assert batch.completion_ids_B == [[0, 1, 2, 3, 4], [0, 1]]
    assert batch.columns == {"answer": [1, None], "n": [None, [2]]}
    assert [completion_text(completion) for completion in batch.completions_B] == [" upon", "yo"]


def test_a_part_holds_the_rows_asked_for(make_batch: Callable[..., ScoringBatch]) -> None:
    part = make_batch("a", "b", "c", n=[1, 2, 3]).part(1, 9)
    assert part == ScoringBatch(
        prompt_ids_B=["train:1", "train:2"],
        prompts_B=["p1", "p2"],
        completions_B=["b", "c"],
        prompt_token_ids_B=[[1, 2], [1, 2]],
        completion_ids_B=[[0], [0]],
        opens_reasoning_B=[False, False],
        columns={"n": [2, 3]},
    )
    assert len(part) == 2


def test_scores_may_come_as_any_list_of_numbers(make_batch: Callable[..., ScoringBatch]) -> None:
    import torch

    batch = make_batch("a", "b")
    for values in (
        [1, 0.5],
        (True, np.float32(0.5)),
        np.array([1, 0.5]),
        torch.tensor([1, 0.5]),
        [torch.tensor(1), 0.5],
    ):
        scores = check_scores(values, batch, "it")
        assert scores == [1.0, 0.5]
        assert all(type(score) is float for score in scores)
    assert check_scores([None, 2], batch, "it") == [None, 2.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "it must return a list of 2 scores, got NoneType"),
        (0.5, "it must return a list of 2 scores, got float"),
        (np.array(0.5), "it must return a list of 2 scores, got ndarray"),
        ([1.0], "it must return 2 scores, got 1"),
        ([], "it must return 2 scores, got 0"),
        ([1.0, float("nan")], "it: the score of prompt 'train:1' must be a finite .*, got nan"),
        ([float("-inf"), 1.0], "prompt 'train:0' must be a finite number or None, got -inf"),
        ({"a": 1.0, "b": 2.0}, "it must return a list of 2 scores, got dict"),
        ({1.0, 2.0}, "it must return a list of 2 scores, got set"),
        ("ab", "it must return a list of 2 scores, got str"),
        ([1j, 1.0], "prompt 'train:0' must be a finite number or None, got 1j"),
        ([10**400, 1.0], "prompt 'train:0' must be a finite number or None, got 1000"),
        (["1.0", 1.0], "prompt 'train:0' must be a finite number or None, got '1.0'"),
        ([[1.0], [1.0]], r"prompt 'train:0' must be a finite number or None, got \[1.0\]"),
    ],
)
def test_anything_else_is_an_error_that_names_the_row(
    make_batch: Callable[..., ScoringBatch], values: Any, message: str
) -> None:
    with pytest.raises(RewardError, match=message):
        check_scores(values, make_batch("a", "b"), "it")
