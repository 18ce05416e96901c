"""Learners know an engine's Protocol alone: over a plain PyTorch engine they learn the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learning import (
    SMOOTH,
    hosted,
    largest_gap,
    logprobs_of,
    parameters_of,
    plan_evaluation,
    plan_of,
    plan_rows,
)
from plain_engine import PlainBuilder

from rlhf_ray.config.learners import ReferenceConfig
from rlhf_ray.learner.deepspeed.engine import DeepSpeedBuilder
from rlhf_ray.learner.engine import ParallelDims
from rlhf_ray.learner.rows import over_ranks
from rlhf_ray.specs import ReferenceSpec
from rlhf_ray.types import SftExample

# Decay, warm-up, and a norm that clips: all that an update has.
OPTIM = {**SMOOTH, "weight_decay": 0.1, "warmup_steps": 2, "max_grad_norm": 0.05}
ROUNDING = 1e-6
STEPS = 3
# As a share of the 148 that are trained.
ONE_TOKEN = 1.01 / 148


@pytest.fixture
def examples(pairs):
    return [
        SftExample(
            example_id=pair.row.example_id,
            token_ids_T=np.concatenate(parts),
            trained_T=np.repeat(
                [False, True], [len(pair.row.prompt_ids_T), len(pair.row.answer_ids_K[0])]
            ),
        )
        for pair in pairs
        for parts in [(pair.row.prompt_ids_T, pair.row.answer_ids_K[0])]
    ]


@pytest.fixture
def learned(make_policy, make_value, make_supervised, rows, pairs, labelled, rankings, examples):
    """`learned(kind, builder)`: the learner after some updates, and the last one's metrics."""

    def learn(kind, builder):
        if kind in ("policy", "value"):
            make, arguments = (make_policy, (0.1,)) if kind == "policy" else (make_value, ())
            learner, data, plan = make(builder=builder, optim=OPTIM), rows, plan_of(rows)
        else:
            data = {"dpo": pairs, "kto": labelled, "rm": rankings, "sft": examples}[kind]
            job = {"loss_type": ["kto"]} if kind == "kto" else {}
            name = "dpo" if kind == "kto" else kind
            learner, arguments = make_supervised(name, job=job, builder=builder, optim=OPTIM), ()
            plan = plan_rows([getattr(row, "row", row) for row in data])
        for _ in range(STEPS):
            metrics = learner.update(data, plan, *arguments)
        return learner, metrics

    return learn


@pytest.mark.parametrize("kind", ["policy", "value", "sft", "dpo", "kto", "rm"])
def test_a_plain_engine_learns_what_deepspeed_does(learned, kind):
    ours, our_metrics = learned(kind, PlainBuilder)
    theirs, their_metrics = learned(kind, DeepSpeedBuilder)
    clipped = [metrics.pop("clip_share", 0.0) for metrics in (our_metrics, their_metrics)]
    # A token at the edge of the clip counts on one side alone where the last bits differ.
    assert clipped[0] == pytest.approx(clipped[1], abs=ONE_TOKEN)
    assert our_metrics == pytest.approx(their_metrics, rel=1e-4, abs=1e-6)
    assert our_metrics["skipped_steps"] == 0 and our_metrics["grad_norm"] > OPTIM["max_grad_norm"]
    assert largest_gap(parameters_of(ours), parameters_of(theirs)) < ROUNDING


def test_it_evaluates_scores_and_resumes_alike(learned, make_policy, rows, pairs, tmp_path):
    ours, _ = learned("dpo", PlainBuilder)
    theirs, _ = learned("dpo", DeepSpeedBuilder)
    plan = plan_evaluation([pair.row for pair in pairs])
    evaluated = [learner.evaluate(pairs, plan).metrics for learner in (ours, theirs)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-4, abs=1e-6)

    policy, _ = learned("policy", PlainBuilder)
    scored = np.concatenate(logprobs_of(policy, rows))
    policy.save(tmp_path / "saved")
    resumed = make_policy(builder=PlainBuilder, optim=OPTIM)
    resumed.load(tmp_path / "saved")
    assert np.array_equal(np.concatenate(logprobs_of(resumed, rows)), scored)
    for learner in (policy, resumed):
        learner.update(rows, plan_of(rows), 0.1)
    assert largest_gap(parameters_of(resumed), parameters_of(policy)) == 0.0


def test_a_frozen_reference_scores_alike(make_model, rows):
    model = {"path": str(make_model("llama")), "dtype": "float32"}
    config = ReferenceConfig.model_validate({"model": model})
    spec = ReferenceSpec(reference=config, temperature=0.7)
    ours, theirs = (
        np.concatenate(logprobs_of(hosted(spec, builder), rows))
        for builder in (PlainBuilder, DeepSpeedBuilder)
    )
    assert np.array_equal(ours, theirs)


def test_ranks_that_work_on_the_same_rows_are_told_from_the_world(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 6)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    dims = ParallelDims.of_world(ranks_per_part=2)
    assert dims == ParallelDims(
        world_size=6, world_rank=3, data_parallel_size=3, data_parallel_rank=1
    )
    assert not dims.is_first_of_part
    with pytest.raises(
        ValueError, match="ranks must be a multiple of the 4 that share rows, got 6"
    ):
        ParallelDims.of_world(ranks_per_part=4)


def test_ranks_that_work_on_the_same_rows_count_once(monkeypatch):
    """Rows 0 and 2 are of the first two ranks, row 1 of the others."""
    tables = []
    monkeypatch.setattr(torch.distributed, "all_reduce", tables.append)
    plan = (((2,), (0,)), ((1,), ()))
    values = [[(20.0,), (0.5,)], [(10.0, 11.0)]]
    for rank in range(4):
        dims = ParallelDims(
            world_size=4, world_rank=rank, data_parallel_size=2, data_parallel_rank=rank // 2
        )
        over_ranks(values[rank // 2], plan, dims, num_rows=3, width=2, device=torch.device("cpu"))
    assert sum(tables).tolist() == [[0.5, 0.0], [10.0, 11.0], [20.0, 0.0]]
