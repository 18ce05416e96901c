"""On NVIDIA GPUs: bfloat16 training and publication over CUDA IPC, every role on one card.

`pytest tests/gpu -m gpu`. Not run where there is no GPU; a model is made on the spot.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

pytestmark = pytest.mark.gpu

WORDS = ("the", "cat", "dog", "ran", "sat", "big", "red", "a")


@pytest.fixture(scope="module")
def gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Llama whose head size every attention kernel takes, and a tokenizer of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    vocabulary = {word: n for n, word in enumerate(("<pad>", "<s>", "</s>", "<unk>", *WORDS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": " ".join(np.roll(WORDS, n)[: 3 + n % 4])} for n in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trained_folder(model, prompts, run_dir, placement, **policy):
    """Run two steps of PPO on a Ray of its own; returns its folder."""
    from launch.training import online
    from rlhf_ray.config.online import PpoConfig

    config = PpoConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "total_steps": 2,
            "prompts_per_step": 8,
            "samples_per_prompt": 2,
            "data": {"path": str(prompts)},
            "policy": {"model": {"path": str(model)}, "optim": {"lr": 1e-4}, **policy},
            "value": {"optim": {"lr": 1e-4}},
            "rollout": {"max_new_tokens": 32, "gpu_memory_share": 0.3, "enforce_eager": True},
            "reward": {
                "functions": [
                    {
                        "path": "rlhf_ray.rewards.contains:contains_word",
                        "arguments": {"word": "cat"},
                    }
                ]
            },
            "placement": placement,
        }
    )
    assert online.run(config, "ppo") == 0
    return run_dir


ONE_CARD = {
    "policy": {"gpus_per_rank": 1},
    "value": {"share": "policy", "gpus_per_rank": 1},
    "reference": {"share": "policy", "gpus_per_rank": 1},
    "rollout": {"share": "policy", "gpus_per_rank": 1},
    "reward": {},
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_ppo_trains_in_bfloat16_on_one_card_and_publishes_over_ipc(
    gpu, model, prompts, tmp_path, stage
):
    import torch
    from safetensors.torch import load_file

    folder = trained_folder(model, prompts, tmp_path / "run", ONE_CARD, zero={"stage": stage})
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines][1:]
    assert len(steps) == 2
    for step in steps:
        assert step["policy/skipped_steps"] == step["value/skipped_steps"] == 0
        # bfloat16 keeps 8 bits; a stale or torn weight is off by far more.
        assert step["mismatch/logprob_abs_max"] < 0.5
        assert step["mismatch/logprob_abs_mean"] < 0.05
    before, after = (
        load_file(model / "model.safetensors"),
        load_file(folder / "export/model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(weight.dtype is torch.bfloat16 for weight in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.timeout(600)
def test_a_shortfall_of_gpus_is_said_at_once(gpu, model, prompts, tmp_path):
    import ray
    import torch

    from rlhf_ray.errors import ConfigError

    there = torch.cuda.device_count()
    placement = {**ONE_CARD, "rollout": {"ranks": there, "gpus_per_rank": 1}}
    with pytest.raises(ConfigError, match=f"{there + 1} GPU asked, {there} there"):
        trained_folder(model, prompts, tmp_path / "run", placement)
    assert not ray.is_initialized()
