from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray import packing
from rlhf_ray.packing import MinibatchPlan, cost_of, cut, plan_forward, plan_update
from rlhf_ray.shared_prompts import PromptShare

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40)
layout = st.fixed_dictionaries(
    {
        "data_parallel_size": st.integers(1, 5),
        "max_tokens_per_micro_batch": st.integers(1, 150),
        "padded": st.booleans(),
    }
)
schedule = st.fixed_dictionaries(
    {
        "num_minibatches": st.integers(1, 6),
        "num_epochs": st.integers(1, 3),
        "seed": st.integers(0, 2**32),
    }
)


def rows_of(minibatch: MinibatchPlan) -> list[int]:
    return [row for rank in minibatch.micro_batches_by_rank for batch in rank for row in batch]


@given(lengths, layout, schedule)
def test_each_row_is_trained_exactly_once_an_epoch(
    lengths_B: list[int], layout: dict[str, Any], schedule: dict[str, Any]
) -> None:
    plan = plan_update(lengths_B, lengths_B, **layout, **schedule)
    num_minibatches = min(schedule["num_minibatches"], len(lengths_B))
    assert len(plan.minibatches) == num_minibatches * schedule["num_epochs"]
    for epoch in range(schedule["num_epochs"]):
        minibatches = plan.minibatches[epoch * num_minibatches :][:num_minibatches]
        sizes = [len(rows_of(minibatch)) for minibatch in minibatches]
        assert max(sizes) - min(sizes) <= 1
        rows = [row for minibatch in minibatches for row in rows_of(minibatch)]
        assert sorted(rows) == list(range(len(lengths_B)))


@given(lengths, layout)
def test_an_inference_pass_takes_each_row_once(
    lengths_B: list[int], layout: dict[str, Any]
) -> None:
    by_rank = plan_forward(lengths_B, **layout)
    assert len(by_rank) == layout["data_parallel_size"]
    rows = [row for rank in by_rank for batch in rank for row in batch]
    assert sorted(rows) == list(range(len(lengths_B)))


@given(lengths, layout)
def test_ranks_have_equally_many_micro_batches_within_the_budget(
    lengths_B: list[int], layout: dict[str, Any]
) -> None:
    by_rank = plan_forward(lengths_B, **layout)
    assert len({len(micro_batches) for micro_batches in by_rank}) == 1
    for micro_batches in by_rank:
        costs = [cost_of(batch, lengths_B, padded=layout["padded"]) for batch in micro_batches]
        assert costs == sorted(costs, reverse=True)
        for cost, batch in zip(costs, micro_batches, strict=True):
            assert cost <= layout["max_tokens_per_micro_batch"] or len(batch) == 1


@given(lengths, layout)
def test_ranks_differ_by_one_row_at_most(lengths_B: list[int], layout: dict[str, Any]) -> None:
    by_rank = plan_forward(lengths_B, **layout)
    loads = [sum(lengths_B[row] for batch in rank for row in batch) for rank in by_rank]
    assert max(loads) - min(loads) <= max(lengths_B)


@given(lengths, layout)
def test_a_micro_batch_is_empty_only_where_every_row_of_the_rank_is_alone(
    lengths_B: list[int], layout: dict[str, Any]
) -> None:
    for micro_batches in plan_forward(lengths_B, **layout):
        if () in micro_batches:
            assert all(len(batch) <= 1 for batch in micro_batches)


@given(lengths, layout, layout, schedule)
def test_rows_and_denominators_of_a_minibatch_do_not_depend_on_the_layout(
    lengths_B: list[int],
    one: dict[str, Any],
    other: dict[str, Any],
    schedule: dict[str, Any],
) -> None:
    own_B = [length // 2 for length in lengths_B]
    plans = [plan_update(lengths_B, own_B, **layout, **schedule) for layout in (one, other)]
    for left, right in zip(*(plan.minibatches for plan in plans), strict=True):
        assert sorted(rows_of(left)) == sorted(rows_of(right))
        assert left.num_tokens == right.num_tokens == sum(own_B[row] for row in rows_of(left))
        assert left.num_sequences == right.num_sequences
        assert left.num_sequences == sum(own_B[row] > 0 for row in rows_of(left))


@given(lengths, layout, schedule)
def test_a_plan_is_a_function_of_its_arguments(
    lengths_B: list[int], layout: dict[str, Any], schedule: dict[str, Any]
) -> None:
    plans = [plan_update(lengths_B, lengths_B, **layout, **schedule) for _ in range(2)]
    assert plans[0] == plans[1]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def minibatches(seed: int) -> list[set[int]]:
        plan = plan_update(
            [10] * 64,
            [5] * 64,
            data_parallel_size=1,
            max_tokens_per_micro_batch=640,
            num_minibatches=2,
            num_epochs=2,
            seed=seed,
            padded=False,
        )
        return [set(rows_of(minibatch)) for minibatch in plan.minibatches]

    assert minibatches(0)[0] != minibatches(0)[2]
    assert minibatches(0)[0] != minibatches(1)[0]


@settings(max_examples=50)
@given(st.lists(st.integers(1, 100), min_size=20, max_size=60))
def test_packing_wastes_less_than_half_the_budget(lengths_B: list[int]) -> None:
    """First fit leaves at most one bin half empty, else two of them would have been one."""
    [micro_batches] = plan_forward(
        lengths_B, data_parallel_size=1, max_tokens_per_micro_batch=200, padded=False
    )
    costs = [cost_of(batch, lengths_B, padded=False) for batch in micro_batches]
    assert sum(cost <= 100 for cost in costs) <= 1


@given(lengths, layout)
def test_a_packed_plan_is_cut_to_rectangles_within_the_budget(
    lengths_B: list[int], layout: dict[str, Any]
) -> None:
    budget = layout["max_tokens_per_micro_batch"]
    packed = plan_forward(lengths_B, **{**layout, "padded": False})
    fitting = cut(packed, lengths_B, max_tokens_per_micro_batch=budget, padded=True)
    assert len({len(rank) for rank in fitting}) == 1
    for before, after in zip(packed, fitting, strict=True):
        assert [row for batch in before for row in batch] == [r for b in after for r in b]
        for batch in after:
            assert len(batch) <= 1 or cost_of(batch, lengths_B, padded=True) <= budget
    again = cut(fitting, lengths_B, max_tokens_per_micro_batch=budget, padded=True)
    assert again == fitting


# A prompt's tokens, and those of what goes on from it in each row.
groups = st.lists(
    st.tuples(st.integers(0, 40), st.lists(st.integers(0, 30), min_size=1, max_size=9)),
    min_size=1,
    max_size=8,
).filter(lambda groups: all(prompt + own for prompt, owns in groups for own in owns))


def rows_in_groups(groups: list[tuple[int, list[int]]]) -> tuple[list[int], list[PromptShare]]:
    """Lengths of rows, and what they begin with."""
    lengths_B = [prompt + own for prompt, owns in groups for own in owns]
    prompts_B = [
        PromptShare(prompt=number, num_tokens=prompt)
        for number, (prompt, owns) in enumerate(groups)
        for _ in owns
    ]
    return lengths_B, prompts_B


def tokens_of(rows: tuple[int, ...], lengths_B: list[int], prompts_B: list[PromptShare]) -> int:
    """Each prompt once where that saves, and then a sixth of the rows' tokens for copied keys."""
    total = 0
    for prompt in {prompts_B[row] for row in rows}:
        lengths = [lengths_B[row] for row in rows if prompts_B[row] == prompt]
        once = prompt.num_tokens + sum(length - prompt.num_tokens for length in lengths)
        total += min(sum(lengths), once + math.ceil(sum(lengths) / 6))
    return total


@given(groups, layout)
def test_a_shared_prompt_counts_once_where_that_saves(
    groups: list[tuple[int, list[int]]], layout: dict[str, Any]
) -> None:
    lengths_B, prompts_B = rows_in_groups(groups)
    by_rank = plan_forward(lengths_B, prompts_B=prompts_B, **layout)
    assert sorted(row for rank in by_rank for batch in rank for row in batch) == list(
        range(len(lengths_B))
    )
    assert len({len(micro_batches) for micro_batches in by_rank}) == 1
    if layout["padded"]:
        assert by_rank == plan_forward(lengths_B, **layout)
        return
    for micro_batches in by_rank:
        costs = [tokens_of(batch, lengths_B, prompts_B) for batch in micro_batches]
        assert costs == sorted(costs, reverse=True)
        assert costs == [
            cost_of(batch, lengths_B, padded=False, prompts_B=prompts_B) for batch in micro_batches
        ]
        for cost, batch in zip(costs, micro_batches, strict=True):
            assert cost <= layout["max_tokens_per_micro_batch"] or len(batch) == 1


@given(groups, layout)
def test_groups_stay_whole_only_where_no_rank_gets_more_by_it(
    groups: list[tuple[int, list[int]]], layout: dict[str, Any]
) -> None:
    layout["padded"] = False
    lengths_B, prompts_B = rows_in_groups(groups)

    def fullest(plan: Any) -> int:
        return max(sum(lengths_B[row] for batch in rank for row in batch) for rank in plan)

    alone, together = (
        plan_forward(lengths_B, **layout, prompts_B=some) for some in (None, prompts_B)
    )
    of_ranks = [
        tokens_of(tuple(row for batch in rank for row in batch), lengths_B, prompts_B)
        for rank in together
    ]
    assert max(of_ranks) <= fullest(alone)


def test_a_group_goes_to_one_micro_batch() -> None:
    prompts_B = [PromptShare(prompt=row % 4, num_tokens=50) for row in range(16)]
    by_rank = plan_forward(
        [60] * 16,
        data_parallel_size=2,
        max_tokens_per_micro_batch=150,
        padded=False,
        prompts_B=prompts_B,
    )
    found = [{prompts_B[row].prompt for row in batch} for rank in by_rank for batch in rank]
    assert [len(prompts) for prompts in found] == [1, 1, 1, 1]
    # Fewer groups than ranks are cut, that none is idle.
    by_rank = plan_forward(
        [60] * 4,
        data_parallel_size=4,
        max_tokens_per_micro_batch=150,
        padded=False,
        prompts_B=[PromptShare(prompt=0, num_tokens=10)] * 4,
    )
    assert sorted(by_rank) == [((row,),) for row in range(4)]


@given(groups, layout, schedule)
def test_minibatches_do_not_depend_on_what_is_shared(
    groups: list[tuple[int, list[int]]], layout: dict[str, Any], schedule: dict[str, Any]
) -> None:
    lengths_B, prompts_B = rows_in_groups(groups)
    plans = [
        plan_update(lengths_B, lengths_B, **layout, **schedule, prompts_B=some)
        for some in (None, prompts_B)
    ]
    for left, right in zip(*(plan.minibatches for plan in plans), strict=True):
        assert sorted(rows_of(left)) == sorted(rows_of(right))
        assert (left.num_tokens, left.num_sequences) == (right.num_tokens, right.num_sequences)


@given(groups, layout, st.booleans())
def test_a_plan_with_shared_prompts_is_cut_for_a_model_that_shares_none(
    groups: list[tuple[int, list[int]]], layout: dict[str, Any], padded: bool
) -> None:
    lengths_B, prompts_B = rows_in_groups(groups)
    budget = layout["max_tokens_per_micro_batch"]
    shared = plan_forward(lengths_B, **{**layout, "padded": False}, prompts_B=prompts_B)
    fitting = cut(shared, lengths_B, max_tokens_per_micro_batch=budget, padded=padded)
    assert len({len(rank) for rank in fitting}) == 1
    for before, after in zip(shared, fitting, strict=True):
        assert [row for batch in before for row in batch] == [r for b in after for r in b]
        for batch in after:
            assert len(batch) <= 1 or cost_of(batch, lengths_B, padded=padded) <= budget


def test_padded_rows_meet_rows_of_like_length() -> None:
    [micro_batches] = plan_forward(
        [100, 1, 99, 2, 98, 3], data_parallel_size=1, max_tokens_per_micro_batch=300, padded=True
    )
    assert micro_batches == ((0, 2, 4), (5, 3, 1))


@pytest.mark.parametrize(("padded", "cost"), [(False, 9), (True, 10)])
def test_the_budget_is_met_exactly(padded: bool, cost: int) -> None:
    for budget, micro_batches in ((cost, ((0, 1),)), (cost - 1, ((0,), (1,)))):
        [planned] = plan_forward(
            [5, 4], data_parallel_size=1, max_tokens_per_micro_batch=budget, padded=padded
        )
        assert planned == micro_batches


def test_a_row_over_the_budget_goes_alone() -> None:
    [micro_batches] = plan_forward(
        [50, 3, 3], data_parallel_size=1, max_tokens_per_micro_batch=8, padded=False
    )
    assert micro_batches == ((0,), (1, 2))


def test_fewer_rows_than_ranks_gives_empty_micro_batches() -> None:
    assert plan_forward([7], data_parallel_size=3, max_tokens_per_micro_batch=8, padded=False) == (
        ((0,),),
        ((),),
        ((),),
    )
    assert plan_forward([], data_parallel_size=2, max_tokens_per_micro_batch=8, padded=False) == (
        (),
        (),
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lengths_B": [], "loss_tokens_B": []}, "rows must be at least 1, got 0"),
        ({"lengths_B": [3, 0]}, "row 1: a length must be at least 1 token, got 0"),
        ({"loss_tokens_B": [1]}, "loss_tokens_B must have 2 entries, got 1"),
        ({"loss_tokens_B": [1, 4]}, "row 1: loss tokens must be 0 to its length 3, got 4"),
        ({"data_parallel_size": 0}, "data_parallel_size must be at least 1, got 0"),
        ({"max_tokens_per_micro_batch": 0}, "max_tokens_per_micro_batch must be at least 1"),
        ({"num_minibatches": 0}, "num_minibatches must be at least 1, got 0"),
        ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
        ({"prompts_B": []}, "prompts_B must have 2 entries, got 0"),
        (
            {"prompts_B": [PromptShare(prompt=0, num_tokens=4)] * 2},
            "row 0: a prompt must have 0 to 3 tokens, got 4",
        ),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "lengths_B": [3, 3],
        "loss_tokens_B": [1, 1],
        "data_parallel_size": 1,
        "max_tokens_per_micro_batch": 8,
        "num_minibatches": 1,
        "num_epochs": 1,
        "seed": 0,
        "padded": False,
    }
    with pytest.raises(ValueError, match=message):
        plan_update(**{**arguments, **changed})


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys, rlhf_ray.packing\n"
        "print({'torch', 'transformers', 'datasets', 'ray', 'vllm'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "set()"


def _to_the_least_loaded(pieces, sizes, data_parallel_size):
    """Graham's rule, read off."""
    rows_by_rank = [[] for _ in range(data_parallel_size)]
    tokens_by_rank = [0] * data_parallel_size
    costs = [sizes.cost(piece) for piece in pieces]
    for index in sorted(range(len(pieces)), key=lambda index: -costs[index]):
        rank = tokens_by_rank.index(min(tokens_by_rank))
        rows_by_rank[rank] += pieces[index]
        tokens_by_rank[rank] += costs[index]
    return rows_by_rank, max(tokens_by_rank)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), layout, schedule, st.data())
def test_plans_are_those_of_grahams_rule(lengths_B, layout, schedule, data):
    """Ties and shared prompts included."""
    draws_B = data.draw(
        st.lists(st.integers(0, 3), min_size=len(lengths_B), max_size=len(lengths_B))
    )
    prompts_B = [PromptShare(prompt=draw, num_tokens=1) for draw in draws_B]

    def plan():
        return plan_update(lengths_B, lengths_B, **layout, **schedule, prompts_B=prompts_B)

    ours = plan()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(packing, "_balanced", _to_the_least_loaded)
        assert plan() == ours
