"""Dynamic sampling asks for exactly what is missing and accounts for every prompt."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rlhf_ray.algorithms.dynamic_sampling import DynamicSamplingExhausted, GroupFilter

SPREAD, EQUAL = [[0.0, 1.0, 0.0]], [[1.0, 1.0, 1.0]]


@given(
    num_prompts=st.integers(1, 8),
    max_rounds=st.integers(1, 5),
    outcomes=st.lists(st.sampled_from(["spread", "equal"]), min_size=40, max_size=40),
    on_exhausted=st.sampled_from(["error", "partial"]),
)
def test_every_prompt_is_asked_for_accounted_for_and_never_more_than_needed(
    num_prompts: int, max_rounds: int, outcomes: list[str], on_exhausted: str
) -> None:
    group_filter = GroupFilter(
        num_prompts=num_prompts, max_rounds=max_rounds, on_exhausted=on_exhausted
    )
    drawn: dict[str, list[int]] = {"spread": [], "equal": []}
    num_drawn = 0
    is_error = False
    try:
        while num_asked := group_filter.next_round():
            assert num_asked == num_prompts - len(drawn["spread"])
            for _ in range(num_asked):
                draw, outcome = num_drawn, outcomes[num_drawn]
                num_drawn += 1
                drawn[outcome].append(draw)
                scores = SPREAD if outcome == "spread" else EQUAL
                assert group_filter.offer(draw, scores) == (outcome == "spread")
    except DynamicSamplingExhausted:
        is_error = True

    assert group_filter.accepted == drawn["spread"]
    assert group_filter.filtered == drawn["equal"]
    assert len(group_filter.accepted) <= num_prompts
    is_full = group_filter.num_missing == 0
    assert is_full or group_filter.num_rounds == max_rounds
    assert is_error == (not is_full and on_exhausted == "error")


def test_the_error_says_what_happened() -> None:
    group_filter = GroupFilter(num_prompts=3, max_rounds=1, on_exhausted="error")
    assert group_filter.next_round() == 3
    group_filter.offer(0, SPREAD)
    group_filter.offer(1, EQUAL)
    group_filter.offer(2, EQUAL)
    with pytest.raises(DynamicSamplingExhausted, match=r"1 of 3 groups .* 1 rounds \(2 filtered\)"):
        group_filter.next_round()


def test_nothing_is_lost_and_nothing_is_surplus() -> None:
    group_filter = GroupFilter(num_prompts=2, max_rounds=3, on_exhausted="error")
    with pytest.raises(AssertionError, match="draw 7 was not asked for"):
        group_filter.offer(7, SPREAD)
    group_filter.next_round()
    group_filter.offer(8, SPREAD)
    with pytest.raises(AssertionError, match="1 groups are not accounted for"):
        group_filter.next_round()
    group_filter.offer(9, SPREAD)
    with pytest.raises(AssertionError, match="draw 10 was not asked for"):
        group_filter.offer(10, SPREAD)
    assert group_filter.next_round() == 0


def test_a_group_of_one_or_none_has_no_spread() -> None:
    group_filter = GroupFilter(num_prompts=2, max_rounds=1, on_exhausted="partial")
    group_filter.next_round()
    assert not group_filter.offer(0, [[1.0]])
    assert not group_filter.offer(1, [[]])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    group_filter = GroupFilter(num_prompts=1, max_rounds=1, on_exhausted="error")
    group_filter.next_round()
    with pytest.raises(ValueError, match="scores of draw 3 must be finite"):
        group_filter.offer(3, [[0.0, bad]])
    assert group_filter.offer(3, SPREAD), "the refused offer did not count"


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_prompts must be at least 1, got 0"):
        GroupFilter(num_prompts=0, max_rounds=1, on_exhausted="error")
    with pytest.raises(ValueError, match="max_rounds must be at least 1, got 0"):
        GroupFilter(num_prompts=1, max_rounds=0, on_exhausted="error")


def test_spread_in_one_of_several_rewards_is_enough() -> None:
    group_filter = GroupFilter(num_prompts=2, max_rounds=1, on_exhausted="partial")
    group_filter.next_round()
    assert group_filter.offer(0, [[1.0, 1.0], [0.0, 1.0]])
    assert not group_filter.offer(1, [[1.0, 1.0], [0.5, 0.5]])
