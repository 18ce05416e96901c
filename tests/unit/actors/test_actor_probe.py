"""The comparison of engine and trainer: what is compared, what is said, the worst tokens first."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.weights.probe import EXACT, ROUNDED, Gap, GapLimits, gap_of, largest_of, probe_sequences
from rlhf_ray.types import Prompt


def prompt(number, *token_ids):
    return Prompt(prompt_id=f"p{number}", token_ids_T=token_ids, text="")


def test_a_probe_scores_every_token_of_a_prompt_but_the_first():
    prompts = [prompt(0, 7), prompt(1, 1, 2, 3), prompt(2, 4, 5), prompt(3, 6, 7, 8)]
    probe = probe_sequences(prompts, 2)
    assert [p.prompt.token_ids_T for p in probe] == [(1,), (4,)]
    assert [p.response_ids_T.tolist() for p in probe] == [[2, 3], [5]]
    assert [p.num_tokens for p in probe] == [3, 2]


def test_the_worst_tokens_come_first():
    ours = [np.array([-1.0, -2.0]), np.array([-3.0])]
    theirs = [np.array([-1.5, -2.0]), np.array([-1.0])]
    gap = gap_of(ours, theirs, [[10, 11], [12]])
    assert (gap.largest, gap.num_tokens) == (2.0, 3)
    assert gap.mean == pytest.approx(2.5 / 3)
    assert gap.worst[0] == {
        "sequence": 1, "position": 0, "token": 12, "trainer": -3.0, "engine": -1.0
    }  # fmt: skip
    assert [entry["token"] for entry in gap.worst] == [12, 10, 11]


@pytest.mark.parametrize(
    ("num_tokens", "num_above"), [(1, 0), (2, 1), (100, 1), (101, 1), (102, 2), (1601, 16)]
)
def test_one_token_in_a_hundred_lies_above_the_99th_percentile(num_tokens, num_above):
    gaps = np.random.default_rng(0).permutation(num_tokens).astype(float)
    gap = gap_of([np.zeros(num_tokens)], [gaps], [range(num_tokens)])
    assert (gaps > gap.p99).sum() == num_above


def test_a_nan_is_above_every_limit_wherever_it_stands():
    for position in range(3):
        theirs = np.array([-1.0, -9.0, -1.0])
        theirs[position] = math.nan
        gap = gap_of([np.full(3, -1.0)], [theirs], [[10, 11, 12]])
        assert gap.worst[0]["position"] == position
        assert EXACT.exceeded_by(gap)
        assert ROUNDED.exceeded_by(gap)


def test_what_exceeds_a_limit_is_said_with_the_worst_tokens():
    gap = gap_of([np.zeros(200)], [np.full(200, 0.25)], [range(200)])
    said = GapLimits(mean=0.2).exceeded_by(gap)
    assert said.startswith("0.25 nats in the mean of 200 tokens (limit 0.2); worst tokens: {")
    assert said.count("'token': ") == 5
    assert GapLimits(p99=0.2).exceeded_by(gap).startswith("0.25 nats at the 99th percentile of 200")
    assert GapLimits(largest=0.2).exceeded_by(gap).startswith("0.25 nats on the worst token")
    assert GapLimits(mean=0.3, p99=0.3, largest=0.3).exceeded_by(gap) == ""


def test_nothing_to_compare_is_no_gap():
    assert gap_of([], [], []) == largest_of([]) == Gap()


def test_of_several_engines_each_measure_is_the_largest():
    one, other = Gap(mean=0.1, p99=0.2, largest=0.9), Gap(mean=0.2, p99=0.3, largest=0.4)
    assert largest_of([one, other]) == Gap(mean=0.2, p99=0.3, largest=0.9)
