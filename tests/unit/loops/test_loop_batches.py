"""Selecting and joining by reference gives what selecting and joining the rows would."""

from __future__ import annotations

from fakes import batch_of, make_prompts, make_rollout, resolve
from hypothesis import given
from hypothesis import strategies as st
from rlhf_ray.loops.batches import join, select, select_shards

from rlhf_ray.roles import RolloutBatch

ROLLOUTS = [make_rollout(prompt, sample) for prompt in make_prompts(5) for sample in range(2)]
PICKS = st.lists(st.integers(0, 9), unique=True, min_size=1)


@given(rows=PICKS)
def test_selecting_takes_rows_in_the_order_given(rows):
    picked = select(batch_of(ROLLOUTS), rows)
    assert resolve(picked) == [ROLLOUTS[row] for row in rows]
    assert [s.prompt_id for s in picked.summaries_B] == [
        ROLLOUTS[row].prompt.prompt_id for row in rows
    ]


@given(parts=st.lists(PICKS, min_size=1, max_size=4))
def test_joining_selections_keeps_every_row_once_and_in_order(parts):
    joined = join(select(batch_of(ROLLOUTS), rows) for rows in parts)
    wanted = [ROLLOUTS[row] for rows in parts for row in rows]
    assert resolve(joined) == wanted
    assert [(s.prompt_id, s.sample) for s in joined.summaries_B] == [
        (r.prompt.prompt_id, r.sample) for r in wanted
    ]


def test_data_is_not_copied():
    batch = batch_of(ROLLOUTS)
    assert [s.ref for s in select(batch, [3, 1]).shards] == [s.ref for s in batch.shards]
    assert select(batch, [3, 1]).shards[0].ref is batch.shards[0].ref


@given(rows=PICKS)
def test_what_was_said_of_rows_is_selected_like_the_rows(rows):
    batch = batch_of(ROLLOUTS)
    picked = RolloutBatch(
        summaries_B=tuple(batch.summaries_B[row] for row in rows),
        shards=select_shards(batch.shards, rows),
    )
    assert resolve(picked) == [ROLLOUTS[row] for row in rows]
