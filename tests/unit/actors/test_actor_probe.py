"""The comparison of engine and trainer: what is compared, and the worst tokens first."""

from __future__ import annotations

import math

import numpy as np

from actors.weights.probe import largest_gap, probe_sequences
from rlhf_ray.types import Prompt


def prompt(number, *token_ids):
    return Prompt(prompt_id=f"p{number}", token_ids_T=token_ids, text="")


def test_a_probe_scores_every_token_of_a_prompt_but_the_first():
    prompts = [prompt(0, 7), prompt(1, 1, 2, 3), prompt(2, 4, 5), prompt(3, 6, 7, 8)]
    probe = probe_sequences(prompts, 2)
    assert [p.prompt.token_ids_T for p in probe] == [(1,), (4,)]
    assert [p.response_ids_T.tolist() for p in probe] == [[2, 3], [5]]
    assert [p.num_tokens for p in probe] == [3, 2]


def test_the_largest_gap_and_its_tokens_come_first():
    ours = [np.array([-1.0, -2.0]), np.array([-3.0])]
    theirs = [np.array([-1.5, -2.0]), np.array([-1.0])]
    gap, worst = largest_gap(ours, theirs, [[10, 11], [12]])
    assert gap == 2.0
    assert worst[0] == {
        "sequence": 1, "position": 0, "token": 12, "trainer": -3.0, "engine": -1.0
    }  # fmt: skip
    assert [entry["token"] for entry in worst] == [12, 10, 11]


def test_a_nan_is_the_largest_gap_wherever_it_stands():
    for position in range(3):
        theirs = np.array([-1.0, -9.0, -1.0])
        theirs[position] = math.nan
        gap, worst = largest_gap([np.full(3, -1.0)], [theirs], [[10, 11, 12]])
        assert not gap <= 1e9
        assert worst[0]["position"] == position


def test_nothing_to_compare_is_no_gap():
    assert largest_gap([], [], []) == (0.0, [])
