"""On NVIDIA GPUs: what a job says where cards are missing."""

from __future__ import annotations

import json

import pytest

from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.models import TOKENIZER, make_model
from benchmarks.gpu_check.scale import CARD

pytestmark = pytest.mark.gpu


@pytest.mark.timeout(600)
def test_a_shortfall_of_gpus_is_said_at_once(tmp_path):
    import ray
    import torch

    from launch import job
    from rlhf_ray.config.online import PpoConfig
    from rlhf_ray.errors import ConfigError

    there = len(Machine.here().cards)
    if not there:
        pytest.skip("needs an NVIDIA GPU")
    model = make_model(
        tmp_path / "model", CARD.small, device=torch.device("cpu"), dtype=torch.bfloat16
    )
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"w7 w{n}"}) + "\n" for n in range(8, 24)))
    config = PpoConfig.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "total_steps": 2,
            "prompts_per_step": 8,
            "data": {"path": str(prompts)},
            "policy": {"model": {"path": str(model), "tokenizer": str(model / TOKENIZER)}},
            "rollout": {"max_new_tokens": 32},
            "reward": {
                "functions": [
                    {
                        "path": "rlhf_ray.rewards.contains:contains_word",
                        "arguments": {"word": "w7"},
                    }
                ]
            },
            "placement": {
                "policy": {"gpus_per_rank": 1},
                "value": {"share": "policy", "gpus_per_rank": 1},
                "reference": {"share": "policy", "gpus_per_rank": 1},
                "rollout": {"ranks": there, "gpus_per_rank": 1},
            },
        }
    )
    with pytest.raises(ConfigError, match=f"{there + 1} GPU asked, {there} there"):
        job.run(config)
    assert not ray.is_initialized()
