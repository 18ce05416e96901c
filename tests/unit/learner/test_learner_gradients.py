"""What Adam is given is plain autograd's gradient of the whole step, however the step is cut.

A short cut of `python -m benchmarks.gradients`, which has every combination.
"""

from __future__ import annotations

import math

import pytest

from benchmarks.gradient_steps import LEARNERS, save_model
from benchmarks.gradients import Agreement, Case, agreements
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.config.zero import ZeroConfig, taken_settings
from rlhf_ray.learner.deepspeed.settings import deepspeed_config

CASES = [
    *(Case(learner=learner, dtype="bfloat16", stage=0) for learner in LEARNERS),
    *(Case(learner="policy", dtype="bfloat16", stage=stage) for stage in (1, 2, 3)),
    Case(learner="reward", dtype="bfloat16", stage=0, checkpointing=True, lora=True),
    Case(learner="reward", dtype="bfloat16", stage=3, checkpointing=True, lora=True),
    Case(learner="policy", dtype="bfloat16", stage=0, lora=True),
    Case(learner="dpo", dtype="bfloat16", stage=3, checkpointing=True, lora=True),
    Case(learner="sft", dtype="bfloat16", stage=1, checkpointing=True),
    Case(learner="policy", dtype="float32", stage=0, checkpointing=True, lora=True),
    Case(learner="value", dtype="float32", stage=1),
    Case(learner="sft", dtype="float32", stage=2, lora=True),
    Case(learner="dpo", dtype="float32", stage=3, checkpointing=True, lora=True),
    Case(learner="kto", dtype="float32", stage=3),
    Case(learner="reward", dtype="float32", stage=1, checkpointing=True, lora=True),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.learner} {case.dtype} {case.stage} {case.lora}"
)
def test_a_step_of_eight_micro_batches_is_one_of_the_whole(path, case):
    [found] = agreements(case, path, [8]).values()
    assert found.is_within(case.dtype), found


def test_no_number_is_within_no_limit():
    for field in ("relative", "cosine", "norm"):
        found = Agreement(**{"relative": 0.0, "cosine": 1.0, "norm": 0.0, field: math.nan})
        assert not found.is_within("bfloat16")


@pytest.mark.parametrize("bf16", [False, True])
def test_what_the_learner_tells_deepspeed_is_not_the_users_to_set(bf16):
    """Each of its keys, down to the last; a size of buckets is."""
    ours = deepspeed_config(ZeroConfig(), bf16=bf16, max_grad_norm=1.0)
    free = {"zero_allow_untested_optimizer", "steps_per_print"}
    for key, value in ours.items():
        if key not in free:
            assert list(taken_settings({key: value})), key
    open_ = {"zero_optimization": {"overlap_comm": True, "offload_optimizer": {"ratio": 0.5}}}
    merged = deepspeed_config(ZeroConfig(extra=open_), bf16=bf16, max_grad_norm=1.0)
    assert merged["zero_optimization"] == {
        **ours["zero_optimization"],
        **open_["zero_optimization"],
    }


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"bf16": {"immediate_grad_update": False}}, "extra must not set DeepSpeed's bf16"),
        ({"communication_data_type": "bf16"}, "communication_data_type: gradients are summed"),
        ({"gradient_clipping": 9.0}, "gradient_clipping: set optim.max_grad_norm"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage: set zero.stage"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer.device: set zero.offload_optimizer",
        ),
    ],
)
def test_a_setting_that_would_change_gradients_is_refused(extra, message):
    with pytest.raises(ValueError, match=message):
        LearnerConfig.model_validate({"zero": {"extra": extra}})
