"""What a configuration says of the way that weights take, and which ways it refuses."""

from __future__ import annotations

import pytest

from rlhf_ray.config.online import GrpoConfig

GPU = {"gpus_per_rank": 1}
ON_GPUS = {"policy": GPU, "rollout": GPU}
ON_CPU = {"policy": {}, "rollout": {}}


def job(*, rank=0, placement=ON_CPU, **publication):
    return GrpoConfig.model_validate(
        {
            "data": {"path": "prompts.jsonl"},
            "policy": {"model": {"path": "model", "lora": {"rank": rank}}},
            "reward": {"functions": [{"path": "a:b"}]},
            "placement": placement,
            "publication": publication,
        }
    )


@pytest.mark.parametrize(
    ("placement", "asked", "bucket_mb"),
    [(ON_CPU, 256, 32), (ON_CPU, 8, 8), (ON_GPUS, 256, 256)],
)
def test_buckets_are_small_where_the_hosts_memory_is_the_way(placement, asked, bucket_mb):
    assert job(placement=placement, bucket_mb=asked).bucket_mb == bucket_mb


@pytest.mark.parametrize("placement", [ON_CPU, ON_GPUS], ids=["CPU", "GPUs"])
def test_adapters_apart_go_through_the_hosts_memory(placement):
    assert job(rank=4, placement=placement, adapters="apart").weight_backend == "object_store"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"apart needs policy.model.lora.rank between 1 and 512, got 0"),
        ({"rank": 513}, r"between 1 and 512, got 513"),
        ({"rank": 4, "backend": "nccl"}, r"publication.backend nccl sends merged weights"),
    ],
)
def test_adapters_that_cannot_go_apart_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        job(placement=ON_GPUS, adapters="apart", **settings)
