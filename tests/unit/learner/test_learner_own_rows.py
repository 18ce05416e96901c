"""A rank that has no rows but its own computes what it computes with all of them, to the bit."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.gradient_steps import KL_COEFFICIENT, learner_of, save_model, step_of
from rlhf_ray.learner.engine import ParallelDims, StepResult
from rlhf_ray.learner.update import UpdateSettings, run_update
from rlhf_ray.own_rows import OwnRows, dealt
from rlhf_ray.packing import plan_update

COEFFICIENTS = {"policy": [KL_COEFFICIENT], "value": []}
# The model runs as was planned, or turns out to need rectangles, for which ranks cut the plan.
PACKED = (True, False)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def on_rank(path):
    """A learner as one of two ranks has it, without the other, and a step's rows."""

    settings = {
        "model": {"path": str(path), "dtype": "float32"},
        "max_tokens_per_micro_batch": 60,
    }

    def make(name, rank, *, packed=True):
        learner = learner_of(name, settings, plain=True)
        rows = step_of(name, learner).rows
        learner.engine.dims = ParallelDims(
            world_size=2, world_rank=rank, data_parallel_size=2, data_parallel_rank=rank
        )
        learner.model.mode = replace(learner.model.mode, packed=packed)
        return learner, rows

    return make


def plan_of(rows):
    return plan_update(
        [row.num_tokens for row in rows],
        [int(row.rollout.action_mask_T.sum()) for row in rows],
        data_parallel_size=2,
        max_tokens_per_micro_batch=60,
        num_minibatches=2,
        num_epochs=1,
        seed=5,
        padded=False,
    )


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_an_update_is_the_same(name, rank, packed, on_rank):
    found = []
    for has_all in (True, False):
        learner, rows = on_rank(name, rank, packed=packed)
        plan = plan_of(rows)
        own = dealt(rows, plan)[rank]
        assert 0 < len(own.own) < len(rows)
        metrics = learner.update(rows if has_all else own, plan, *COEFFICIENTS[name])
        found.append((metrics, learner.engine.gradients))
    (wanted, gradients), (metrics, own_gradients) = found
    assert metrics == wanted
    for parameter, gradient in gradients.items():
        assert torch.equal(own_gradients[parameter], gradient), parameter
    assert any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_a_pass_is_the_same(name, rank, packed, on_rank):
    learner, rows = on_rank(name, rank, packed=packed)
    rollouts = [row.rollout for row in rows]
    plan = plan_of(rows).minibatches[0].micro_batches_by_rank
    numbers = [row for micro_batch in plan[rank] for row in micro_batch]
    own = OwnRows(
        own={row: rollouts[row] for row in numbers},
        lengths_B=np.array([rollout.num_tokens for rollout in rollouts], dtype=np.int32),
    )
    score = learner.logprobs if name == "policy" else learner.values
    wanted, scored = score(rollouts, plan), score(own, plan)
    assert len(scored) == len(numbers) > 0
    for one, other in zip(scored, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


class Overflowing:
    """An engine whose steps are never applied."""

    num_skipped_in_a_row = 1

    def __init__(self, rank):
        self.dims = ParallelDims(
            world_size=2, world_rank=rank, data_parallel_size=2, data_parallel_rank=rank
        )

    def backward(self, loss, *, is_last):
        pass

    def step(self):
        return StepResult(grad_norm=float("nan"), lr=0.0, applied=False)


def test_each_rank_writes_out_its_own_rows_of_a_skipped_step(rows, tmp_path):
    plan = plan_of(rows)
    settings = UpdateSettings(
        reduction="token_mean", constant_length=None, replay_folder=str(tmp_path)
    )
    for rank, own in enumerate(dealt(rows, plan)):
        run_update(
            Overflowing(rank), own, plan, lambda picked, reduction: (torch.ones(()), {}), settings
        )
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [
        f"skipped_{number:04d}_rank{rank:04d}.pkl" for number in (0, 1) for rank in (0, 1)
    ]
    written = [row for file in files for row in pickle.loads(file.read_bytes())]
    assert sorted(row.rollout.prompt.prompt_id for row in written) == sorted(
        row.rollout.prompt.prompt_id for row in rows
    )
