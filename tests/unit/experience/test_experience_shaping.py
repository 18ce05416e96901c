"""Shaping of scores."""

import pytest
import torch

from rlhf_ray.experience import rewards

SCORES = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def test_clip() -> None:
    assert rewards.clip(SCORES, low=-1.0, high=0.75).tolist() == [0.75, -1.0, 0.5]
    with pytest.raises(ValueError, match=r"low must not be above high \(0\.0\), got 1\.0"):
        rewards.clip(SCORES, low=1.0, high=0.0)


def test_whiten() -> None:
    white = rewards.whiten(SCORES)
    assert white.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert white.var().item() == pytest.approx(1.0, rel=1e-7)
    assert white.argsort().tolist() == SCORES.argsort().tolist()


def test_missing_end_penalty() -> None:
    truncated = torch.tensor([True, False, True])
    got = rewards.missing_end_penalty(SCORES, truncated, penalty=2.0)
    assert got.tolist() == [-1.0, -2.0, -1.5]


def test_overlong_penalty_is_equation_13_of_dapo() -> None:
    def equation_13(length: int, max_length: int, cache: int) -> float:
        if length <= max_length - cache:
            return 0.0
        if length <= max_length:
            return ((max_length - cache) - length) / cache
        return -1.0

    lengths = list(range(30))
    got = rewards.overlong_penalty(
        torch.zeros(30, dtype=torch.float64),
        torch.tensor(lengths),
        max_length=20,
        buffer_length=8,
        penalty=1.0,
    )
    assert got.tolist() == pytest.approx([equation_13(n, 20, 8) for n in lengths])
    halved = rewards.overlong_penalty(
        SCORES, torch.tensor([5, 16, 99]), max_length=20, buffer_length=8, penalty=0.5
    )
    assert halved.tolist() == pytest.approx([1.0, -2.25, 0.0])
    for buffer_length in (0, 21):
        with pytest.raises(ValueError, match=f"must be in 1..20, got {buffer_length}"):
            rewards.overlong_penalty(
                SCORES, torch.zeros(3), max_length=20, buffer_length=buffer_length, penalty=1.0
            )


def test_repetition_penalty() -> None:
    ids = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [7]]
    got = rewards.repetition_penalty(SCORES, ids, ngram=2, max_penalty=2.0)
    # 3 bigrams of which all are unique; 4 of which one is; none at all.
    assert got.tolist() == pytest.approx([1.0, -2.0 - 2.0 * 0.75, 0.5])
    with pytest.raises(ValueError, match="ngram must be at least 1, got 0"):
        rewards.repetition_penalty(SCORES, ids, ngram=0, max_penalty=1.0)


def test_penalties_are_subtracted_so_they_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match=r"at least 0, got -1\.0"):
        rewards.missing_end_penalty(SCORES, torch.ones(3, dtype=torch.bool), penalty=-1.0)
    with pytest.raises(ValueError, match="at least 0, got nan"):
        rewards.repetition_penalty(SCORES, [[], [], []], ngram=1, max_penalty=float("nan"))
    with pytest.raises(ValueError, match=r"at least 0, got -0\.5"):
        rewards.overlong_penalty(
            SCORES, torch.zeros(3), max_length=4, buffer_length=2, penalty=-0.5
        )
