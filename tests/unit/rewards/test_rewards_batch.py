from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlhf_ray.rewards.batch import (
    RewardError,
    ScoringBatch,
    check_scores,
    combine,
    completion_text,
)
from rlhf_ray.rewards.gsm8k import correct_answer
from rlhf_ray.types import Rollout, Score


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


@pytest.mark.parametrize("prompt", ["Once", [{"role": "user", "content": "Once"}]])
def test_what_an_environment_said_is_no_answer_whatever_the_prompt_is(
    make_rollout: Callable[..., Rollout], prompt: Any
) -> None:
    said = (
        {"role": "assistant", "content": "hm"},
        {"role": "user", "content": r"Is it \boxed{7}?"},
        {"role": "assistant", "content": "no idea"},
    )
    whole = "".join(message["content"] for message in said)
    rollout = replace(make_rollout(0, prompt, whole, {"answer": "7"}), messages=said)
    [completion] = ScoringBatch.from_rollouts([rollout]).completions_B
    assert completion == list(said)
    assert completion_text(completion) == "no idea"
    assert correct_answer([completion], answer=["7"]) == [0.0]


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
