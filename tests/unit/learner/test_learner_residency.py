"""A model leaves its device for the host and comes back: nothing stays, and no number changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from devices import on_device, only_what_comes
from learning import hosted, logprobs_of, parameters_of, plan_of
from transformers import AutoModelForCausalLM

from benchmarks.gradients import first_moments
from rlhf_ray.config.learners import ReferenceConfig
from rlhf_ray.learner.weights import named_weights
from rlhf_ray.specs import ReferenceSpec

CPU = torch.device("cpu")
# DeepSpeed's own buckets hold 500 million numbers.
SMALL = {"extra": {"zero_optimization": {"reduce_bucket_size": 20_000}}}
every_case = pytest.mark.parametrize(
    ("stage", "dtype", "lora"),
    [
        *((stage, dtype, 0) for stage in range(4) for dtype in ("float32", "bfloat16")),
        *((stage, "bfloat16", 3) for stage in (0, 3)),
    ],
)


@pytest.fixture
def rows(rows):
    """Some of the others': enough for several micro-batches."""
    return rows[:5]


@pytest.fixture(autouse=True)
def nothing_was_there_before(path):
    with only_what_comes():
        yield


@pytest.fixture(scope="module")
def path(make_model, tmp_path_factory):
    """In a dtype of its own: on a CPU, weights that need no cast lie in the mapped file."""
    folder = tmp_path_factory.mktemp("half")
    AutoModelForCausalLM.from_pretrained(make_model("llama")).half().save_pretrained(folder)
    return folder


@pytest.fixture
def make(make_policy, path, stage, dtype, lora):
    def make():
        model = {"dtype": dtype, "lora": {"rank": lora}}
        return make_policy(path=path, model=model, zero={"stage": stage, **SMALL})

    return make


@every_case
def test_nothing_of_a_learner_stays_on_its_device(make, rows):
    learner = make()
    learner.update(rows, plan_of(rows), 0.0)
    there = on_device(learner)
    learner.engine.residency.offload()
    assert on_device(learner) == {}
    assert not any(w.untyped_storage().nbytes() for w in learner.lm.parameters())
    assert learner.engine.residency.host_bytes > 0

    learner.engine.residency.reload()
    assert learner.engine.residency.host_bytes == 0
    back = on_device(learner)
    optimizer = learner.engine.engine.optimizer
    sums = [getattr(optimizer, "grad_partitions_flat_buffer", None)]
    sums += [bucket.buffer for bucket in getattr(optimizer, "ipg_buckets", {}).values()]
    sums += getattr(optimizer, "fp32_groups_gradients_flat", [])
    changed = {key for key in back if back[key] != there.get(key)}
    assert changed <= {t.untyped_storage()._cdata for t in sums if isinstance(t, torch.Tensor)}


@every_case
def test_a_run_with_ways_out_and_back_is_the_run_without(make, rows, tmp_path):
    def run(learner, *, moves):
        def leave(**keywords):
            if moves:
                learner.engine.residency.offload(**keywords)

        def come(**keywords):
            if moves:
                learner.engine.residency.reload(**keywords)

        told = []
        leave()
        for _ in range(2):
            come(weights_only=True)
            told.append(np.concatenate(logprobs_of(learner, rows)).tolist())
            come()
            told.append(learner.update(rows, plan_of(rows), 0.0))
            leave(keep_weights=True)
            assert not moves or learner.engine.residency.host_bytes >= moments_of(learner)
            told += [(name, float(w.float().sum())) for name, w in named_weights(learner.lm)]
            leave()
        come()
        learner.save(tmp_path / f"saved{moves}")
        told.append(learner.update(rows, plan_of(rows), 0.0))
        return told

    here, there = make(), make()
    assert run(here, moves=True) == run(there, moves=False)
    ours, theirs = parameters_of(here), parameters_of(there)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = first_moments(here.engine), first_moments(there.engine)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("stage", "dtype", "lora"), [(2, "bfloat16", 0), (3, "float32", 0)])
def test_weights_that_a_bucket_of_gradients_still_names_are_kept(make, rows):
    """DeepSpeed forgets these with the next pass alone, where a step was broken off."""
    learner = make()
    learner.update(rows, plan_of(rows), 0.0)
    wanted = np.concatenate(logprobs_of(learner, rows))
    moments = {name: m.clone() for name, m in first_moments(learner.engine).items()}
    for bucket in learner.engine.engine.optimizer.ipg_buckets.values():
        bucket.params.extend(learner.engine.module.parameters())
    learner.engine.residency.offload()
    learner.engine.residency.reload()
    for bucket in learner.engine.engine.optimizer.ipg_buckets.values():
        bucket.params.clear()
    assert np.array_equal(np.concatenate(logprobs_of(learner, rows)), wanted)
    for name, moment in first_moments(learner.engine).items():
        assert torch.equal(moment, moments[name]), name


def moments_of(learner):
    """Bytes of Adam's two, on one rank alone."""
    trained = [p for p in learner.engine.module.parameters() if p.requires_grad]
    return 2 * 4 * sum(getattr(p, "ds_numel", p.numel()) for p in trained)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_frozen_reference_leaves_and_scores_as_before(path, rows, stage):
    config = ReferenceConfig.model_validate(
        {"model": {"path": str(path), "dtype": "float32"}, "zero": {"stage": stage}}
    )
    reference = hosted(ReferenceSpec(reference=config, temperature=1.0))
    try:
        wanted = np.concatenate(logprobs_of(reference, rows))
        reference.engine.residency.offload()
        assert on_device(reference) == {}
        reference.engine.residency.reload()
        assert np.array_equal(np.concatenate(logprobs_of(reference, rows)), wanted)
    finally:
        reference.close()
