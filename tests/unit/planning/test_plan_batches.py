"""The arithmetic of batches is that of the loop's own planning, at the longest rows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_jobs import job, planned

from rlhf_ray.packing import plan_update


@settings(max_examples=50)
@given(
    prompts=st.integers(1, 20),
    samples=st.integers(2, 6),
    minibatches=st.integers(1, 4),
    epochs=st.integers(1, 3),
    ranks=st.integers(1, 5),
    budget=st.integers(1, 4000),
)
def test_as_many_micro_batches_as_the_loop_makes(
    prompts, samples, minibatches, epochs, ranks, budget
):
    config = job(
        "grpo",
        prompts_per_step=prompts,
        samples_per_prompt=samples,
        data={"prompt_tokens": 40},
        rollout={"max_new_tokens": 60},
        policy={"max_tokens_per_micro_batch": budget},
        algorithm={"minibatches": min(minibatches, prompts * samples), "epochs": epochs},
        placement={"policy": {"ranks": ranks}},
    )
    batches = planned(config).stages[0].batches
    rows = prompts * samples
    assert (batches.rows, batches.row_tokens, batches.tokens) == (rows, 100, 100 * rows)
    plan = plan_update(
        [100] * rows,
        [60] * rows,
        data_parallel_size=ranks,
        max_tokens_per_micro_batch=budget,
        num_minibatches=config.algorithm.minibatches,
        num_epochs=epochs,
        seed=0,
        padded=False,
    )
    assert len(plan.minibatches) == batches.optimizer_steps
    first = plan.minibatches[0]
    assert first.num_sequences == batches.rows_per_optimizer_step
    assert len(first.micro_batches_by_rank[0]) == batches.micro_batches


@pytest.mark.parametrize(("name", "answers"), [("sft", 1), ("rm", 2), ("dpo", 2)])
def test_a_row_of_a_pair_has_two_answers(name, answers):
    batches = planned(job(name, batch_size=64)).stages[0].batches
    assert (batches.rows, batches.row_tokens) == (64, answers * 2048)
    assert batches.optimizer_steps == 1


def test_labelled_answers_come_singly():
    assert planned(job("dpo", loss_type=["kto"])).stages[0].batches.row_tokens == 2048
