"""An encoder with a tokenizer of its own as reward model: trained by `rm`, scoring in PPO."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from jobs import run_loop
from safetensors.numpy import load_file

from actors.roles.job_pool import JobPool
from launch.run.folder import run_folder
from rlhf_ray.config.supervised import RmConfig
from rlhf_ray.jobs.rm import RM


@pytest.fixture(scope="module")
def encoder(make_encoder) -> Path:
    """Shaped like distilroberta, with random weights and a token a byte."""
    return make_encoder(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=514,
        num_labels=1,
    )


def test_an_encoder_is_trained_and_then_scores(pool, encoder, make_config, shared_data, tmp_path):
    texts = (shared_data / "text/tinystories_sample.txt").read_text().split("<|endoftext|>")
    stories = [text.strip().replace("\n", " ") for text in texts[:48]]
    # Easy to tell apart, so that a few steps show whether it learns.
    pairs = [
        {"prompt": story[:40], "chosen": story[40:80], "rejected": "#" * (10 + n % 30)}
        for n, story in enumerate(stories)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    ppo = make_config(tmp_path / "ppo")
    config = RmConfig.model_validate(
        {
            "run_dir": str(tmp_path / "rm"),
            "total_steps": 12,
            "batch_size": 16,
            "data": {"path": str(data), "split": "train[:32]"},
            "eval": {"data": {"path": str(data), "split": "train[32:]"}},
            "reward": {
                "model": {"path": str(encoder), "dtype": "float32"},
                "optim": {"lr": 3e-3, "warmup_steps": 2},
            },
            "timeouts": ppo.timeouts.model_dump(),
        }
    )
    job = RM.prepare(config)
    with run_folder(config) as folder:
        asyncio.run(job.run(JobPool(pool, config)))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["eval/loss"] > 0.6
    assert lines[-1]["eval/loss"] < 0.2
    assert lines[-1]["eval/accuracy"] > 0.9
    before, after = (
        load_file(place / "model.safetensors") for place in (encoder, folder / "export")
    )
    assert before.keys() == after.keys()

    reward = {"model": {"path": str(folder / "export"), "normalize": "center"}, "functions": []}
    config = make_config(tmp_path / "ppo", total_steps=1).model_dump(mode="json")
    config["reward"] = reward
    _, [step] = run_loop(type(ppo).model_validate(config), pool)
    # Stories are what the policy writes: near the preferred answers, which score 0 on average.
    worst = lines[-1]["eval/reward_rejected"] - lines[-1]["eval/reward_chosen"]
    assert worst < step["reward/model"] < -worst
    assert step["rollout/reward_std"] > 0
