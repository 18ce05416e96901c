"""Draws on a CPU: a token by seed and position alone, as often as its probability says."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
import vllm._custom_ops  # noqa: F401  (vLLM's kernels)
from hypothesis import given
from hypothesis import strategies as st

from actors.engines.draws import SeededDraws, SeededSampler, draw, draw_keys

MASK = 2**64 - 1
WORDS = st.integers(0, 2**63 - 1)


def uint64(numbers):
    return np.asarray(numbers, dtype=np.uint64)


def expected_key(seed, position):
    """In whole numbers of any size."""

    def mixed(number):
        number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        number = (number ^ (number >> 27)) * 0x94D049BB133111EB & MASK
        return number ^ (number >> 31)

    key = mixed((mixed(seed) + (position + 1) * 0x9E3779B97F4A7C15) & MASK)
    return key - 2**64 if key >> 63 else key


@given(st.lists(st.tuples(WORDS, st.integers(0, 2**20)), min_size=1))
def test_a_key_is_the_hash_on_any_processor(pairs):
    seeds, positions = zip(*pairs, strict=True)
    keys_B = draw_keys(uint64(seeds), uint64(positions))
    assert keys_B.tolist() == [expected_key(*pair) for pair in pairs]


def test_keys_do_not_meet():
    seeds, positions = np.meshgrid(np.arange(512), np.arange(512))
    keys = draw_keys(uint64(seeds.ravel()), uint64(positions.ravel()))
    assert len(set(keys.tolist())) == 512 * 512


def chance(observed, expected):
    """Of counts that are off as far as these or further: chi-square, by Wilson and Hilferty."""
    observed, expected = np.asarray(observed, dtype=float), np.asarray(expected, dtype=float)
    assert expected.min() >= 5
    freedom = len(expected) - 1
    distance = ((observed - expected) ** 2 / expected).sum()
    spread = 2 / (9 * freedom)
    return 0.5 * math.erfc(((distance / freedom) ** (1 / 3) - 1 + spread) / math.sqrt(2 * spread))


NUM = 40_000
# 1 in 1,000 sound generators would fail a test; what is drawn is the same each time.
LEAST = 1e-3


@pytest.mark.parametrize("vary", ["seed", "position"])
@pytest.mark.parametrize("num_tokens", [5, 60, 1000])
def test_tokens_are_drawn_as_often_as_their_probability_says(vary, num_tokens):
    logits_V = torch.randn(num_tokens, generator=torch.Generator().manual_seed(1)) * 0.5
    num = NUM * max(1, num_tokens // 400)
    counter, constant = uint64(np.arange(num)), np.full(num, 7, dtype=np.uint64)
    seeds, positions = (counter, constant) if vary == "seed" else (constant, counter)
    drawn = torch.cat([
        draw(logits_V.expand(len(rows), -1).contiguous(), seeds[rows], positions[rows])
        for rows in np.array_split(np.arange(num), 20)
    ])  # fmt: skip
    counts_V = torch.bincount(drawn, minlength=num_tokens)
    assert chance(counts_V.numpy(), logits_V.softmax(-1).numpy() * num) > LEAST


@pytest.mark.parametrize("step", [(1, 0), (0, 1), (1, 1)], ids=["seeds", "positions", "both"])
def test_what_follows_another_does_not_depend_on_it(step):
    num_tokens = 6
    seeds, positions = (uint64(grid.ravel()) for grid in np.meshgrid(np.arange(200), range(200)))
    logits_BV = torch.zeros(len(seeds), num_tokens)
    one = draw(logits_BV, seeds, positions)
    other = draw(logits_BV, seeds + uint64(step[0]), positions + uint64(step[1]))
    together = Counter((one * num_tokens + other).tolist())
    counts = [together[pair] for pair in range(num_tokens**2)]
    assert chance(counts, np.full(num_tokens**2, len(seeds) / num_tokens**2)) > LEAST


@given(st.permutations(range(8)), st.integers(1, 8))
def test_a_draw_does_not_depend_on_the_others_of_its_step(order, num):
    logits_BV = torch.randn(8, 50, generator=torch.Generator().manual_seed(2))
    seeds, positions = uint64(range(8)), uint64([0, 3, 3, 9, 1, 0, 7, 2])
    together = draw(logits_BV, seeds, positions)
    some = order[:num]
    alone = draw(logits_BV[some].contiguous(), seeds[some], positions[some])
    assert alone.tolist() == together[some].tolist()


def test_a_masked_token_is_never_drawn():
    logits_BV = torch.full((2000, 50), -torch.inf)
    logits_BV[:, 10:13] = 0.0
    drawn = draw(logits_BV, uint64(range(2000)), uint64([0] * 2000))
    assert set(drawn.tolist()) == {10, 11, 12}


def draws(*positions):
    return SeededDraws(lambda: uint64(positions))


def generators(*seeds):
    return {row: torch.Generator().manual_seed(seed) for row, seed in enumerate(seeds)}


def test_a_step_draws_by_the_seeds_of_its_requests():
    logits_BV = torch.randn(3, 40, generator=torch.Generator().manual_seed(3))
    seeds = generators(5, 2**62 + 1, 9)
    for _ in range(2):  # the generators' own state is not asked for
        tokens_B, logprobs_BV = draws(0, 4, 4)(logits_BV, seeds, None, None)
        expected = draw(logits_BV, uint64([5, 2**62 + 1, 9]), uint64([0, 4, 4]))
        assert tokens_B.tolist() == expected.tolist()
        torch.testing.assert_close(logprobs_BV, logits_BV.log_softmax(-1))


@pytest.mark.parametrize("asked", ["top_k", "top_p", "a draft"])
def test_what_log_probabilities_would_not_know_is_refused(asked):
    some = torch.ones(2)
    k, p = (some if asked == name else None for name in ("top_k", "top_p"))
    positions = (0, 0, 1) if asked == "a draft" else (0, 0)
    with pytest.raises(ValueError, match="neither top_k, top_p nor speculative decoding"):
        draws(*positions)(torch.zeros(2, 4), generators(1, 2), k, p)


def test_log_probabilities_of_the_drawn_tokens_are_picked_out():
    logprobs_BV = torch.randn(3, 9).log_softmax(-1)
    picked = SeededSampler.gather_logprobs(logprobs_BV, 0, torch.tensor([4, 0, 8]))
    assert picked.logprob_token_ids.tolist() == [[4], [0], [8]]
    assert picked.logprobs[:, 0].tolist() == logprobs_BV[range(3), [4, 0, 8]].tolist()
