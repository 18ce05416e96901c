"""How far apart engine and trainer may be after a publication, by what they compute in."""

from __future__ import annotations

import pytest

from actors.roles.engines import gap_limits
from actors.weights.probe import EXACT, ROUNDED, GapLimits
from rlhf_ray.config.online import GrpoConfig

GPU = {"gpus_per_rank": 1}


def job(*, publication=None, placement=None, **model):
    return GrpoConfig.model_validate(
        {
            "data": {"path": "prompts.jsonl"},
            "policy": {"model": {"path": "model", **model}},
            "reward": {"functions": [{"path": "a:b"}]},
            "rollout": {"dtype": model.get("dtype", "auto")},
            "placement": placement or {},
            "publication": publication or {},
        }
    )


ON_GPUS = {"policy": GPU, "rollout": GPU}


@pytest.mark.parametrize(
    ("config", "limits"),
    [
        (job(), EXACT),
        (job(dtype="float32", placement=ON_GPUS), EXACT),
        (job(placement=ON_GPUS), ROUNDED),
        (job(placement={"policy": GPU}), ROUNDED),
        (job(dtype="bfloat16"), ROUNDED),
        (job(dtype="float32", quantization="8bit", lora={"rank": 4}), ROUNDED),
    ],
    ids=["CPU", "float32 on GPUs", "GPUs", "only the trainer on GPUs", "bfloat16", "quantized"],
)
def test_only_where_both_compute_in_float32_does_a_single_token_count(config, limits):
    assert gap_limits(config) == limits


def test_each_limit_may_be_set():
    mine = {"max_logprob_gap": 2.0, "max_logprob_gap_mean": 0.3, "max_logprob_gap_p99": 0.7}
    wanted = GapLimits(largest=2.0, mean=0.3, p99=0.7)
    assert gap_limits(job(publication=mine)) == wanted
    one = gap_limits(job(publication={"max_logprob_gap_mean": 0.3}, placement=ON_GPUS))
    assert one == GapLimits(mean=0.3, p99=ROUNDED.p99)
